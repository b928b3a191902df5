// One channel, large, with exact numbers -----------------------------------------------------------------------------------

function channelPart(parts, own) {
  const most = Math.max(...parts.map(([, number]) => D.arrays[number].kept), ...own.map((name) => D.parameters[name].shape[0]));
  state.channel = Math.max(0, Math.min(state.channel, most - 1));
  const input = h("input", { type: "number", min: 0, max: most - 1, value: state.channel, "data-key": "channel",
    onchange: (event) => choose(+event.target.value || 0) });
  const rows = h("tbody", {});
  const fill = async () => {
    const made = [];
    for (const [name, number] of parts) {
      const array = D.arrays[number], c = state.channel;
      if (c >= array.kept) continue;
      const { exact } = await unpackArray(array), at = (state.picture * array.kept + c) * 3;
      made.push(row([name, ...[0, 1, 2].map((k) => num(exact[at + k]))], { "data-name": name }));
    }
    rows.replaceChildren(...made);
  };
  drawings.push({ draw: fill });
  const large = parts.filter(([, number]) => state.channel < D.arrays[number].kept && sizeOf(D.arrays[number]) > 1).map(([name, number]) => {
    const array = D.arrays[number], size = sizeOf(array), [high, wide] = array.shape.slice(1);
    const levels = async () => {
      const start = (state.picture * array.kept + state.channel) * size;
      return (await unpackArray(array)).levels.subarray(start, start + size);
    };
    return h("figure", { className: /^d/.test(name) ? "gradient" : "" }, h("figcaption", {}, h("b", {}, name)),
      heatMap({ count: 1, h: high, w: wide, zoom: Math.max(1, Math.floor(128 / wide)), columns: 1, signed: array.signed, levels,
        label: `channel ${state.channel} of ${name}` }));
  });
  return h("section", {}, h("h3", {}, "One channel"),
    h("div", { className: "choice" }, h("label", {}, "Channel ", input), h("span", { className: "soft" }, `0 to ${most - 1}; or click in a heat map`)),
    h("div", { className: "choice" }, large),
    table("This channel of this picture", ["This picture", "min", "max", "mean"], rows),
    own.length ? channelOfParameters(own) : "");
}

function channelOfParameters(own) {
  const rows = h("tbody", {});
  const draw = async () => {
    const made = [];
    for (const name of own) {
      const p = D.parameters[name], count = p.shape[0];
      if (state.channel >= count) continue;
      const { exact } = await unpack(p.data, 4 * count);
      const title = p.shape.length > 1 ? `|${last(name)}|` : last(name);
      made.push(row([title, ...[0, 1, 2, 3].map((k) => num(exact[k * count + state.channel]))], { "data-name": name }));
    }
    rows.replaceChildren(...made);
  };
  drawings.push({ draw });
  return table("Weights of this channel", ["Weights of this channel", "before", "gradient", "after", "change"], rows);
}
const last = (name) => name.split(".").pop();

// Parameters ----------------------------------------------------------------------------------------------------------------

function parameterPart(name) {
  const p = D.parameters[name], [rows, columns, [high, wide]] = [p.rows, p.columns, p.cell], count = rows * columns;
  const values = async (gradient) => {
    const { levels } = await unpack(p.data, 4 * p.shape[0]), half = levels.length / 2;
    const [before, slope] = [levels.subarray(0, half), levels.subarray(half)];
    if (gradient) return slope;
    if (!state.after) return before;
    const [a, b] = p.scales; // after = before - lr · gradient
    return before.map((v, k) => Math.round(Math.max(-127, Math.min(127, v - 128 - ((D.lr * b) / a) * (slope[k] - 128)))) + 128);
  };
  const cut = rows < p.shape[0] || columns < (p.shape[1] || 1) ? `, of which the first ${rows}×${columns} are shown` : "";
  const draw = (title, gradient) => h("figure", { className: gradient ? "gradient" : "" }, h("figcaption", {}, h("b", {}, title)),
    heatMap({ count, h: high, w: wide, columns: columns > 1 ? columns : undefined, label: `${title} of ${name}, shape ${shapeOf(p.shape)}`,
      zoom: columns > 1 ? 12 : undefined,
      levels: () => values(gradient), signed: true, key: true, choose }),
    legend(true, p.scales[gradient ? 1 : 0], 0));
  return h("section", { "data-parameter": name }, h("h4", {}, last(name), ` ${shapeOf(p.shape)}`, cut),
    table(`Sizes of ${name}`, ["|W| before", "after", "|dW|", "|ΔW| = lr · |dW|", "|dW|/|W|", "|ΔW|/|W|"],
      [h("tr", {}, [p.norm, p.after, p.gradient, p.change, p.gradient / p.norm].map((v) => h("td", {}, Number.isFinite(v) ? num(v) : "–")),
        h("td", {}, p.norm ? percent(p.change / p.norm) : "–"))]),
    h("div", { className: "pair" }, draw(state.after ? "W after" : "W before", false), draw("dW", true)),
    p.top.length ? h("p", { className: "few" }, "Changed most, by |ΔW|/|W| of a channel: ",
      p.top.slice(0, 5).map(([c, ratio]) => [press(`${name}-${c}`, [`channel ${c}: `, percent(ratio)], () => choose(c)), " "])) : "");
}

function weightsPart(layer) {
  if (!layer.parameters.length) return h("section", {}, h("h3", {}, "Weights"), h("p", {}, "It has none: nothing here is trained."));
  const option = (after, label) => h("label", {}, h("input", { type: "radio", name: "after", checked: state.after === after, "data-key": `after-${after}`,
    onchange: () => { state.after = after; show(); } }), ` ${label}`);
  return h("section", {}, h("h3", {}, "Weights and what the step did to them"),
    h("div", { className: "choice" }, h("fieldset", {}, h("legend", {}, "Weights "), option(false, "before the step"), option(true, "after it"))),
    layer.parameters.map(parameterPart));
}

// Check, formula, code ----------------------------------------------------------------------------------------------------------

function checkPart(check, what) {
  if (!check) return "";
  const body = check.wrong ? [h("p", { className: "bad" }, check.wrong)] : [
    h("p", {}, h("span", { className: "good" }, "Backward is the derivative of forward"), ": the worst relative error is ",
      num(Math.max(...check.rows.map((r) => r[3]))), ", and ", num(check.rtol), ` is allowed (${check.method}). ${what}`),
    table("Gradient check", ["array", "shape", "checked", "worst error"], check.rows.map(([name, shape, checked, error]) =>
      row([name, shape.length ? shapeOf(shape) : "", String(checked), num(error)]))),
  ];
  return h("section", { className: "check" }, h("h3", {}, "Gradient check"), body);
}
const AT = "Asked of this very layer at what it got here, of the first two pictures, in float64, with random parameters of the size of its own; "
  + "“checked” elements of each array were drawn, and the adjoint test is about all of them at once.";

function tagged(line, from, to, used) {
  return line.split(/(\([A-Z][A-Z0-9]*\.\d+\))/).map((part) => {
    const tag = /^\(([A-Z][A-Z0-9]*\.\d+)\)$/.exec(part);
    if (!tag || !used.has(tag[1])) return part;
    return h("a", { href: `#${to}-${tag[1]}`, "data-tag": `${from}-${tag[1]}`, onclick: (event) => { event.preventDefault(); find(`${to}-${tag[1]}`); } }, part);
  });
}
function find(key) {
  document.querySelectorAll(".found").forEach((e) => e.classList.remove("found"));
  const found = document.querySelectorAll(`[data-tag="${key}"]`);
  found.forEach((e) => e.parentElement.classList.add("found"));
  if (found.length) { found[0].scrollIntoView({ block: "center" }); found[0].focus(); }
}
const tagsIn = (code) => new Set([...code.matchAll(/\(([A-Z][A-Z0-9]*\.\d+)\)/g)].map((m) => m[1]));

const made = new Map(); // elements that are the same at every moment
const once = (key, make) => made.get(key) || made.set(key, make()).get(key);
function textPart(number) {
  const { derivation, code } = D.texts[number];
  const used = tagsIn(code.map(([, lines]) => lines).join("\n")), there = tagsIn(derivation);
  const both = new Set([...used].filter((tag) => there.has(tag)));
  const region = (label, lines) => wide("pre", label, lines);
  const seen = new Set(); // a tag's first line is the equation, others lead to it
  const formula = derivation.split("\n").map((line) => {
    const here = [...tagsIn(line)].some((tag) => both.has(tag) && !seen.has(tag));
    tagsIn(line).forEach((tag) => seen.add(tag));
    return h("span", { className: here ? "used" : "" }, tagged(line, "formula", "code", both), "\n");
  });
  const program = (lines) => lines.split("\n").map((line) => {
    const at = line.indexOf("  # ");
    return h("span", {}, at < 0 ? line : [line.slice(0, at), h("span", { className: "dim" }, tagged(line.slice(at), "code", "formula", both))], "\n");
  });
  return [
    h("section", {}, h("h3", {}, "Formula"), h("p", { className: "soft" }, "The derivation, as it stands in the file. Marked lines are computed by the code below; an equation's number leads to its line."),
      region("Derivation", formula)),
    h("section", {}, h("h3", {}, "Code"), code.map(([title, lines]) => [h("h4", {}, title), region(title, program(lines))])),
  ];
}

// What is shown at a moment ---------------------------------------------------------------------------------------------------

const badge = (on) => (on ? [" ", h("span", { className: "badge" }, "now")] : "");

function layerPanel(layer, phase) {
  const parts = [["x", layer.x], ["y", layer.y], ["dy", layer.dy], ["dx", layer.dx]];
  const sizes = (number) => shapeOf(D.arrays[number].shape);
  const ways = [
    h("section", {}, h("h3", {}, "Forward", badge(phase === "forward")), h("div", { className: "pair" },
      arrayFigure("x", "what came in", layer.x, false), arrayFigure("y", "what went out", layer.y, false))),
    h("section", {}, h("h3", {}, "Backward", badge(phase === "backward")), h("div", { className: "pair" },
      arrayFigure("dy", "∂loss/∂y, which flowed back to it", layer.dy, true), arrayFigure("dx", "∂loss/∂x, which it hands on", layer.dx, true))),
  ];
  return [
    h("h2", {}, layer.name || "The network's own branches", " ", h("span", { className: "soft" }, layer.kind)),
    h("p", {}, layer.says ? [h("code", {}, layer.says), h("br")] : "", `${sizes(layer.x)} → ${sizes(layer.y)} a picture. `, MARKS[layer.step] || ""),
    phase === "backward" ? ways.reverse() : ways, // first what happens now
    channelPart(parts, layer.parameters), layer.step ? "" : weightsPart(layer), checkPart(layer.check, AT), once(layer.text, () => textPart(layer.text)),
  ];
}
const MARKS = {
  open: "Branches begin: x goes to each of them; backward, what comes back from all of them is added.",
  turn: "A branch ends: its result is kept, and x comes back for the next one.",
  close: "Branches end: their results are joined. y is the result; x is what the last branch gave.",
};

function picturePart() {
  const large = pictureCanvas(state.picture);
  large.style.width = large.style.height = "160px";
  large.style.imageRendering = "pixelated";
  large.setAttribute("role", "img");
  large.setAttribute("aria-label", `Picture ${D.numbers[state.picture]}`);
  return large;
}
const labelOf = (k) => D.names[D.labels[k]] || `label ${D.labels[k]}`;

function inputPanel() {
  return [
    h("h2", {}, "The batch"),
    h("p", {}, `${D.batch} ${D.source}. ${D.numbers.length} of them are shown; this is number ${D.numbers[state.picture]}, “${labelOf(state.picture)}”.`),
    picturePart(),
    h("section", {}, h("h3", {}, "What the network gets"), arrayFigure("x", "the picture's three colours, normalised", D.layers[0].x, false)),
    h("section", {}, h("h3", {}, "How to read this page"),
      h("p", {}, h("kbd", {}, "→"), " and ", h("kbd", {}, "←"), " go through the training step: forward through the layers, the loss, backward through the layers, the update. Choose a layer in the column to go to it."),
      h("p", {}, "Every number was computed by the lines that are shown beside it: layer by layer, in training mode, in the functions of each layer's own file. Heat maps have 255 colours between the ends of their scale, of which the middle one is 0 where there are negative numbers; click in one to choose a channel; numbers in the text are exact to the digits shown."),
      h("p", {}, `The update is plain SGD with a learning rate of ${text(D.lr)}: w ← w − lr · ∂loss/∂w.`,
        D.channels < 1e6 ? ` To keep the file small, of arrays with many channels the first ${D.channels} are shown; numbers about the whole batch are of all.` : "")),
  ];
}

function lossPanel() {
  const L = D.loss, k = state.picture;
  const rows = L.p ? D.classes.map((name, c) => ({ name, c })).sort((a, b) => L.p[k][b.c] - L.p[k][a.c])
    .filter(({ c }, place) => place < 20 || c === D.labels[k]) : [];
  return [
    h("h2", {}, "The loss ", h("span", { className: "soft" }, L.kind)),
    h("p", {}, "Of the batch: ", num(L.before), " before the update, ", num(L.after), " after it. Of this picture alone: ", num(L.losses[k]), " before, ", num(L.losses_after[k]), " after."),
    h("div", { className: "choice" }, picturePart()),
    L.p ? table("Probabilities of this picture", ["class", "logit", "probability", "as a bar", "after the update", "logit after"],
      rows.map(({ name, c }) => row([name, num(L.logits[k][c]), percent(L.p[k][c]), h("meter", { min: 0, max: 1, value: L.p[k][c], "aria-label": `${name} before` }),
        percent(L.p_after[k][c]), num(L.logits_after[k][c])], { className: c === D.labels[k] ? "right" : "", "data-class": c }))) : "",
    L.p ? h("p", { className: "soft" }, `The marked row is the right class, “${labelOf(k)}”.`, L.smoothing ? ` Label smoothing ${text(L.smoothing)}.` : "") : "",
    h("section", {}, h("h3", {}, "The gradient that backward starts from"), arrayFigure("dy", "∂loss/∂logits", L.dlogits, true)),
    checkPart(L.check, "Asked of this loss at these logits, of the whole batch, in float64."), once(L.text, () => textPart(L.text)),
  ];
}

function updatePanel() {
  const L = D.loss;
  const changes = Object.entries(D.parameters).map(([name, p]) => ({ name, p, ratio: p.norm ? p.change / p.norm : 0 })).sort((a, b) => b.ratio - a.ratio);
  const most = changes.length ? changes[0].ratio || 1 : 1;
  return [
    h("h2", {}, "The update, and what it changed"),
    h("p", {}, `w ← w − ${text(D.lr)} · ∂loss/∂w. The loss of the batch went from `, num(L.before), " to ", num(L.after), "."),
    h("h3", {}, "The pictures"),
    table("Loss of each picture before and after", ["picture", "loss before", "after", ...(L.p ? ["probability of its class before", "after"] : [])],
      D.numbers.map((number, k) => row([`${number}, ${labelOf(k)}`, num(L.losses[k]), num(L.losses_after[k]),
        ...(L.p ? [percent(L.p[k][D.labels[k]]), percent(L.p_after[k][D.labels[k]])] : [])]))),
    h("h3", {}, "The weights, those that changed most first"),
    once("changes", () => table("Change of each parameter", ["parameter", "|ΔW|/|W|", "as a bar", "|W|", "|dW|/|W|", "channels, most first"],
      changes.map(({ name, p, ratio }) => row([press(`go-${name}`, name, () => goTo(D.layers.findIndex((l) => l.parameters.includes(name)))), percent(ratio),
        h("meter", { min: 0, max: most, value: ratio, "aria-label": name }), num(p.norm), p.norm ? num(p.gradient / p.norm) : "–",
        h("span", { className: "wraps" }, p.top.slice(0, 3).map(([c, r]) => `${c}\u00a0(${text(+(100 * r).toPrecision(3))}\u00a0%)`).join(", "))], { "data-name": name })))),
  ];
}

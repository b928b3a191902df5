// Moments ---------------------------------------------------------------------------------------------------------------------

function sentence({ phase, k }) {
  const at = `${state.moment + 1} of ${MOMENTS.length}: `;
  if (phase === "input") return `${at}the batch`;
  if (phase === "loss") return `${at}the loss, ${text(D.loss.before)}`;
  if (phase === "update") return `${at}the update; the loss is now ${text(D.loss.after)}`;
  const layer = D.layers[k], array = D.arrays[phase === "forward" ? layer.y : layer.dx];
  return `${at}${phase}, ${layer.name} ${layer.kind}, ${phase === "forward" ? "y" : "dx"} of rms ${text(array.rms)}`;
}

let drawn = Promise.resolve(), turn = 0;
function show() {
  const moment = MOMENTS[state.moment], panel = $("panel"), focus = panel.contains(document.activeElement) ? document.activeElement : null;
  const key = focus && focus.dataset.key, mine = ++turn;
  drawings.length = 0;
  panel.setAttribute("aria-busy", "true");
  panel.replaceChildren(...[{ input: inputPanel, loss: lossPanel, update: updatePanel }[moment.phase] || (() => layerPanel(D.layers[moment.k], moment.phase))]
    .map((make) => make()).flat(9).filter((part) => part !== ""));
  const said = sentence(moment);
  if ($("now").textContent !== said) $("now").textContent = said;
  $("moment").value = state.moment;
  $("moment").setAttribute("aria-valuetext", said);
  $("back").disabled = $("first").disabled = !state.moment;
  $("on").disabled = $("last").disabled = state.moment === MOMENTS.length - 1;
  markColumn(moment);
  if (focus) (key && panel.querySelector(`[data-key="${CSS.escape(key)}"]`) || panel).focus({ preventScroll: true });
  drawn = draw(mine);
}
async function draw(mine) {
  const rooms = drawings.map(({ box }) => box && (box.clientWidth || 300)); // all before the first is drawn: each would be laid out anew
  await Promise.all(drawings.map(({ draw }, k) => draw(rooms[k])));
  if (mine !== turn) return;
  letScroll();
  $("panel").setAttribute("aria-busy", "false");
}
function letScroll() { // what is wider than its place is a region that the keyboard can scroll
  const all = [...$("panel").querySelectorAll(".scroll")].map((e) => [e, e.scrollWidth > e.clientWidth]);
  for (const [element, is] of all) {
    for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", element.dataset.label]]) {
      is ? element.setAttribute(name, value) : element.removeAttribute(name);
    }
  }
}
function choose(channel) { state.channel = channel; show(); }
function go(moment) {
  const before = state.moment;
  state.moment = Math.max(0, Math.min(MOMENTS.length - 1, moment));
  if (state.moment === before) return;
  const { k } = MOMENTS[state.moment];
  try { history.replaceState(null, "", k === undefined ? "#" : `#${D.layers[k].name}`); } catch { /* where a frame forbids it */ }
  show();
}
function goTo(k) {
  const back = MOMENTS[state.moment].phase === "backward";
  go(back ? N + 2 + (N - 1 - k) : k + 1);
  scrollTo({ top: Math.min(scrollY, document.querySelector(".body").offsetTop - document.querySelector(".time").offsetHeight), behavior: "instant" });
}

// The column ------------------------------------------------------------------------------------------------------------------

const buttons = new Map();
function columnRow(k, block) {
  const layer = D.layers[k], name = block && layer.name.startsWith(`${block}.`) ? layer.name.slice(block.length + 1) : layer.name;
  const button = h("button", { type: "button", onclick: () => goTo(k) }, h("span", {}, name || "network", " ", h("span", { className: "soft" }, layer.kind)),
    h("span", { className: "soft" }, shapeOf(D.arrays[layer.y].shape)));
  buttons.set(k, button);
  return h("li", {}, button);
}
function extra(label, at) {
  const button = h("button", { type: "button", onclick: () => go(at) }, label);
  buttons.set(label, button);
  return h("li", {}, button);
}
function makeColumn() {
  const parts = [h("div", { className: "key" }, h("span", {}, "forward done"), h("span", { className: "b" }, "backward done"))];
  let list = h("ol", {}, extra("the batch", 0));
  parts.push(list);
  for (const item of D.column) {
    if (item.heading) {
      list = h("ol");
      parts.push(h("h3", {}, item.heading), list);
    } else if (item.block === null) list.append(...item.layers.map((k) => columnRow(k, "")));
    else list.append(h("li", {}, h("details", { "data-block": item.block }, h("summary", {}, item.block, " ", h("span", { className: "soft" }, item.kind === "Sequential" ? "" : item.kind)),
      h("ol", {}, item.layers.map((k) => columnRow(k, item.block))))));
  }
  list = h("ol", {}, extra("the loss", N + 1), extra("the update", MOMENTS.length - 1));
  parts.push(list);
  $("column").replaceChildren(...parts);
}
function markColumn({ phase, k }) {
  const done = { input: [0, N], loss: [N, N], update: [N, 0] }[phase] || (phase === "forward" ? [k + 1, N] : [N, k]);
  D.column.filter((item) => item.block).forEach(({ block, layers }) => {
    const around = document.querySelector(`[data-block="${CSS.escape(block)}"]`);
    around.classList.toggle("ahead", layers[layers.length - 1] < done[0]);
    around.classList.toggle("behind", layers[0] >= done[1]);
  });
  for (const [key, button] of buttons) {
    const current = key === k || (key === { input: "the batch", loss: "the loss", update: "the update" }[phase]);
    current ? button.setAttribute("aria-current", "step") : button.removeAttribute("aria-current");
    if (typeof key === "number") { button.classList.toggle("ahead", key < done[0]); button.classList.toggle("behind", key >= done[1]); }
    else if (key === "the batch") button.classList.add("ahead");
    if (current) {
      document.querySelectorAll("details.holds").forEach((e) => { if (!e.contains(button)) { e.classList.remove("holds"); if (e.dataset.opened) { e.open = false; delete e.dataset.opened; } } });
      const around = button.closest("details");
      if (around) { around.classList.add("holds"); if (!around.open) { around.open = true; around.dataset.opened = "1"; } }
      const nav = document.querySelector("nav"), [a, b] = [button.getBoundingClientRect(), nav.getBoundingClientRect()];
      if (a.top < b.top + 40 || a.bottom > b.bottom - 40) nav.scrollTop += a.top - b.top - b.height / 2;
    }
  }
}

// Pictures, keys, start ---------------------------------------------------------------------------------------------------------

let pixels = null;
function pictureCanvas(k) {
  const canvas = h("canvas", { width: D.side, height: D.side });
  const paint = async () => {
    pixels ||= (await unpack(D.pictures, 0)).levels;
    const image = canvas.getContext("2d").createImageData(D.side, D.side);
    for (let p = 0, at = k * D.side * D.side * 3; p < D.side * D.side; p++) {
      for (let c = 0; c < 3; c++) image.data[4 * p + c] = pixels[at++];
      image.data[4 * p + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  };
  paint();
  return canvas;
}
function makePictures() {
  $("pictures").append(...D.numbers.map((number, k) => {
    const canvas = pictureCanvas(k);
    canvas.setAttribute("aria-hidden", "true");
    const input = h("input", { type: "radio", name: "picture", checked: k === 0, "aria-label": `Picture ${number}, ${labelOf(k)}`, onchange: () => { state.picture = k; show(); } });
    return h("label", { title: `Picture ${number}, ${labelOf(k)}` }, input, canvas);
  }));
}
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest?.("input, [role=region]")) return;
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  go(state.moment + by);
});
function start() {
  $("about").textContent = `${D.title}. ${D.batch} ${D.source}.`;
  $("notes").append(...D.notes.map((note) => h("p", { className: "note" }, note)));
  $("moment").max = MOMENTS.length - 1;
  $("moment").oninput = (event) => go(+event.target.value);
  for (const [id, to] of [["first", () => 0], ["back", () => state.moment - 1], ["on", () => state.moment + 1], ["last", () => MOMENTS.length - 1]]) {
    $(id).onclick = () => go(to());
  }
  makePictures();
  makeColumn();
  const named = D.layers.findIndex((layer) => layer.name && location.hash === `#${layer.name}`);
  if (named >= 0) state.moment = named + 1;
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => show(), 120); });
  dark.addEventListener("change", () => show());
  show();
}
if (typeof DecompressionStream === "function") start();
else $("panel").append(h("p", {}, "This page needs a browser that knows DecompressionStream: Chrome 80, Firefox 113 or Safari 16.4, or a later one."));

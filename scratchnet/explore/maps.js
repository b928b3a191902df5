"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const state = { moment: 0, picture: 0, channel: 0, after: false };
const N = D.layers.length;
const MOMENTS = [
  { phase: "input" }, ...D.layers.map((_, k) => ({ phase: "forward", k })), { phase: "loss" },
  ...D.layers.map((_, k) => ({ phase: "backward", k: N - 1 - k })), { phase: "update" },
];
const dark = matchMedia("(prefers-color-scheme: dark)");
const $ = (id) => document.getElementById(id);

// Elements --------------------------------------------------------------------------------------------------------------

function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key in element && key !== "list") element[key] = value;
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}
const UP = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
function text(v) {
  if (v === 0 || (Math.abs(v) >= 1e-3 && Math.abs(v) < 1e6)) return String(+v.toPrecision(4)).replace("-", "−");
  const [digits, power] = v.toExponential(2).split("e");
  return `${digits.replace("-", "−")}×10${[...power.replace("+", "")].map((c) => UP[c]).join("")}`;
}
const num = (v) => h("data", { value: String(v) }, text(v));
const percent = (v) => h("data", { value: String(v) }, `${v && v < 0.001 ? text(100 * v) : +(100 * v).toFixed(2)} %`);
const shapeOf = (shape) => shape.join("×");
const wide = (tag, label, ...children) => h(tag, { className: "scroll", "data-label": label }, ...children); // see `letScroll`
const table = (label, head, body) => wide("div", label, h("table", {}, h("caption", { className: "unseen" }, label),
  h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))), body instanceof Element ? body : h("tbody", {}, body)));
const row = (cells, props) => h("tr", props, cells.map((cell, k) => h(k ? "td" : "th", k ? {} : { scope: "row" }, cell)));
const press = (key, label, action, props) => h("button", { type: "button", "data-key": key, onclick: action, ...props }, label);

// Numbers: base64 of deflate of [float32][bytes] -----------------------------------------------------------------------------

const unpacked = new Map();
function unpack(coded, floats) {
  if (!unpacked.has(coded)) {
    if (unpacked.size > 60) unpacked.delete(unpacked.keys().next().value);
    const bytes = Uint8Array.from(atob(coded), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    unpacked.set(coded, new Response(stream).arrayBuffer());
  }
  return unpacked.get(coded).then((buffer) => ({
    exact: new Float32Array(buffer, 0, floats), levels: new Uint8Array(buffer, 4 * floats),
  }));
}
const sizeOf = (array) => array.shape.slice(1).reduce((a, b) => a * b, 1);
const unpackArray = (array) => unpack(array.data, D.numbers.length * array.kept * 3);

// Colours ---------------------------------------------------------------------------------------------------------------------

const STOPS = {
  light: { signed: ["#174f94", "#76aed6", "#f7f7f7", "#ef9a77", "#a3142a"], plain: ["#ffffff", "#bcd7ec", "#5ba0d0", "#1c64a8", "#08264f"] },
  dark: { signed: ["#a8d4ff", "#3d7fc9", "#1a1b1e", "#cc6527", "#ffc79c"], plain: ["#0d0d12", "#3a2b63", "#9c3a63", "#ee8a4d", "#fff4bd"] },
};
const stopsOf = (signed) => STOPS[dark.matches ? "dark" : "light"][signed ? "signed" : "plain"];
function coloursOf(signed) {
  const stops = stopsOf(signed).map((s) => [1, 3, 5].map((k) => parseInt(s.slice(k, k + 2), 16)));
  const table = new Uint32Array(256);
  const view = new DataView(table.buffer);
  for (let level = 0; level < 256; level++) {
    const at = signed ? Math.max(0, (level - 1) / 254) * 4 : (level / 255) * 4;
    const low = Math.min(3, Math.floor(at));
    stops[low].forEach((v, c) => view.setUint8(4 * level + c, Math.round(v + (at - low) * (stops[low + 1][c] - v))));
    view.setUint8(4 * level + 3, 255);
  }
  return table;
}

// Heat maps: `count` cells of h×w in a grid, one pixel a number, enlarged by CSS ------------------------------------------------

const drawings = []; // of the panel: functions, of the room that their box has
function heatMap({ count, h: high, w: wide, columns, zoom, label, levels, signed, key, choose }) {
  const gap = high * wide > 1 ? 1 : 0;
  const canvas = h("canvas", { role: "img", "aria-label": label });
  const mark = h("span", { className: "here", hidden: true });
  const box = h("div", { className: "map" }, canvas, mark);
  let across = 1, scale = 1;
  const draw = async (room) => {
    const side = Math.min(64, Math.sqrt((room * 480) / count)); // of a cell: the grid is about as high as it is wide
    const wanted = zoom || (gap ? Math.max(0.5, Math.min(16, Math.round((2 * side) / (wide + gap)) / 2)) : count > 64 ? 12 : 22);
    across = Math.max(1, Math.min(count, columns || Math.floor(room / ((wide + gap) * wanted))));
    scale = Math.min(wanted, room / ((wide + gap) * across));
    canvas.width = across * (wide + gap);
    canvas.height = Math.ceil(count / across) * (high + gap);
    canvas.style.width = `${canvas.width * scale}px`;
    canvas.style.imageRendering = scale < 1 ? "auto" : ""; // made smaller, pixels are averaged
    const bytes = await levels();
    const image = canvas.getContext("2d").createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer), colours = coloursOf(signed);
    for (let cell = 0, at = 0; cell < count; cell++) {
      const top = Math.floor(cell / across) * (high + gap), left = (cell % across) * (wide + gap);
      for (let y = 0; y < high; y++) for (let x = 0; x < wide; x++) pixels[(top + y) * canvas.width + left + x] = colours[bytes[at++]];
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    if (key) select();
  };
  const select = () => {
    const on = state.channel < count && !columns;
    mark.hidden = !on;
    if (!on) return;
    mark.style.left = `${(state.channel % across) * (wide + gap) * scale - 1}px`;
    mark.style.top = `${Math.floor(state.channel / across) * (high + gap) * scale - 1}px`;
    mark.style.width = `${wide * scale + 2}px`;
    mark.style.height = `${high * scale + 2}px`;
  };
  if (choose) {
    canvas.onclick = (event) => {
      const cell = Math.floor(event.offsetY / ((high + gap) * scale)) * across + Math.floor(event.offsetX / ((wide + gap) * scale));
      if (cell < count) choose(columns ? Math.floor(cell / columns) : cell);
    };
  }
  drawings.push({ box, draw });
  return box;
}

function legend(signed, scale, largest) {
  const bar = h("i", {});
  bar.style.background = `linear-gradient(to right, ${stopsOf(signed).join(",")})`;
  const beyond = largest > scale * 1.0001 ? h("span", {}, "(beyond that: the same colour)") : "";
  return h("div", { className: "legend" }, h("span", {}, signed ? num(-scale) : "0"), bar, h("span", {}, num(scale)), beyond);
}

function arrayFigure(name, what, number, gradient) {
  const array = D.arrays[number], size = sizeOf(array), [high, wide] = array.shape.length > 1 ? array.shape.slice(1) : [1, 1];
  const all = array.shape[0], some = array.kept < all ? `the first ${array.kept} of ${all} channels` : `${all} channel${all > 1 ? "s" : ""}`;
  const levels = async () => {
    const start = state.picture * array.kept * size;
    return (await unpackArray(array)).levels.subarray(start, start + array.kept * size);
  };
  const label = `${name}, ${what}: ${some} of ${high}×${wide}, from ${text(array.min)} to ${text(array.max)}`;
  const share = array.sixes ? [", 6: ", percent(array.sixes)] : "";
  return h("figure", { className: gradient ? "gradient" : "", "data-array": number },
    h("figcaption", {}, h("b", {}, name), `, ${what}: ${some} of ${high}×${wide}. `,
      h("span", { className: "soft" }, "Whole batch: from ", num(array.min), " to ", num(array.max), ", rms ", num(array.rms),
        ", 0: ", percent(array.zeros), share, ".")),
    heatMap({ count: array.kept, h: high, w: wide, label, levels, signed: array.signed, key: true, choose: choose }),
    legend(array.signed, array.scale, Math.max(-array.min, array.max)));
}

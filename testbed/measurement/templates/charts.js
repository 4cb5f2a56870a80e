/* Small SVG helpers: elements, scales, axes, a tooltip, a legend that toggles, redraw on resize. */
"use strict";
const NS = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2"];

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const color = (series) => `var(--s${series.color % 8})`;
const dash = (series) => DASHES[(series.point + Math.floor(series.color / 8)) % DASHES.length];

function three(value) {
  if (value === null || value === undefined || !isFinite(value)) return "-";
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(+value.toPrecision(3)))));
  return value.toFixed(Math.min(digits, 6));
}
const trim = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
const tick = (value) => trim(three(value));
const msText = (ms) => ms === null || ms === undefined ? "-" : ms >= 1000 ? three(ms / 1000) + " s" : ms >= 1 || ms === 0 ? three(ms) + " ms" : three(ms * 1000) + " µs";
const msTick = (ms) => trim(msText(ms));
const bytesText = (n) => n === null || n === undefined ? "-" : n >= 1e6 ? three(n / 1e6) + " MB" : n >= 1e3 ? three(n / 1e3) + " kB" : Math.round(n) + " B";
const percent = (share) => share === null || share === undefined ? "-" : (share * 100).toFixed(share === 0 || share === 1 ? 0 : 1) + "%";

function niceTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || power;
  const ticks = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) ticks.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return ticks;
}
function logTicks(low, high, room) {
  const all = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of [1, 2, 5]) all.push(m * 10 ** e);
  const inside = all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  return inside.length > room ? inside.filter((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9) : inside;
}
function scale(low, high, from, to, log = false) {
  const f = log ? (v) => Math.log10(Math.max(v, low)) : (v) => v;
  const a = f(low), b = f(high), k = b === a ? 0 : (to - from) / (b - a);
  const map = (v) => from + (f(v) - a) * k;
  map.invert = (p) => { const v = a + (k ? (p - from) / k : 0); return log ? 10 ** v : v; };
  map.low = low; map.high = high; map.log = log;
  map.ticks = (count) => log ? logTicks(low, high, count + 3) : niceTicks(low, high, count);
  return map;
}

/* A figure: holds legend, tools and one SVG; `draw(frame)` is called again whenever the width or the state changes. */
class Figure {
  constructor(host, height, draw) {
    this.host = typeof host === "string" ? document.getElementById(host) : host;
    this.host.classList.add("chart");
    this.tools = this.host.appendChild(el("div", { class: "tools" }));
    this.legend = this.host.appendChild(el("div", { class: "legend" }));
    this.stage = this.host.appendChild(el("div"));
    this.tip = this.host.appendChild(el("div", { class: "tip", role: "status" }));
    this.height = height; this.drawing = draw; this.width = 0;
    this.tools.hidden = true; this.legend.hidden = true;
    new ResizeObserver(() => { if (Math.abs(this.host.clientWidth - this.width) > 1) this.redraw(); }).observe(this.host);
  }
  redraw() {
    this.width = this.host.clientWidth;
    if (!this.width) return;
    const height = typeof this.height === "function" ? this.height(this.width) : this.height;
    this.svg = svg("svg", { viewBox: `0 0 ${this.width} ${height}`, height, role: "img" });
    this.stage.replaceChildren(this.svg);
    this.hide();
    this.drawing(this, this.svg, this.width, height);
  }
  show(event, title, rows) {
    this.tip.replaceChildren(el("b", {}, title), ...rows.map((row) => {
      const name = el("span", {});
      if (row.color) name.append(el("i", { style: `background:${row.color}` }));
      name.append(row.name);
      return el("div", { class: row.low ? "low" : "" }, name, el("span", {}, row.value));
    }));
    const box = this.host.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const w = this.tip.offsetWidth, h = this.tip.offsetHeight;
    this.tip.style.left = Math.max(0, x + 16 + w > box.width ? x - w - 14 : x + 16) + "px";
    this.tip.style.top = Math.max(0, Math.min(y - h / 2, box.height - h)) + "px";
    this.tip.style.opacity = 1;
  }
  hide() { this.tip.style.opacity = 0; }
  /* Legend entries {label, swatch, on, toggle}; a click toggles, a double click shows that one alone. */
  setLegend(entries) {
    this.legend.hidden = !entries.length;
    this.legend.replaceChildren(...entries.map((entry) => el("button", {
      type: "button", "aria-pressed": String(entry.on), title: "click: hide or show",
      onclick: () => { entry.toggle(); },
    }, entry.swatch, entry.label)));
  }
  addTool(...nodes) { this.tools.hidden = false; this.tools.append(...nodes); }
}
const lineSwatch = (stroke, pattern = "") => svg("svg", { viewBox: "0 0 22 10" }, svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, style: `stroke:${stroke}`, "stroke-width": 3, "stroke-dasharray": pattern }));
const boxSwatch = (fill) => svg("svg", { viewBox: "0 0 22 10" }, svg("rect", { x: 4, y: 0, width: 14, height: 10, rx: 2, style: `fill:${fill}` }));

function axisX(target, s, y, { label = "", format = tick, count = 6, top = null } = {}) {
  const ticks = s.ticks(count), first = s(s.low), last = s(s.high);
  for (const v of ticks) {
    const x = s(v);
    if (top !== null) target.append(svg("line", { class: "gridline", x1: x, x2: x, y1: top, y2: y }));
    target.append(svg("text", { x, y: y + 17, "text-anchor": x > last - 14 ? "end" : x < first + 6 ? "start" : "middle" }, format(v)));
  }
  target.append(svg("line", { class: "axis", x1: first, x2: last, y1: y, y2: y }));
  if (label) target.append(svg("text", { x: last, y: y + 34, "text-anchor": "end" }, label));
}
function axisY(target, s, x0, x1, { label = "", format = tick, count = 5 } = {}) {
  for (const v of s.ticks(count)) {
    const y = s(v);
    target.append(svg("line", { class: "gridline", x1: x0, x2: x1, y1: y, y2: y }));
    target.append(svg("text", { x: x0 - 8, y: y + 4, "text-anchor": "end" }, format(v)));
  }
  if (label) target.append(svg("text", { x: 0, y: s(s.high) - 10 }, label));
}
/* Give each label {x, w, cx, cy} the first height near its dot at which it covers neither a label nor a dot. */
function place(labels, top, bottom) {
  const taken = labels.map((l) => ({ x: l.cx - 8, w: 16, y: l.cy, h: 16 }));
  const free = (l, y) => taken.every((b) => l.x + l.w < b.x || b.x + b.w < l.x || Math.abs(b.y - y) >= (b.h + 15) / 2);
  for (const l of [...labels].sort((a, b) => b.cx - a.cx)) {
    const offsets = [-13, 15];
    for (let k = 1; k < 14; k++) offsets.push(-13 - 16 * k, 15 + 16 * k);
    const found = offsets.find((o) => l.cy + o > top && l.cy + o < bottom && free(l, l.cy + o));
    l.y = l.cy + (found === undefined ? -13 : found);
    taken.push({ x: l.x, w: l.w, y: l.y, h: 15 });
  }
}

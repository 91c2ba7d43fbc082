"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

// --- turntables: all turn together until one is touched; only those in sight are drawn

const tables = [...document.querySelectorAll(".turntable")].map((element) => {
  const { frames, columns, rows } = Object.fromEntries(Object.entries(element.dataset).map(([k, v]) => [k, Number(v)]));
  return { element, frames, columns, rows, frame: element.querySelector(".frame"), slider: element.querySelector("input"), at: 0, held: false, seen: false };
});

function show(table, position) {
  table.at = ((position % table.frames) + table.frames) % table.frames;
  const index = Math.floor(table.at);
  const place = (cell, count) => (count > 1 ? (100 * cell) / (count - 1) : 0);
  const column = index % table.columns, row = Math.floor(index / table.columns);
  table.frame.style.backgroundPosition = `${place(column, table.columns)}% ${place(row, table.rows)}%`;
  table.slider.value = index;
}

for (const table of tables) {
  let start = null;
  table.element.addEventListener("pointerdown", (event) => {
    table.held = true;
    if (event.target === table.slider) return;
    start = { x: event.clientX, at: table.at };
    table.element.setPointerCapture(event.pointerId);
  });
  table.element.addEventListener("pointermove", (event) => {
    if (start) show(table, start.at - ((event.clientX - start.x) / table.element.clientWidth) * table.frames);
  });
  table.element.addEventListener("pointerup", () => { start = null; });
  table.element.addEventListener("pointercancel", () => { start = null; });
  table.element.addEventListener("pointerleave", () => { if (!start) table.held = false; });
  table.slider.addEventListener("input", () => { table.held = true; show(table, Number(table.slider.value)); });
  show(table, 0);
}

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) tables.find((table) => table.element === entry.target).seen = entry.isIntersecting;
});
tables.forEach((table) => sight.observe(table.element));

let spinning = !matchMedia("(prefers-reduced-motion: reduce)").matches, before = null;
function turn(now) {
  const seconds = before === null ? 0 : Math.min((now - before) / 1000, 0.1);
  before = now;
  for (const table of tables) if (spinning && table.seen && !table.held) show(table, table.at + (seconds * table.frames) / 5);
  requestAnimationFrame(turn);
}
const spin = document.getElementById("spin");
if (spin) {
  const label = () => { spin.textContent = spinning ? "❚❚" : "▶"; };
  spin.addEventListener("click", () => { spinning = !spinning; label(); });
  label();
  requestAnimationFrame(turn);
}

// --- charts

const scales = ["automatic", "linear", "logarithmic"];
let scale = 0;

function make(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.appendChild(element);
  return element;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size && size < 1e-3 ? value.toExponential(1) : `${+value.toPrecision(4)}`;
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) ticks.push(factor * 10 ** power);
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 7 ? inside.filter((tick) => Math.abs(Math.log10(tick) % 1) < 1e-6) : inside;
}

function valueAxis(values) {
  let low = Math.min(...values), high = Math.max(...values);
  const logarithmic = low > 0 && (scale === 2 || (scale === 0 && high / low > 15));
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const forward = logarithmic ? Math.log : (value) => value;
  const margin = (forward(high) - forward(low)) * 0.06;
  const ends = [forward(low) - margin, forward(high) + margin];
  const back = logarithmic ? ends.map(Math.exp) : ends;
  return { ticks: logarithmic ? logTicks(...back) : niceTicks(...back, 4), place: (value) => (forward(value) - ends[0]) / (ends[1] - ends[0]) };
}

// A moving average; its window shrinks at the steep beginning and is cut off at the flat end.
function smoothed(points) {
  const reach = Math.ceil(points.length / 40);
  return points.map(([step], index) => {
    const near = points.slice(index - Math.min(reach, index), index + Math.min(reach, index) + 1);
    return [step, near.reduce((sum, point) => sum + point[1], 0) / near.length];
  });
}

function draw(figure, chart) {
  const plot = figure.querySelector(".plot"), width = plot.clientWidth, height = plot.clientHeight;
  if (!width) return;
  plot.replaceChildren();
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.title }, plot);
  const left = 46, right = width - 10, top = 14, bottom = height - 24;
  const all = chart.series.flatMap((series) => series.points);
  const lastStep = Math.max(1, ...data.charts.flatMap((other) => other.series.map((series) => series.points.at(-1)[0])));
  const axis = valueAxis(all.map(([, value]) => value));
  const x = (step) => left + ((right - left) * step) / lastStep;
  const y = (value) => bottom - (bottom - top) * axis.place(value);
  for (const tick of axis.ticks) {
    make("line", { class: "gridline", x1: left, x2: right, y1: y(tick), y2: y(tick) }, svg);
    make("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, svg, short(tick));
  }
  for (const tick of niceTicks(0, lastStep, width > 500 ? 8 : 4)) make("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, svg, short(tick));
  for (const step of data.resumes) {
    const line = make("line", { class: "resume", x1: x(step), x2: x(step), y1: top - 6, y2: bottom }, svg);
    make("title", {}, line, `continued at step ${step}`);
    if (chart.large) make("text", { x: x(step) + 5, y: top + 2 }, svg, "continued");
  }
  for (const series of chart.series) {
    const path = (points) => points.map(([step, value], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const noisy = series.kind === "training" && series.points.length > 30;
    if (noisy) make("path", { class: `raw ${series.kind}`, d: path(series.points) }, svg);
    make("path", { class: series.kind, d: path(noisy ? smoothed(series.points) : series.points) }, svg);
    if (series.points.length === 1) make("circle", { class: series.kind, cx: x(series.points[0][0]), cy: y(series.points[0][1]), r: 3 }, svg);
  }
  hover(plot, svg, chart, { x, y, left, right, top, bottom, lastStep });
}

function hover(plot, svg, chart, at) {
  const cursor = make("g", { visibility: "hidden" }, svg);
  const line = make("line", { class: "gridline", y1: at.top, y2: at.bottom }, cursor);
  const dots = chart.series.map((series) => make("circle", { class: series.kind, r: 3.5 }, cursor));
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  plot.appendChild(tip);
  plot.onpointermove = (event) => {
    const position = event.clientX - plot.getBoundingClientRect().left;
    const step = (Math.max(0, Math.min(1, (position - at.left) / (at.right - at.left)))) * at.lastStep;
    const nearest = chart.series.map((series) => series.points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best)));
    line.setAttribute("x1", at.x(nearest[0][0]));
    line.setAttribute("x2", at.x(nearest[0][0]));
    nearest.forEach(([found, value], index) => { dots[index].setAttribute("cx", at.x(found)); dots[index].setAttribute("cy", at.y(value)); });
    tip.replaceChildren(`step ${nearest[0][0].toLocaleString("en")}`, ...chart.series.flatMap((series, index) => [document.createElement("br"), `${chart.series.length > 1 ? series.name + " " : ""}${short(nearest[index][1])}`]));
    tip.hidden = false;
    const middle = at.x(nearest[0][0]) > (at.left + at.right) / 2;
    tip.style.left = middle ? "" : `${at.x(nearest[0][0]) + 12}px`;
    tip.style.right = middle ? `${plot.clientWidth - at.x(nearest[0][0]) + 12}px` : "";
    cursor.setAttribute("visibility", "visible");
  };
  plot.onpointerleave = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
}

const figures = [...document.querySelectorAll(".chart")];
figures.forEach((figure, index) => {
  const legend = figure.querySelector(".legend"), series = data.charts[index].series;
  for (const { name, kind, points } of series) {
    const entry = document.createElement("span"), mark = document.createElement("i");
    mark.className = kind;
    if (kind === "baseline") mark.style.borderTopStyle = "dashed";
    entry.append(...(series.length > 1 || kind === "validation" ? [mark, `${name} `] : []), short(+points.at(-1)[1].toPrecision(3)));
    legend.appendChild(entry);
  }
  new ResizeObserver(() => draw(figure, data.charts[index])).observe(figure.querySelector(".plot"));
});
const button = document.getElementById("scale");
if (button) button.addEventListener("click", () => {
  scale = (scale + 1) % scales.length;
  button.textContent = `scale: ${scales[scale]}`;
  figures.forEach((figure, index) => draw(figure, data.charts[index]));
});

// --- large pictures, light and dark

const zoom = document.getElementById("zoom");
document.querySelectorAll(".reel img").forEach((image) => image.addEventListener("click", () => {
  const large = zoom.firstElementChild, factor = Math.min((innerWidth * 0.96) / image.naturalWidth, (innerHeight * 0.9) / image.naturalHeight);
  large.src = image.src;
  large.alt = image.alt;
  large.style.width = `${image.naturalWidth * factor}px`;
  zoom.showModal();
}));
zoom.addEventListener("click", () => zoom.close());

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

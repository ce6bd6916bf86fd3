"use strict";
// All is there without this script too; it sorts tables, enlarges pictures, and shows what a point of the map is.
document.documentElement.classList.add("live");

function sortTable(table, column, heading) {
  const body = table.tBodies[0];
  const ascending = heading.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = (row) => {
    const { value } = row.cells[column].dataset; // numbers have one, names do not
    const number = Number.parseFloat(value);
    return Number.isNaN(number) ? (value ?? row.cells[column].textContent.trim()) : number;
  };
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // what has no number stays last
    const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
    return ascending ? order : -order;
  };
  body.append(...[...body.rows].sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button")?.addEventListener("click", () => sortTable(table, column, heading));
  });
}

const viewer = document.getElementById("viewer");
const all = [...document.querySelectorAll("figure.picture")];
let pictures = all; // those of the chosen class
let shown = 0;

function show(index) {
  shown = (index + pictures.length) % pictures.length;
  const figure = pictures[shown];
  viewer.querySelector(".enlarged").replaceChildren(
    ...[...figure.querySelectorAll("img")].map((image) => {
      const panel = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = image.alt;
      const copy = image.cloneNode();
      copy.loading = "eager";
      panel.append(copy, caption);
      return panel;
    }),
  );
  viewer.querySelector(".told").textContent = figure.querySelector("figcaption").innerText;
  viewer.querySelector(".position").textContent = `${shown + 1} of ${pictures.length}`;
}

for (const figure of all) {
  figure.querySelector("button").addEventListener("click", () => {
    show(pictures.indexOf(figure));
    viewer.showModal();
  });
}

function choose(button, buttons) {
  for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
  const { label } = button.dataset;
  for (const figure of all) figure.hidden = label !== undefined && figure.dataset.label !== label;
  pictures = all.filter((figure) => !figure.hidden);
  for (const group of document.querySelectorAll(".outcome")) group.hidden = !group.querySelector("figure:not([hidden])");
}

const choices = [...document.querySelectorAll(".filter button")];
for (const button of choices) button.addEventListener("click", () => choose(button, choices));

viewer?.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(shown + 1);
  if (event.key === "ArrowLeft") show(shown - 1);
});
viewer?.querySelector(".next").addEventListener("click", () => show(shown + 1));
viewer?.querySelector(".previous").addEventListener("click", () => show(shown - 1));
viewer?.querySelector(".close").addEventListener("click", () => viewer.close());
viewer?.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = {
  train: "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
  val: "M0-4.2 4 3.2h-8z",
  test: "M-3.3-3.3h6.6v6.6h-6.6z",
  none: "M-3-3 3 3M3-3-3 3",
};
const TOLD = { train: "training", val: "validation", test: "test", none: "in no split" };
const REACH = 14; // of the pointer, in units of the view box
const ATLAS_COLUMNS = 40;

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function shape(split, colour) {
  const filled = split === "test";
  const fill = { fill: colour, "fill-opacity": filled ? "0.85" : "0" };
  return element("path", { d: SHAPES[split] ?? SHAPES.none, stroke: colour, ...fill });
}

function drawMap(points, name, places, tip) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = name;
  const label = `Map of the images, ${name}; arrow keys visit them`;
  const svg = element("svg", { viewBox: "0 0 500 500", tabindex: "0", role: "application", "aria-label": label });
  const spots = places.map(([x, y]) => [12 + 476 * x, 488 - 476 * y]);
  const marks = spots.map(([x, y], index) => {
    const mark = shape(points.splits[index], points.colours[points.labels[index]]);
    mark.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    return mark;
  });
  svg.append(...marks);
  let at = -1;
  const leave = () => {
    marks[at]?.classList.remove("at");
    tip.hidden = true;
  };
  const visit = (index) => {
    leave();
    at = index;
    marks[at].classList.add("at");
    tell(points, at, tip, marks[at].getBoundingClientRect());
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * 500, ((event.clientY - box.top) / box.height) * 500];
    const far = spots.map(([px, py]) => Math.hypot(px - x, py - y));
    const nearest = far.reduce((best, distance, index) => (distance < far[best] ? index : best), 0);
    if (far[nearest] > REACH) leave();
    else if (nearest !== at || tip.hidden) visit(nearest);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") leave();
    if (!step) return;
    event.preventDefault(); // the page would scroll
    visit(at < 0 && step < 0 ? marks.length - 1 : (at + step + marks.length) % marks.length);
  });
  figure.append(caption, svg);
  return figure;
}

function paint(points, index, canvas) {
  const { side } = points;
  const [left, top] = [(index % ATLAS_COLUMNS) * side, Math.floor(index / ATLAS_COLUMNS) * side];
  const atlas = document.getElementById("atlas");
  canvas.getContext("2d").drawImage(atlas, left, top, side, side, 0, 0, canvas.width, canvas.height);
}

function tell(points, index, tip, box) {
  paint(points, index, tip.querySelector("canvas"));
  const split = TOLD[points.splits[index]] ?? points.splits[index];
  tip.querySelector("span").textContent = `${points.images[index]}\n${points.names[points.labels[index]]}\n${split}`;
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(box.right + 8, window.innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(0, Math.min(box.top, window.innerHeight - tip.offsetHeight - 8))}px`;
}

function legendEntry(split, colour, text) {
  const entry = document.createElement("span");
  const swatch = element("svg", { viewBox: "-6 -6 12 12", "aria-hidden": "true" });
  const name = document.createElement("bdi");
  swatch.append(shape(split, colour));
  name.textContent = text;
  entry.append(swatch, name);
  return entry;
}

const stored = document.getElementById("points");
if (stored) {
  const points = JSON.parse(stored.textContent);
  const interactive = document.getElementById("interactive");
  const tip = interactive.querySelector(".tip");
  const maps = Object.entries(points.views).map(([name, places]) => drawMap(points, name, places, tip));
  const splits = Object.keys(TOLD).filter((split) => points.splits.includes(split));
  interactive.querySelector(".maps").append(...maps);
  interactive.querySelector(".legend").append(
    ...points.names.map((name, index) => legendEntry("test", points.colours[index], name)),
    ...splits.map((split) => legendEntry(split, "currentcolor", TOLD[split])),
  );
  interactive.hidden = false;
  document.getElementById("atlas").decode().then(() => {
    for (const heading of document.querySelectorAll(".pictured tbody th")) {
      const index = points.images.indexOf(heading.textContent);
      if (index < 0) continue;
      const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
      paint(points, index, canvas);
      heading.prepend(canvas);
    }
  });
}

window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});

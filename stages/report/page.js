"use strict";
// Everything works without this script too; it sorts tables, and enlarges pictures.

function sortTable(table, column, heading) {
  const body = table.tBodies[0];
  const ascending = heading.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = (row) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const number = Number.parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // what has no value stays last
    const order = typeof x === "number" ? x - y : x.localeCompare(y);
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
const pictures = [...document.querySelectorAll("figure.picture")];
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

pictures.forEach((figure, index) => {
  figure.querySelector("button").addEventListener("click", () => {
    show(index);
    viewer.showModal();
  });
});

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

function drawMap(points, name, places, tip) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = name;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 500 500");
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-label", `Map of the images, ${name}; arrow keys visit them`);
  const marks = places.map(([x, y], index) => {
    const colour = points.colours[points.labels[index]];
    const test = points.splits[index] === "test";
    const mark = document.createElementNS(SVG, test ? "rect" : "circle");
    const [cx, cy] = [12 + 476 * x, 488 - 476 * y];
    const place = test ? { x: cx - 3.5, y: cy - 3.5, width: 7, height: 7 } : { cx, cy, r: 3.5 };
    for (const [key, value] of Object.entries(place)) mark.setAttribute(key, value);
    mark.setAttribute("fill", test ? colour : "#fff");
    mark.setAttribute("fill-opacity", test ? "0.85" : "0.4");
    mark.setAttribute("stroke", colour);
    mark.addEventListener("pointerenter", () => visit(index));
    mark.addEventListener("pointerleave", () => leave());
    svg.append(mark);
    return mark;
  });
  let at = -1;
  const leave = () => {
    marks[at]?.classList.remove("at");
    tip.hidden = true;
  };
  const visit = (index) => {
    leave();
    at = index;
    marks[at].classList.add("at");
    const box = marks[at].getBoundingClientRect();
    const side = points.side;
    const atlas = document.getElementById("atlas");
    const [column, row] = [index % 40, Math.floor(index / 40)];
    tip.querySelector("canvas").getContext("2d").drawImage(atlas, column * side, row * side, side, side, 0, 0, 128, 128);
    tip.querySelector("span").textContent = `${points.images[index]}\n${points.names[points.labels[index]]}\n${points.splits[index]}`;
    tip.hidden = false;
    tip.style.left = `${Math.max(0, Math.min(box.right + 8, window.innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(0, Math.min(box.top, window.innerHeight - tip.offsetHeight - 8))}px`;
  };
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) visit((at + step + marks.length) % marks.length);
    if (event.key === "Escape") leave();
  });
  svg.addEventListener("blur", leave);
  figure.append(caption, svg);
  return figure;
}

const stored = document.getElementById("points");
if (stored) {
  const points = JSON.parse(stored.textContent);
  const interactive = document.getElementById("interactive");
  const tip = interactive.querySelector(".tip");
  const maps = Object.entries(points.views).map(([name, places]) => drawMap(points, name, places, tip));
  interactive.querySelector(".maps").append(...maps);
  interactive.querySelector(".legend").append(
    ...points.names.map((name, index) => {
      const entry = document.createElement("span");
      entry.textContent = `● ${name}`;
      entry.style.color = points.colours[index];
      return entry;
    }),
  );
  interactive.hidden = false;
  document.getElementById("printed-map").style.display = "none";
}

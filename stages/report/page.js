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

// Draws the box of the unit that a person points at, or comes to by key, or the map of its effect, on the image of the page.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";

  function add(stage, kind, attributes) {
    const rectangle = document.createElementNS(SVG, "rect");
    for (const [name, value] of Object.entries({ class: kind, ...attributes })) rectangle.setAttribute(name, value);
    stage.append(rectangle);
  }

  // A map is rows, columns, and a number from -99 to 99 for each cell; `input` is the part of the image that it covers.
  function drawMap(stage, map, input) {
    const [rows, columns, ...values] = map.split(" ").map(Number);
    const [left, top, width, height] = input.split(" ").map(Number);
    values.forEach((value, cell) => {
      if (!value) return;
      const x = left + ((cell % columns) * width) / columns;
      const y = top + (Math.floor(cell / columns) * height) / rows;
      const attributes = { x, y, width: width / columns, height: height / rows, opacity: 0.75 * Math.abs(value / 99) };
      add(stage, value > 0 ? "raises" : "lowers", attributes);
    });
  }

  function draw(event) {
    const element = event.target.closest?.("[data-box], [data-map]");
    const stage = document.getElementById("stage");
    if (!element || !stage) return;
    stage.querySelectorAll("rect").forEach((rectangle) => rectangle.remove());
    if (element.dataset.map) {
      drawMap(stage, element.dataset.map, element.dataset.input);
      return;
    }
    const [x, y, width, height] = element.dataset.box.split(" ");
    for (const kind of ["halo", "patch-box"]) add(stage, kind, { x, y, width, height });
  }

  // On touch, the first tap shows the box, or the map, and the second one follows the link.
  let shown = null;
  function showFirst(event) {
    const link = event.target.closest?.("a[data-box], a[data-map]");
    const isTouch = event.pointerType === "touch";
    if (isTouch && link && link !== shown) event.preventDefault();
    shown = link;
    if (isTouch) draw(event);
  }

  document.addEventListener("click", showFirst);
  document.addEventListener("pointerover", draw);
  document.addEventListener("focusin", draw);
}

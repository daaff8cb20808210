// Draws the box of the unit that a person points at, or comes to by key, on the image of the page.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";

  function draw(event) {
    const element = event.target.closest?.("[data-box]");
    const stage = document.getElementById("stage");
    if (!element || !stage) return;
    stage.querySelectorAll("rect").forEach((rectangle) => rectangle.remove());
    const [x, y, width, height] = element.dataset.box.split(" ");
    for (const kind of ["halo", "patch-box"]) {
      const rectangle = document.createElementNS(SVG, "rect");
      for (const [name, value] of Object.entries({ class: kind, x, y, width, height })) rectangle.setAttribute(name, value);
      stage.append(rectangle);
    }
  }

  document.addEventListener("pointerover", draw);
  document.addEventListener("focusin", draw);
}

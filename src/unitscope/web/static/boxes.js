// Draws the box of what a person points at, or comes to by key, on the image of the page.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";

  function clear(stage) {
    stage.querySelectorAll("rect").forEach((rect) => rect.remove());
  }

  function draw(event) {
    const held = event.target.closest?.("[data-boxes]");
    const stage = document.getElementById("stage");
    if (!held || !stage) return;
    clear(stage);
    const [x, y, width, height] = held.dataset.boxes.split(" ");
    for (const name of ["halo", "field"]) {
      const rect = document.createElementNS(SVG, "rect");
      rect.setAttribute("class", name);
      for (const [side, length] of Object.entries({ x, y, width, height })) rect.setAttribute(side, length);
      stage.append(rect);
    }
  }

  document.addEventListener("pointerover", draw);
  document.addEventListener("focusin", draw);
}

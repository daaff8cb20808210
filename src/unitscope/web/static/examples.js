// The unit page: the source image of the patch that a person points at, with its boxes, value, key and label.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.documentElement.dataset.root;
  const place = document.getElementById("source");

  function element(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function box(text, kind) {
    const [x, y, width, height] = text.split(" ");
    return element("rect", { class: kind, x, y, width, height });
  }

  function line(parts) {
    const paragraph = document.createElement("p");
    paragraph.append(...parts);
    return paragraph;
  }

  function show(button) {
    const { image, size, key, field } = button.dataset;
    const [width, height] = size.split(" ");
    const example = button.closest(".example");
    const drawn = button.querySelector(".patch").getAttribute("viewBox");
    const whole = element("svg", { viewBox: `0 0 ${size}`, role: "img", class: "whole", width, height });
    whole.setAttribute("aria-label", `Image ${key} with the field of the cell`);
    whole.append(element("image", { href: `${root}images/${image}.jpg`, width, height, preserveAspectRatio: "none" }));
    if (field) whole.append(box(field, "wide"));
    whole.append(box(drawn, "halo"), box(drawn, "field"));
    const link = document.createElement("a");
    link.href = `${root}images/${image}.html`;
    link.textContent = key;
    const value = document.createElement("b");
    value.textContent = example.querySelector(".v").textContent;
    const label = example.querySelector("figcaption a")?.textContent;
    place.replaceChildren(whole, line(["Value ", value, label ? ` in ${label}, ` : " in ", link]));
    document.querySelectorAll(".example[data-chosen]").forEach((one) => delete one.dataset.chosen);
    example.dataset.chosen = "";
  }

  const buttons = [...document.querySelectorAll("button.show")];
  for (const button of buttons) {
    for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => show(button));
  }
  if (buttons.length) show(buttons[0]);
}

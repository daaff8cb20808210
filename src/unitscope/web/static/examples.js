// The unit page: the source image of the patch that a person points at, with its boxes, value, key and label.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.documentElement.dataset.root;

  function svgElement(name, attributes) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  function rectangle(coordinates, kind) {
    const [x, y, width, height] = coordinates.split(" ");
    return svgElement("rect", { class: kind, x, y, width, height });
  }

  function paragraph(parts) {
    const element = document.createElement("p");
    element.append(...parts);
    return element;
  }

  function sourceImage(button) {
    const { image, size, key, patch, receptiveField } = button.dataset;
    const [width, height] = size.split(" ");
    const svg = svgElement("svg", { viewBox: `0 0 ${size}`, role: "img", class: "source-image", width, height });
    svg.setAttribute("aria-label", `Image ${key} with the receptive field of the cell`);
    svg.append(svgElement("image", { href: `${root}images/${image}.jpg`, width, height, preserveAspectRatio: "none" }));
    if (receptiveField) svg.append(rectangle(receptiveField, "receptive-field"));
    svg.append(rectangle(patch, "halo"), rectangle(patch, "patch-box"));
    return svg;
  }

  function caption(button, example) {
    const link = document.createElement("a");
    link.href = window.unitscopeAddress(`images/${button.dataset.image}.html`);
    link.textContent = button.dataset.key;
    const value = document.createElement("b");
    value.textContent = example.querySelector(".value").textContent;
    const label = example.querySelector("figcaption a")?.textContent;
    return paragraph(["Value ", value, label ? ` in ${label}, ` : " in ", link]);
  }

  function show(button) {
    const example = button.closest(".example");
    document.getElementById("source").replaceChildren(sourceImage(button), caption(button, example));
    document.querySelectorAll(".example[data-chosen]").forEach((chosen) => delete chosen.dataset.chosen);
    example.dataset.chosen = "";
  }

  // Where a person came from a list that was sorted or chosen from, its order goes on here: the address says which, and this tab keeps it.
  function followList() {
    const heading = document.querySelector(".heading[data-unit]");
    const isSite = document.documentElement.dataset.site !== undefined;
    const choice = isSite ? location.hash.split("?")[1] : location.hash.slice(1);
    if (!heading || !choice?.includes("=")) return; // "#main" skips to the content
    const up = heading.querySelector('a[rel="up"]');
    up.setAttribute("href", `${up.getAttribute("href").split("#")[0]}#${choice}`);
    let units;
    try {
      units = JSON.parse(sessionStorage.getItem(`unitscope-list ${heading.dataset.layer} ${choice}`));
    } catch {
      units = null;
    }
    const place = units?.indexOf(Number(heading.dataset.unit)) ?? -1;
    if (place < 0) return;
    const address = location.href.split("#")[0] + (isSite ? location.hash.split("?")[0] : "");
    const steps = [["prev", units[place - 1], "←"], ["next", units[place + 1], "→"]].filter(([, unit]) => unit !== undefined);
    heading.querySelector(".steps").replaceChildren(...steps.map(([relation, unit, arrow]) => {
      const link = document.createElement("a");
      const key = document.createElement("kbd");
      key.textContent = arrow;
      link.rel = relation;
      link.href = isSite ? `${address.replace(/\d+$/, unit)}?${choice}` : `${address.replace(/\d+\.html$/, `${unit}.html`)}#${choice}`;
      link.append(...(relation === "prev" ? [key, ` ${unit}`] : [`${unit} `, key]));
      return link;
    }));
  }

  function start() {
    followList();
    const buttons = [...document.querySelectorAll("button.show")];
    for (const button of buttons) {
      for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => show(button));
    }
    if (buttons.length) show(buttons[0]);
    for (const image of document.querySelectorAll("image[data-href]")) nearby.observe(image.ownerSVGElement);
  }

  // Pictures in drawings, which browsers load at once, are loaded when a person comes near.
  const nearby = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      for (const image of target.querySelectorAll("image[data-href]")) {
        image.setAttribute("href", image.dataset.href);
        image.removeAttribute("data-href");
      }
      nearby.unobserve(target);
    }
  }, { rootMargin: "300px" });

  document.addEventListener("unitscope:part", start);
  start();
}

// The unit page: the source image of the patch that a person points at, with its boxes; what is laid over it; the same large, to zoom into.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";
  const html = document.documentElement;
  const root = html.dataset.root;
  const isSite = html.dataset.site !== undefined;

  function svgElement(name, attributes) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  // ── boxes, written "left top width height" in pixels of the image ──────────────────────────────────────────────────

  const numbers = (text) => text.split(" ").map(Number);

  function rectangle(coordinates, kind) {
    const [x, y, width, height] = coordinates.split(" ");
    return svgElement("rect", { class: kind, x, y, width, height });
  }

  // What patches show on this page: served ones as the server drew them, of an exported site as this browser remembers.
  const patchKind = () => (isSite ? window.unitscopePatches.kind() : html.dataset.patches);

  function squareAround([x, y, width, height]) {
    const side = Math.max(width, height);
    return { x: x + (width - side) / 2, y: y + (height - side) / 2, width: side, height: side };
  }

  // ── what is laid over patches and pictures ─────────────────────────────────────────────────────────────────────────

  const OVERLAY = "unitscope-overlay";
  let overlay = remembered();

  function remembered() {
    try {
      return localStorage.getItem(OVERLAY) ?? "";
    } catch {
      return "";
    }
  }

  function overlayAddress() {
    const select = document.getElementById("overlay");
    return select?.selectedOptions[0]?.dataset.href ?? null;
  }

  // The part of the heat's square that belongs to a patch, as a picture within a picture.
  function heat(button, place) {
    const patches = [...document.querySelectorAll(".patches .show")];
    const index = patches.indexOf(button);
    const side = Number(button.parentElement.parentElement.dataset.columns);
    const address = overlayAddress();
    if (!address || index < 0) return null;
    const cell = svgElement("svg", { ...place, class: "heat", viewBox: `${index % side} ${Math.floor(index / side)} 1 1` });
    cell.append(svgElement("image", { href: address, width: side, height: side }));
    return cell;
  }

  // The heat may have to be computed first, by a network that may have to be loaded.
  function layOver() {
    const status = document.getElementById("overlay-status");
    const address = overlayAddress();
    const draw = () => {
      if (address !== overlayAddress()) return; // a person chose another meanwhile
      status.textContent = address ? "Orange is above zero, blue below; clear is zero, and each patch has its own scale." : "";
      drawHeat();
      const chosen = document.querySelector(".example[data-chosen] .show");
      if (chosen && document.getElementById("source")?.firstChild) show(chosen);
    };
    if (!address) {
      draw();
      return;
    }
    status.textContent = "Working …";
    const picture = new Image();
    picture.onload = draw;
    picture.onerror = () => {
      if (address === overlayAddress()) status.textContent = "It can't be had: its images, or the network, aren't at hand.";
    };
    picture.src = address;
  }

  function drawHeat() {
    for (const button of document.querySelectorAll(".patches .show")) {
      const patch = button.querySelector(".patch");
      patch.querySelector(".heat")?.remove();
      const [x, y, width, height] = numbers(patch.getAttribute("viewBox"));
      const cell = heat(button, squareAround([x, y, width, height]));
      if (cell) patch.append(cell);
    }
  }

  function startOverlay() {
    const select = document.getElementById("overlay");
    if (!select) return;
    select.value = [...select.options].some((option) => option.value === overlay && !option.disabled) ? overlay : "";
    select.addEventListener("change", () => {
      overlay = select.value;
      try {
        localStorage.setItem(OVERLAY, overlay);
      } catch {
        // it is kept for this page alone
      }
      layOver();
    });
    layOver();
  }

  // ── the image of a patch ───────────────────────────────────────────────────────────────────────────────────────────

  function sourceImage(button) {
    const { image, size, key, patch, receptiveField, input } = button.dataset;
    const [width, height] = size.split(" ");
    const svg = svgElement("svg", { viewBox: `0 0 ${size}`, role: "img", class: "source-image", width, height });
    svg.setAttribute("aria-label", `Image ${key} with the receptive field of the cell`);
    svg.append(svgElement("image", { href: `${root}images/${image}.jpg`, width, height, preserveAspectRatio: "none" }));
    const cell = heat(button, squareAround(window.unitscopePatches.crop(button.dataset, isSite ? "auto" : patchKind()).box));
    if (cell) svg.append(cell);
    svg.append(rectangle(input, "input-box"));
    if (receptiveField) svg.append(rectangle(receptiveField, "receptive-field"));
    svg.append(rectangle(patch, "halo"), rectangle(patch, "patch-box"));
    return svg;
  }

  function caption(button) {
    const example = button.closest(".example");
    const link = document.createElement("a");
    link.href = window.unitscopeAddress(`images/${button.dataset.image}.html`);
    link.textContent = button.dataset.key;
    const value = document.createElement("b");
    value.textContent = example.querySelector(".value").textContent;
    const label = example.querySelector("figcaption a")?.textContent;
    const paragraph = document.createElement("p");
    paragraph.append("Value ", value, label ? ` in ${label}, ` : " in ", link);
    return paragraph;
  }

  function show(button) {
    document.getElementById("source")?.replaceChildren(sourceImage(button), caption(button));
    document.querySelectorAll(".example[data-chosen]").forEach((chosen) => delete chosen.dataset.chosen);
    button.closest(".example").dataset.chosen = "";
  }

  // ── the same large ─────────────────────────────────────────────────────────────────────────────────────────────────

  const lightbox = { dialog: null, button: null, svg: null, view: null };
  const MOST_ZOOM = 32;

  function makeLightbox() {
    const dialog = document.createElement("dialog");
    dialog.id = "lightbox";
    dialog.setAttribute("aria-label", "The image of a patch, large");
    dialog.innerHTML = `
      <div class="lightbox-bar">
        <button type="button" data-do="previous" title="The patch before (←)">←</button>
        <button type="button" data-do="next" title="The next patch (→)">→</button>
        <button type="button" data-do="out" title="Smaller (−)">−</button>
        <button type="button" data-do="in" title="Larger (+)">+</button>
        <button type="button" data-do="patch" title="The patch alone (p)">Patch</button>
        <button type="button" data-do="whole" title="The whole picture (0)">Whole</button>
        <button type="button" data-do="close" title="Close (Esc)" class="close">Close</button>
      </div>
      <div class="lightbox-stage"></div>
      <ul class="legend">
        <li class="patch-box">patch</li><li class="receptive-field">receptive field</li><li class="input-box">what the network gets</li>
      </ul>
      <div class="lightbox-caption" aria-live="polite"></div>`;
    document.body.append(dialog);
    const actions = {
      previous: () => step(-1), next: () => step(1), in: () => zoom(1.5), out: () => zoom(1 / 1.5),
      patch: () => look(squareAround(numbers(lightbox.button.dataset.patch))), whole: () => look(null), close: () => dialog.close(),
    };
    const keys = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out", 0: "whole", p: "patch" };
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
      actions[event.target.closest("[data-do]")?.dataset.do]?.();
    });
    dialog.addEventListener("keydown", (event) => {
      const action = actions[keys[event.key]];
      if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      action();
    });
    dialog.addEventListener("close", () => lightbox.button?.focus({ preventScroll: true }));
    const stage = dialog.querySelector(".lightbox-stage");
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, pointOf(event));
    }, { passive: false });
    stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
    stage.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const scale = lightbox.svg.getScreenCTM().a;
      moveTo(lightbox.view.x - event.movementX / scale, lightbox.view.y - event.movementY / scale, lightbox.view.width, lightbox.view.height);
    });
    return dialog;
  }

  function pointOf(event) {
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(lightbox.svg.getScreenCTM().inverse());
  }

  function moveTo(x, y, width, height) {
    lightbox.view = { x, y, width, height };
    lightbox.svg.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
  }

  function zoom(factor, point) {
    const { x, y, width, height } = lightbox.view;
    const [imageWidth] = numbers(lightbox.button.dataset.size);
    const newWidth = Math.min(Math.max(width / factor, imageWidth / MOST_ZOOM), imageWidth * 1.5);
    const share = newWidth / width;
    const centre = point ?? { x: x + width / 2, y: y + height / 2 };
    moveTo(centre.x - (centre.x - x) * share, centre.y - (centre.y - y) * share, newWidth, height * share);
  }

  // A square of the picture with some of what is around it; without one the whole picture.
  function look(square) {
    const [width, height] = numbers(lightbox.button.dataset.size);
    if (!square) moveTo(0, 0, width, height);
    else moveTo(square.x - square.width * 0.05, square.y - square.height * 0.05, square.width * 1.1, square.height * 1.1);
  }

  function step(by) {
    const buttons = [...document.querySelectorAll("button.show")];
    open(buttons[(buttons.indexOf(lightbox.button) + by + buttons.length) % buttons.length]);
  }

  function open(button) {
    lightbox.dialog ??= makeLightbox();
    const { dialog } = lightbox;
    lightbox.button = button;
    show(button);
    lightbox.svg = sourceImage(button);
    lightbox.svg.removeAttribute("width");
    lightbox.svg.removeAttribute("height");
    dialog.querySelector(".lightbox-stage").replaceChildren(lightbox.svg);
    look(null);
    dialog.querySelector(".legend .receptive-field").textContent = button.dataset.receptiveField ? "receptive field" : "receptive field, which is the patch";
    const text = caption(button);
    const [y, x] = button.dataset.cell.split(" ");
    const note = document.createElement("span");
    text.append(`; cell in row ${y}, column ${x} of the activation map`, note);
    dialog.querySelector(".lightbox-caption").replaceChildren(text);
    if (!dialog.open) dialog.showModal();
    if (!isSite) sharpen(button, note);
  }

  // The image itself takes the place of the small version that the atlas has of it, where it is at hand.
  function sharpen(button, note) {
    const picture = new Image();
    picture.onload = () => {
      if (lightbox.button === button) lightbox.svg.querySelector(":scope > image").setAttribute("href", picture.src);
    };
    picture.onerror = () => {
      note.textContent = ". This is the small version that the atlas has; the image itself isn't at hand";
    };
    picture.src = `${root}source-images/${button.dataset.image}.jpg`;
  }

  // ── patches that are cut from their images here, in an exported site ───────────────────────────────────────────────────────────────────

  function cutAnew() {
    const kind = patchKind();
    if (!isSite) return;
    for (const button of document.querySelectorAll("button.show")) {
      const old = button.querySelector(".patch");
      if (kind === "auto" && old.dataset.cut === undefined) continue;
      const { image, size } = button.dataset;
      const { box, seen: [x, y, width, height] } = window.unitscopePatches.crop(button.dataset, kind);
      const [imageWidth, imageHeight] = size.split(" ");
      const label = button.closest(".example").querySelector("figcaption a")?.textContent;
      const value = button.closest(".example").querySelector(".value").textContent;
      const words = `Value ${value}${label ? `, label ${label}` : ""}, image ${button.dataset.key}`;
      const patch = svgElement("svg", { class: "patch", viewBox: box.join(" "), role: "img", "aria-label": words });
      const seen = svgElement("svg", { x, y, width, height, viewBox: `${x} ${y} ${width} ${height}` });
      seen.append(svgElement("image", { href: `${root}images/${image}.jpg`, width: imageWidth, height: imageHeight, preserveAspectRatio: "none" }));
      const hatch = rectangle(box.join(" "), "");
      hatch.setAttribute("fill", "url(#hatch)");
      patch.append(hatch, seen);
      old.replaceWith(patch);
    }
  }

  // ── the histogram ──────────────────────────────────────────────────────────────────────────────────────────────────

  function startHistogram() {
    const drawing = document.querySelector(".histogram > svg");
    if (!drawing) return;
    const counts = numbers(drawing.dataset.counts);
    const [low, high] = numbers(drawing.dataset.range);
    const output = document.querySelector(".histogram output");
    const LEFT = 34, WIDTH = 320;
    const { text } = window.unitscopeNumbers;
    drawing.addEventListener("pointermove", (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
      const bin = Math.floor(((point.x - LEFT) / WIDTH) * counts.length);
      const edge = (index) => low + ((high - low) * index) / counts.length;
      output.textContent = bin in counts ? `${text(edge(bin))} to ${text(edge(bin + 1))}: ${counts[bin]} ${counts[bin] === 1 ? "image" : "images"}.` : "";
    });
    drawing.addEventListener("pointerleave", () => (output.textContent = ""));
  }

  function start() {
    if (lightbox.dialog?.open) lightbox.dialog.close();
    cutAnew();
    startOverlay();
    startHistogram();
    const buttons = [...document.querySelectorAll("button.show")];
    for (const button of buttons) {
      for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => show(button));
      button.addEventListener("click", () => open(button));
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
  }, { rootMargin: "100px" });

  document.addEventListener("unitscope:part", start);
  start();
}

// Blocks of an exported site, where patches are to show something else than what was drawn: those in view are cut here, from the pictures that
// the site has, by what the pages of their units say.
"use strict";
{
  const { root } = document.documentElement.dataset;
  const kind = window.unitscopePatches.kind();
  const PATCH_PX = 64; // as in blocks that were drawn
  const AT_ONCE = 4;

  // ── one block ──────────────────────────────────────────────────────────────────────────────────────────────────────

  function load(image) {
    return new Promise((resolve) => {
      const picture = new Image();
      picture.onload = () => resolve(picture);
      picture.onerror = () => resolve(null);
      picture.src = `${root}images/${image}.jpg`;
    });
  }

  // What lies outside of the network's input is hatched.
  function hatch(context) {
    const colour = (kind, property) => getComputedStyle(document.querySelector(`.hatch-${kind}`))[property]; // as light or dark has it
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const drawing = tile.getContext("2d");
    drawing.fillStyle = colour("ground", "fill");
    drawing.fillRect(0, 0, 8, 8);
    drawing.strokeStyle = colour("lines", "stroke");
    drawing.lineWidth = 2.5;
    drawing.stroke(new Path2D("M0 8 8 0M-2 2 2-2M6 10 10 6"));
    return context.createPattern(tile, "repeat");
  }

  // The crop in the middle of a square that begins at (left, top).
  function drawPatch(context, ground, picture, data, left, top) {
    const { box, seen } = window.unitscopePatches.crop(data, kind);
    const scale = PATCH_PX / Math.max(box[2], box[3]);
    const onCanvas = ([x, y, width, height]) => [
      left + PATCH_PX / 2 + (x - box[0] - box[2] / 2) * scale, top + PATCH_PX / 2 + (y - box[1] - box[3] / 2) * scale, width * scale, height * scale,
    ];
    context.fillStyle = ground;
    context.fillRect(...onCanvas(box));
    if (!picture || !seen[2] || !seen[3]) return;
    const [width, height] = data.size.split(" ").map(Number); // the picture may be a smaller version of the image
    const shares = [picture.naturalWidth / width, picture.naturalHeight / height];
    context.drawImage(picture, ...seen.map((length, side) => length * shares[side % 2]), ...onCanvas(seen));
  }

  async function cut(sprite) {
    const found = await window.unitscopePart(partOf(sprite));
    const patches = new DOMParser().parseFromString(found?.[1] ?? "", "text/html").querySelector(".patches:not(.tied)");
    const buttons = [...(patches?.querySelectorAll(".show") ?? [])];
    if (!buttons.length) return; // of a unit that is dead or shows no preference the block says that
    const columns = Number(patches.dataset.columns);
    const shown = buttons.slice(0, columns ** 2);
    const pictures = await Promise.all(shown.map((button) => load(button.dataset.image)));
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = columns * PATCH_PX;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    const ground = hatch(context);
    shown.forEach((button, place) => drawPatch(context, ground, pictures[place], button.dataset, (place % columns) * PATCH_PX, Math.floor(place / columns) * PATCH_PX));
    sprite.append(canvas);
  }

  // ── those in view ──────────────────────────────────────────────────────────────────────────────────────────────────

  const waiting = new Set();
  let working = 0;

  // The address of the part that tells what a block shows; of another atlas's block, nothing.
  function partOf(sprite) {
    const address = sprite.closest("a")?.getAttribute("href") ?? "";
    return address.startsWith(`${root}page.html#units/`) ? window.unitscopePartOf(address.slice(address.indexOf("#"))) : "";
  }

  async function work() {
    if (working === AT_ONCE) return;
    working += 1;
    for (const sprite of waiting) {
      waiting.delete(sprite);
      inView.unobserve(sprite);
      try {
        await cut(sprite);
      } catch (error) {
        sprite.title = `Drawn as what matters: ${error.message}`;
      }
      sprite.dataset.cut = "";
    }
    working -= 1;
  }

  const inView = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) waiting.delete(target);
      else if (target.dataset.cut === undefined) waiting.add(target);
    }
    for (let worker = 0; worker < AT_ONCE; worker += 1) work();
  }, { rootMargin: "200px" });

  function start() {
    if (kind === "auto") return;
    document.documentElement.dataset.cut = "";
    for (const drawn of document.querySelectorAll(".drawn")) drawn.textContent = kind === "image" ? ", drawn: the whole input" : "";
    for (const sprite of document.querySelectorAll(".sprite")) inView.observe(sprite);
  }

  for (const event of ["unitscope:part", "unitscope:blocks"]) document.addEventListener(event, start);
  start();
}

// The search box: `/` opens it. A layer and a unit, a label, or an image's key.
"use strict";
{
  const root = document.documentElement.dataset.root;
  const dialog = document.getElementById("find");
  const text = document.getElementById("find-text");
  const list = document.getElementById("find-list");
  const MOST = 12;
  let chosen = 0;

  function index() {
    if (window.unitscopeSearch) return Promise.resolve(window.unitscopeSearch);
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${root}search.js`;
      script.onload = () => resolve(window.unitscopeSearch);
      script.onerror = () => reject(new Error("search.js can't be loaded"));
      document.head.append(script);
    });
  }

  function* found(asked, known) {
    const words = asked.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) {
      for (const [name, slug, units] of known.layers) yield { kind: "layer", text: name, more: `${units} units`, href: `layers/${slug}.html` };
      return;
    }
    const last = words[words.length - 1];
    const unit = /^\d+$/.test(last) ? Number(last) : null;
    const rest = words.slice(0, -1);
    const holds = (name, parts) => parts.every((part) => name.toLowerCase().includes(part));
    const closest = (rows, parts) =>
      rows.filter((row) => holds(row[0], parts)).sort((a, b) => (b[0].toLowerCase() === parts.join(" ")) - (a[0].toLowerCase() === parts.join(" ")));
    if (unit !== null && rest.length) {
      for (const [name, slug, units] of closest(known.layers, rest)) {
        if (unit < units) yield { kind: "unit", text: `${name} ${unit}`, more: "unit", href: `units/${slug}/${unit}.html` };
      }
    }
    for (const [name, slug, units] of closest(known.layers, words)) yield { kind: "layer", text: name, more: `${units} units`, href: `layers/${slug}.html` };
    for (const [name, slug] of closest(known.labels, words)) yield { kind: "label", text: name, more: "label", href: `labels/${slug}.html` };
    for (const [key, number] of closest(known.images, words)) yield { kind: "image", text: key, more: "image", href: `images/${number}.html` };
  }

  function show(results) {
    list.replaceChildren(
      ...results.map((one, place) => {
        const link = document.createElement("a");
        link.href = root + one.href;
        link.id = `find-${place}`;
        link.role = "option";
        link.tabIndex = -1;
        const more = document.createElement("span");
        more.textContent = one.more;
        link.append(one.text, more);
        return link;
      }),
    );
    if (!results.length) {
      const nothing = document.createElement("p");
      nothing.textContent = "Nothing of that name.";
      list.append(nothing);
    }
    choose(0);
  }

  function choose(place) {
    const links = list.querySelectorAll("a");
    chosen = links.length ? (place + links.length) % links.length : 0;
    links.forEach((link, number) => link.setAttribute("aria-selected", String(number === chosen)));
    if (links[chosen]) {
      text.setAttribute("aria-activedescendant", links[chosen].id);
      links[chosen].scrollIntoView({ block: "nearest" });
    } else text.removeAttribute("aria-activedescendant");
  }

  async function search() {
    const asked = text.value;
    let known;
    try {
      known = await index();
    } catch (error) {
      known = { layers: [], labels: [], images: [] };
    }
    if (asked !== text.value) return;
    const results = [];
    for (const one of found(asked, known)) {
      if (results.push(one) === MOST) break;
    }
    show(results);
  }

  function open() {
    dialog.showModal();
    text.select();
    search();
  }

  document.getElementById("find-open").addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || dialog.open || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    open();
  });
  text.addEventListener("input", search);
  text.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      choose(chosen + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Enter") {
      event.preventDefault();
      list.querySelectorAll("a")[chosen]?.click();
    } else if (event.key === "Escape") {
      event.preventDefault(); // a search field would only empty itself
      dialog.close();
    }
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

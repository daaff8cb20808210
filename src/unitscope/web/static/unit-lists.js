// Lists of units: the pages of units go on in the order of the list that a person came from. The address says which list that is, and this tab
// keeps it. Of a layer it is what was chosen there, `sort=highest`; of others, whose units lie in several layers, `from=` and the list's name.
"use strict";
{
  const { root, site, network, images } = document.documentElement.dataset;
  const isSite = site !== undefined;
  const UNIT = /(?:^|[/#])units\/([^/?#]+)\/(\d+)(?:\.html)?(?:[?#]|$)/;
  const PREFIX = "unitscope-list-of-units";
  const keyOf = (mark) => `${PREFIX} ${network} ${images} ${mark}`;

  function write(mark, list) {
    const text = JSON.stringify(list);
    try {
      sessionStorage.setItem(keyOf(mark), text);
    } catch {
      // it may be full: then this list takes the place of the others
      for (const key of Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX))) sessionStorage.removeItem(key);
      sessionStorage.setItem(keyOf(mark), text);
    }
  }

  function read(mark) {
    try {
      return JSON.parse(sessionStorage.getItem(keyOf(mark)));
    } catch {
      return null;
    }
  }

  // Where the page of a unit lies that belongs to a list.
  function addressOf(slug, unit, mark) {
    const address = window.unitscopeAddress(`units/${slug}/${unit}.html`);
    return isSite ? `${address}?${mark}` : `${address}${location.search}#${mark}`;
  }

  // A short name of an address of any length: the sum of Fowler, Noll and Vo (FNV-1a, 32 bits), over its letters.
  const shortened = (text) => [...text].reduce((sum, letter) => Math.imul(sum ^ letter.codePointAt(0), 0x01000193) >>> 0, 0x811c9dc5).toString(36);

  // Keeps a list of units, each with its layer's slug, its number and its layer's name, and has the links of its blocks say that they belong to
  // it. `path` is where the list's page is served, with what it was asked for; `title` says what the list is called.
  window.unitscopeKeepList = (links, { path, title, units }) => {
    const [page, asked] = path.split("#");
    const mark = `from=${page.replace(/\.html$/, "")}${asked ? `-${shortened(asked)}` : ""}`;
    try {
      write(mark, { path, title, units });
    } catch {
      return; // a browser may forbid it; then units come by number
    }
    for (const link of links) {
      const [, slug, unit] = link.getAttribute("href").match(UNIT);
      link.setAttribute("href", addressOf(slug, unit, mark));
    }
  };

  // The lists of the page: of a name, of a label.
  function keepLists() {
    for (const list of document.querySelectorAll("ol[data-list]")) {
      const links = [...list.querySelectorAll("a.block")];
      const units = links.map((link) => {
        const [, slug, unit] = link.getAttribute("href").match(UNIT);
        return [slug, Number(unit), link.querySelector(".layer-name").textContent];
      });
      window.unitscopeKeepList(links, { path: list.dataset.list, title: list.dataset.title, units });
    }
  }

  // ── on the page of a unit ─────────────────────────────────────────────────────────────────────────────────────────

  function step(relation, text, address) {
    const link = document.createElement("a");
    const key = document.createElement("kbd");
    key.textContent = { prev: "←", up: "↑", next: "→" }[relation];
    Object.assign(link, { rel: relation, href: address, title: text });
    link.append(...(relation === "next" ? [`${text} `, key] : [key, ` ${text}`]));
    return link;
  }

  function followLayer(heading, choice) {
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
    const addressOfUnit = (unit) => (isSite ? `${address.replace(/\d+$/, unit)}?${choice}` : `${address.replace(/\d+\.html$/, `${unit}.html`)}#${choice}`);
    const steps = [["prev", units[place - 1]], ["next", units[place + 1]]].filter(([, unit]) => unit !== undefined);
    heading.querySelector(".steps").replaceChildren(...steps.map(([relation, unit]) => step(relation, String(unit), addressOfUnit(unit))));
  }

  // The list is one up, in the place of the layer.
  function followList(heading, mark) {
    const list = read(mark);
    const { layer, unit: number } = heading.dataset;
    const place = list?.units.findIndex(([, unit, name]) => unit === Number(number) && name === layer) ?? -1;
    if (place < 0) return;
    heading.querySelector('h1 a[rel="up"]').removeAttribute("rel");
    const toUnit = (relation, [slug, unit, name]) => step(relation, `${name} ${unit}`, addressOf(slug, unit, mark));
    const counted = (count) => count.toLocaleString("en");
    const up = step("up", `${counted(place + 1)} of ${counted(list.units.length)}: ${list.title}`, window.unitscopeAddress(list.path));
    const [previous, next] = [list.units[place - 1], list.units[place + 1]];
    heading.querySelector(".steps").replaceChildren(...(previous ? [toUnit("prev", previous)] : []), up, ...(next ? [toUnit("next", next)] : []));
  }

  function follow() {
    const heading = document.querySelector(".heading[data-unit]");
    const choice = isSite ? location.hash.split("?")[1] : location.hash.slice(1);
    if (!heading || !choice?.includes("=")) return; // "#main" skips to the content
    if (choice.startsWith("from=")) followList(heading, choice);
    else followLayer(heading, choice);
  }

  function start() {
    keepLists();
    follow();
  }

  document.addEventListener("unitscope:part", start);
  start();
}

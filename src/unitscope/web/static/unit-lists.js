// Lists of units: the pages of units go on in the order of the list that a person came from. The address says which list that is, and this tab
// keeps it. Of a layer it is what was chosen there, `sort=highest`; of others, whose units lie in several layers, `from=` and the list's name.
"use strict";
{
  const { root, site, network, images, patches } = document.documentElement.dataset;
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
    const kind = new URLSearchParams(location.search).get("patch"); // where no cookie is allowed
    return isSite ? `${address}?${mark}` : `${address}${kind ? `?${new URLSearchParams({ patch: kind })}` : ""}#${mark}`;
  }

  // A short name of an address of any length: the sum of Fowler, Noll and Vo (FNV-1a, 32 bits), over its letters.
  const shortened = (text) => [...text].reduce((sum, letter) => Math.imul(sum ^ letter.codePointAt(0), 0x01000193) >>> 0, 0x811c9dc5).toString(36);

  function markOf(path) {
    const [, page, asked] = path.match(/^([^?#]*)[?#]?(.*)$/s);
    return `from=${page.replace(/\.html$/, "")}${asked ? `-${shortened(asked)}` : ""}`;
  }

  function markLinks(links, mark) {
    for (const link of links) {
      const [, slug, unit] = link.getAttribute("href").match(UNIT);
      link.setAttribute("href", addressOf(slug, unit, mark));
    }
  }

  // Keeps a list of units, each with its layer's slug, its number and its layer's name, and gives what the links to them have in their addresses;
  // null where a browser forbids it: then units come by number. `path` is where the list's page is served, with what it was asked for; `title`
  // says what the list is called.
  function keep(list) {
    const mark = markOf(list.path);
    try {
      write(mark, list);
      return mark;
    } catch {
      return null;
    }
  }

  window.unitscopeKeepList = (links, list) => {
    const mark = keep(list);
    if (mark) markLinks(links, mark);
  };

  // ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function picture(list, { slug, name, number }, unit) {
    const text = `Patches of ${name} unit ${unit}`;
    const image = element("img");
    Object.assign(image, { loading: "lazy", decoding: "async" });
    if (!isSite) {
      const ofKind = !patches || patches === "auto" ? "" : `?patch=${patches}`;
      Object.assign(image, { src: `${root}blocks/${slug}/${unit}.jpg${ofKind}`, width: 192, height: 192, alt: text });
      return image;
    }
    const columns = Number(list.dataset.spriteColumns), unitsPerSprite = Number(list.dataset.unitsPerSprite);
    const place = unit % unitsPerSprite;
    const sprite = element("span", "sprite");
    sprite.setAttribute("role", "img");
    sprite.setAttribute("aria-label", text);
    image.className = `column-${place % columns} row-${Math.floor(place / columns)}`;
    Object.assign(image, { src: `${root}blocks/${number}-${Math.floor(unit / unitsPerSprite)}.jpg`, alt: "" });
    sprite.append(image);
    return sprite;
  }

  // A block of a unit in a list, which leads to its page. `layer` has slug, name and number.
  window.unitscopeBlock = (list, layer, unit) => {
    const link = element("a", "block");
    link.href = window.unitscopeAddress(`units/${layer.slug}/${unit}.html`);
    link.append(picture(list, layer, unit), element("span", "layer-name", layer.name), element("span", "unit-number", unit));
    return link;
  };

  // ── the units of a name or a label, or of the network ────────────────────────────────────────────────────────────────────────────────

  // The page has the first as blocks, and all as data; as many more as it has come when they are asked for. Who comes back sees those again.
  function showList() {
    const list = document.getElementById("unit-list");
    if (!list) return;
    const { columns, layers, units } = JSON.parse(document.getElementById("listed-units").textContent);
    const { list: path, title } = list.dataset;
    const kept = { path, title, units: units.map(([layer, unit]) => [layers[layer][0], unit, layers[layer][1]]) };
    const before = read(markOf(path))?.shown ?? 0;
    const mark = keep({ ...kept, shown: before });
    if (mark) markLinks(list.querySelectorAll("a.block"), mark);
    const piece = list.children.length, nameColumn = columns.indexOf("name");

    function add(count) {
      const blocks = units.slice(list.children.length, list.children.length + count).map(([layer, unit, caption, ...values]) => {
        const [slug, name] = layers[layer];
        const item = element("li");
        const link = window.unitscopeBlock(list, { slug, name, number: window.unitscopeParts?.layers[slug][0] }, unit);
        link.append(element("span", "value", caption));
        if (values[nameColumn]) {
          const ofUnit = element("span", "unit-name", values[nameColumn]);
          const belief = values[columns.indexOf("belief")];
          if (belief) {
            ofUnit.classList.add("doubted");
            ofUnit.title = belief;
          }
          link.append(ofUnit);
        }
        item.append(link);
        return item;
      });
      if (mark) markLinks(blocks.map((item) => item.firstChild), mark);
      list.append(...blocks);
      document.dispatchEvent(new Event("unitscope:blocks"));
      return blocks[0];
    }

    const more = element("button", "more");
    more.type = "button";
    const showButton = () => {
      const rest = units.length - list.children.length;
      more.hidden = rest <= 0;
      more.textContent = `Show ${Math.min(piece, rest)} more of ${units.length.toLocaleString("en")}`;
    };
    more.addEventListener("click", () => {
      add(piece).firstChild.focus({ preventScroll: true });
      keep({ ...kept, shown: list.children.length });
      showButton();
    });
    list.after(more);
    if (before > piece) add(before - piece);
    showButton();
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
    showList();
    follow();
  }

  document.addEventListener("unitscope:part", start);
  start();
}

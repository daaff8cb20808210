// What a person does by key on every page: the arrows, and the search box.
"use strict";

// Arrow keys go to the page before and after, and up. Not while a person types, chooses or scrolls sideways.
{
  const RELATIONS = { ArrowLeft: "prev", ArrowRight: "next", ArrowUp: "up" };
  const takesKeys = (element) => element.closest("input, select, textarea, dialog") !== null;

  document.addEventListener("keydown", (event) => {
    const relation = RELATIONS[event.key];
    if (!relation || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (takesKeys(event.target) || (relation === "up" && window.scrollY > 0)) return;
    const link = document.querySelector(`a[rel="${relation}"]`);
    if (!link) return;
    event.preventDefault();
    link.click();
  });
}

// Escape closes the menu of downloads, and so does a click elsewhere.
{
  const menu = document.getElementById("downloads");
  const close = () => {
    menu.open = false;
  };

  menu?.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    close();
    menu.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => {
    if (menu?.open && !menu.contains(event.target)) close();
  });
}

// The search box: `/` opens it. It finds a layer and a unit, a label, or an image's key.
{
  const root = document.documentElement.dataset.root;
  const dialog = document.getElementById("search-box");
  const input = document.getElementById("search-text");
  const list = document.getElementById("search-results");
  const MAX_RESULTS = 60;
  let chosenIndex = 0;

  function loadIndex() {
    if (window.unitscopeSearchIndex) return Promise.resolve(window.unitscopeSearchIndex);
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${root}search-index.js`;
      script.onload = () => resolve(window.unitscopeSearchIndex);
      script.onerror = () => reject(new Error("search-index.js can't be loaded"));
      document.head.append(script);
    });
  }

  const layerResult = ([name, slug, units, file]) => ({ text: name, note: `${units} units`, href: `layers/${file ?? slug}.html` });

  // The rows whose first column holds all words; a row whose first column is those words comes first.
  function matching(rows, words) {
    const isExact = (row) => row[0].toLowerCase() === words.join(" ");
    return rows.filter((row) => words.every((word) => row[0].toLowerCase().includes(word))).sort((a, b) => isExact(b) - isExact(a));
  }

  // The rows, of kinds of names or of the tour, whose first column begins with what was typed, or one of the words in the second does.
  function rowsOf(rows, words) {
    return rows.filter(([name, others]) => [name, ...others.split(" ")].some((known) => known.startsWith(words.join(" "))));
  }

  // The block of a unit, `LAYER/UNIT`; an exported site has blocks in pictures of many alone.
  const blockOf = (unit) => (document.documentElement.dataset.site === undefined ? `blocks/${unit}.jpg` : null);
  const unitResult = (name, slug, unit) => ({ text: `${name} ${unit}`, note: "unit", href: `units/${slug}/${unit}.html`, picture: blockOf(`${slug}/${unit}`) });

  function* results(query, index) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) {
      yield* index.layers.map(layerResult);
      return;
    }
    const lastWord = words[words.length - 1];
    if (/^\d+$/.test(lastWord) && words.length > 1) {
      const unit = Number(lastWord);
      for (const [name, slug, units] of matching(index.layers, words.slice(0, -1))) {
        if (unit < units) yield unitResult(name, slug, unit);
      }
    }
    if (/^\d+$/.test(lastWord) && words.length === 1) {
      const unit = Number(lastWord);
      for (const [name, slug, units] of index.layers) {
        if (unit < units) yield unitResult(name, slug, unit);
      }
    }
    yield* matching(index.layers, words).map(layerResult);
    for (const [name, , slug, units, best] of rowsOf(index.kinds, words)) {
      yield { text: name, note: units === 1 ? "one unit" : `${units} units`, href: `concepts/${slug}.html`, picture: blockOf(best) };
    }
    for (const [stage, , layer, slug, unit] of rowsOf(index.tour, words)) yield { ...unitResult(layer, slug, unit), note: `the tour's ${stage}` };
    for (const [name, slug, units, best] of matching(index.names, words)) {
      yield { text: name, note: units === 1 ? "name of one unit" : `name of ${units} units`, href: `concepts/${slug}.html`, picture: blockOf(best) };
    }
    for (const [name, position] of matching(index.classes, words)) yield { text: name, note: "class", href: `classes/${position}.html` };
    for (const [name, slug] of matching(index.labels, words)) yield { text: name, note: "label", href: `labels/${slug}.html` };
    for (const [key, number] of matching(index.images, words)) yield { text: key, note: "image", href: `images/${number}.html`, picture: `images/${number}.jpg` };
  }

  function resultLink(result, position) {
    const link = document.createElement("a");
    link.href = window.unitscopeAddress(result.href);
    link.addEventListener("click", () => dialog.close()); // the page may be another part of the same one
    link.id = `search-result-${position}`;
    link.role = "option";
    link.tabIndex = -1;
    const note = document.createElement("span");
    note.textContent = result.note;
    if (result.picture) {
      const picture = document.createElement("img");
      Object.assign(picture, { src: root + result.picture, alt: "", loading: "lazy", height: 32 });
      link.append(picture);
    }
    link.append(result.text, note);
    return link;
  }

  function show(shownResults) {
    list.replaceChildren(...shownResults.map(resultLink));
    if (!shownResults.length) {
      const message = document.createElement("p");
      message.textContent = "Nothing of that name.";
      list.append(message);
    }
    choose(0);
  }

  function choose(index) {
    const links = list.querySelectorAll("a");
    chosenIndex = links.length ? (index + links.length) % links.length : 0;
    links.forEach((link, position) => link.setAttribute("aria-selected", String(position === chosenIndex)));
    if (links[chosenIndex]) {
      input.setAttribute("aria-activedescendant", links[chosenIndex].id);
      links[chosenIndex].scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  async function search() {
    const query = input.value;
    let index;
    try {
      index = await loadIndex();
    } catch {
      index = { layers: [], kinds: [], tour: [], names: [], classes: [], labels: [], images: [] };
    }
    if (query !== input.value) return; // a person typed on meanwhile
    const shownResults = [];
    for (const result of results(query, index)) {
      if (shownResults.push(result) === MAX_RESULTS) break;
    }
    show(shownResults);
  }

  function open() {
    dialog.showModal();
    input.select();
    search();
  }

  document.getElementById("search-open").addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || dialog.open || event.ctrlKey || event.metaKey) return;
    if (event.target !== input && event.target.closest("input, select, textarea")) return; // the box's own, just closed, may still get the key
    event.preventDefault();
    open();
  });
  input.addEventListener("input", search);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      choose(chosenIndex + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Enter") {
      event.preventDefault();
      list.querySelectorAll("a")[chosenIndex]?.click();
    } else if (event.key === "Escape") {
      event.preventDefault(); // a search field would only empty itself
      dialog.close();
    }
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

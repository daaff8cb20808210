// A grid of units: their order, choice and size. What is chosen stays in the address, so that a link shows the same. unit_lists.py, which writes
// the same list as a file, reads it likewise.
"use strict";
{
  const FIELDS = ["sort", "order", "show", "label", "name", "score", "size"];
  const form = document.getElementById("grid-choice");
  const grid = document.getElementById("units");
  const blocks = [...grid.children];
  const fields = FIELDS.filter((name) => form[name]);
  const defaults = Object.fromEntries(fields.map((name) => [name, form[name].defaultValue ?? form[name].options[0].value]));

  // The highest values are what a person asks for first, and the lowest number.
  const usual = (name) => (name !== "order" ? defaults[name] : form.sort.value === "unit" ? "ascending" : "descending");
  const chosenFields = () => fields.filter((name) => form[name].value !== usual(name)).map((name) => [name, form[name].value]);

  // What units can be sorted by, by column, in the order in which the page came.
  const columns = JSON.parse(document.getElementById("unit-values").textContent);
  const places = new Map(blocks.map((block, place) => [block, place]));
  const number = (block) => Number(block.dataset.unit);
  window.unitscopeValue = (block, column) => columns[column][places.get(block)] ?? NaN;
  // The labels of units, by the place of each among those that the field suggests.
  const labels = [...(form.label?.list.options ?? [])].map((option) => option.value);
  const labelsOfUnits = JSON.parse(document.getElementById("unit-labels")?.textContent ?? "[]");
  window.unitscopeLabels = (block) => (labelsOfUnits[places.get(block)] ?? []).map((place) => labels[place]);

  const isShown = {
    all: () => true,
    "not-dead": (block) => !block.dataset.dead,
    dead: (block) => Boolean(block.dataset.dead),
    "no-preference": (block) => Boolean(block.dataset.noPreference),
    tied: (block) => Boolean(block.dataset.tied),
    favourites: (block) => Boolean(block.dataset.favourite),
    facets: (block) => Boolean(block.dataset.facets),
    "always-active": (block) => Boolean(block.dataset.alwaysActive),
  };

  function sort() {
    const [chosen] = form.sort.selectedOptions;
    const sign = form.order.value === "ascending" ? 1 : -1;
    const value = (block) => (chosen.value === "unit" ? number(block) : block.dataset.dead ? NaN : window.unitscopeValue(block, chosen.dataset.index));
    // What a dead unit's values would say is nothing: it comes last, as those do that have none. Its number is one.
    const values = new Map(blocks.map((block) => [block, value(block)]));
    const isLast = (block) => Number.isNaN(values.get(block));
    const sorted = [...blocks].sort((a, b) => isLast(a) - isLast(b) || sign * (values.get(a) - values.get(b)) || number(a) - number(b));
    form.sort.title = chosen.title; // what the column holds, and its name
    showValues();
    if (sorted.some((block, place) => block !== grid.children[place])) grid.replaceChildren(...sorted);
    showSome();
  }

  function choose() {
    const isChosen = isShown[form.show?.value ?? "all"];
    const label = form.label?.value.trim().toLowerCase() ?? "";
    const name = form.elements.namedItem("name")?.value.trim().toLowerCase() ?? "";
    const score = Number(form.elements.namedItem("score")?.value || 0);
    const scoreColumn = form.elements.namedItem("score")?.dataset.index;
    let count = 0;
    for (const block of blocks) {
      const stays = isChosen(block) && (!label || window.unitscopeLabels(block).some((text) => text.toLowerCase().includes(label))) && (!name || (block.dataset.name ?? "").toLowerCase().includes(name)) && (!score || window.unitscopeValue(block, scoreColumn) >= score);
      block.hidden = !stays;
      count += stays;
    }
    showSome();
    form.count.value = !count ? "No unit fits" : count === blocks.length ? `${count.toLocaleString("en")} units` : `${count.toLocaleString("en")} of ${blocks.length.toLocaleString("en")} units`;
  }

  // Below each block stands its highest value or, where units are sorted by another number, that one.
  function showValues() {
    const chosen = form.sort.selectedOptions[0];
    if (!grid.dataset.layer) return;
    const isOther = !["unit", "highest"].includes(chosen.value);
    for (const block of blocks) {
      const span = block.querySelector(".value");
      if (!span || block.dataset.dead) continue;
      span.dataset.highest ??= span.textContent;
      const value = isOther ? window.unitscopeValue(block, chosen.dataset.index) : 0;
      span.textContent = isOther ? window.unitscopeNumbers.text(value) : span.dataset.highest;
    }
  }

  // On a narrow screen a large layer comes in pieces.
  const PIECE = 120;
  const more = document.createElement("button");
  more.type = "button";
  more.className = "more";
  grid.after(more);
  let pieces = 1;
  more.addEventListener("click", () => {
    pieces += 1;
    showSome();
  });

  function showSome() {
    const most = matchMedia("(max-width: 720px)").matches ? pieces * PIECE : Infinity;
    const chosen = [...grid.children].filter((block) => !block.hidden);
    chosen.forEach((block, place) => block.classList.toggle("beyond", place >= most));
    more.hidden = chosen.length <= most;
    more.textContent = `Show ${Math.min(PIECE, chosen.length - most)} more of ${chosen.length.toLocaleString("en")}`;
  }

  function resize() {
    grid.style.setProperty("--block", `${form.size.value}px`);
  }

  function readAddress() {
    const choice = new URLSearchParams(location.hash.slice(1));
    for (const name of fields) {
      if (choice.has(name)) form[name].value = choice.get(name);
    }
    if (form.sort.selectedIndex < 0) form.sort.selectedIndex = 0;
    if (!choice.has("order") || form.order.selectedIndex < 0) form.order.value = usual("order");
    if (form.show && form.show.selectedIndex < 0) form.show.selectedIndex = 0;
  }

  function writeAddress() {
    const choice = new URLSearchParams(chosenFields()).toString();
    history.replaceState(null, "", choice ? `#${choice}` : location.pathname + location.search);
    keepList(choice);
  }

  // The pages of units go on in the order that is chosen here: links have it in their address, and this tab keeps what it means.
  function keepList(choice) {
    const mark = document.documentElement.dataset.site === undefined ? "#" : "?";
    for (const block of blocks) {
      const link = block.querySelector("a.block");
      link.dataset.address ??= link.getAttribute("href");
      link.setAttribute("href", link.dataset.address + (choice && grid.dataset.layer ? mark + choice : ""));
    }
    const units = [...grid.children].filter((block) => !block.hidden).map((block) => Number(block.dataset.unit));
    try {
      if (choice && grid.dataset.layer) sessionStorage.setItem(`unitscope-list ${grid.dataset.layer} ${choice}`, JSON.stringify(units));
    } catch {
      // a browser may forbid it; then units come by number
    }
  }

  function show() {
    form.reset();
    readAddress();
    resize();
    sort();
    choose();
    keepList(new URLSearchParams(chosenFields()).toString());
  }

  // What a server is asked for, that it lists the same units. Favourites are known here alone, and are named.
  window.unitscopeListQuery = () => {
    const choice = new URLSearchParams(chosenFields().filter(([name]) => name !== "size"));
    if (form.show?.value === "favourites") {
      choice.delete("show");
      choice.set("units", blocks.filter((block) => block.dataset.favourite).map((block) => block.dataset.unit).join(","));
    }
    return choice.toString();
  };

  function showFavourites() {
    if (form.show?.value !== "favourites") return;
    choose();
    writeAddress();
  }

  document.addEventListener("unitscope:notes", showFavourites);
  window.addEventListener("hashchange", show);
  show();

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name === "sort") form.order.value = usual("order");
    if (["sort", "order"].includes(event.target.name)) sort();
    else if (event.target.name === "size") resize();
    else choose();
    writeAddress();
  });
}

// The page of notes: the units that a person noted something of, or the set of units that the address names, `#units=LAYER:1,2;LAYER2:7`.
"use strict";
{
  const MAX_FILE_MB = 4;
  const store = window.unitscopeNotes;
  const find = (id) => document.getElementById(id);
  const form = find("notes-choice");
  const list = find("noted");
  const rows = window.unitscopeSearchIndex?.layers ?? [];
  const layers = new Map(rows.map(([name, slug, units], number) => [name, { name, slug, units, number }]));
  const layersBySlug = new Map([...layers.values()].map((layer) => [layer.slug, layer]));
  const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const isKnown = ({ layer, unit }) => unit < (layers.get(layer)?.units ?? 0);
  let wantedTag = "all"; // what of the notes is to be shown, as the form has it
  let shown = []; // the notes of the units that are shown
  let drawn = ""; // the same as text, as the blocks show them, and the address of their list

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function say(text) {
    find("notes-said").textContent = text;
    find("notes-said").hidden = !text;
  }

  // ── addresses ────────────────────────────────────────────────────────────────────────────────────

  // What the address asks for of the notes, as the form has it: `#show=favourites`, `#tag=fur`.
  function tagOfAddress() {
    const choice = new URLSearchParams(location.hash.slice(1));
    return choice.has("tag") ? `tag ${choice.get("tag")}` : choice.get("show") === "favourites" ? "favourites" : "all";
  }

  const withoutWord = (tag) => tag.slice("tag ".length);
  const asAddress = (tag) => (tag === "all" ? "" : `#${new URLSearchParams(tag === "favourites" ? { show: tag } : { tag: withoutWord(tag) })}`);

  // The units that the address names, in its order, and how many of them this atlas doesn't have; null where it names none.
  function setOfAddress() {
    if (!location.hash.startsWith("#units=")) return null;
    let text = location.hash.slice("#units=".length);
    try {
      text = decodeURIComponent(text);
    } catch {
      // it is no address of ours; what can be read of it is shown
    }
    const units = new Map();
    let unknown = 0;
    for (const group of text.split(";").filter(Boolean)) {
      const [slug, numbers = ""] = group.split(":");
      const layer = layersBySlug.get(slug);
      for (const number of numbers.split(",").filter(Boolean)) {
        const unit = { layer: layer?.name, unit: Number(number) };
        if (/^\d{1,9}$/.test(number) && isKnown(unit)) units.set(`${unit.unit} ${unit.layer}`, unit);
        else unknown += 1;
      }
    }
    return { units: [...units.values()], unknown };
  }

  function addressOf(units) {
    const groups = [];
    for (const { layer, unit } of units) {
      const { slug } = layers.get(layer);
      if (groups.at(-1)?.slug === slug) groups.at(-1).units.push(unit);
      else groups.push({ slug, units: [unit] });
    }
    return `${location.href.split("#")[0]}#units=${groups.map((group) => `${group.slug}:${group.units.join(",")}`).join(";")}`;
  }

  async function copyAddress() {
    const address = addressOf(shown);
    const field = find("set-address");
    field.value = address;
    find("address-line").hidden = false;
    field.select();
    try {
      await navigator.clipboard.writeText(address);
      say(`The address of ${counted(shown.length, "unit")} is copied. It names units alone, no tags and no texts.`);
    } catch {
      field.focus();
      say("The browser lets no page copy here: copy the address below. It names units alone, no tags and no texts.");
    }
  }

  // ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────

  function block(note) {
    const layer = layers.get(note.layer);
    const item = element("li");
    const star = element("button", "star", note.favourite ? "★" : "☆");
    Object.assign(star, { type: "button", title: "Favourite" });
    star.setAttribute("aria-label", `Favourite: ${layer.name} unit ${note.unit}`);
    star.setAttribute("aria-pressed", String(note.favourite));
    Object.assign(star.dataset, { layer: layer.name, unit: note.unit });
    item.append(window.unitscopeBlock(list, layer, note.unit), star);
    if (note.tags.length) {
      const tags = element("ul", "tags");
      tags.append(...note.tags.map((tag) => element("li", "", tag)));
      item.append(tags);
    }
    if (note.text) item.append(element("p", "note-text", note.text));
    return item;
  }

  function noted() {
    const tag = form.tag.value;
    const isChosen = (note) => tag === "all" || (tag === "favourites" ? note.favourite : note.tags.includes(withoutWord(tag)));
    const place = (note) => layers.get(note.layer).number;
    return store.all().filter((note) => isKnown(note) && isChosen(note)).sort((a, b) => place(a) - place(b) || a.unit - b.unit);
  }

  function showTags() {
    const tags = [...new Set(store.all().filter(isKnown).flatMap((note) => note.tags))].sort((a, b) => a.localeCompare(b));
    const options = tags.map((tag) => new Option(tag, `tag ${tag}`));
    form.tag.replaceChildren(...[...form.tag.options].slice(0, 2), ...options);
    form.tag.value = wantedTag;
    if (form.tag.selectedIndex < 0) form.tag.selectedIndex = 0; // nothing has that tag any more, or yet
  }

  // The pages of these units go on in their order.
  function keepList(path, title) {
    const units = shown.map(({ layer, unit }) => [layers.get(layer).slug, unit, layer]);
    window.unitscopeKeepList(list.querySelectorAll("a.block"), { path, title, units });
  }

  function show() {
    const set = setOfAddress();
    const focused = document.activeElement.closest?.("#noted .star");
    if (!set) showTags();
    shown = set ? set.units.map(({ layer, unit }) => store.of(layer, unit)) : noted();
    find("notes-heading").textContent = set ? "A set of units" : "Notes";
    for (const id of ["notes-lead", "tag-choice", "export-notes", "import-notes"]) find(id).hidden = Boolean(set);
    for (const id of ["set-notice", "set-adopt", "all-notes"]) find(id).hidden = !set;
    find("set-adopt").disabled = shown.every((note) => note.favourite);
    for (const id of ["copy-address", "export-csv"]) find(id).disabled = !shown.length;
    find("export-notes").disabled = !store.all().length;
    find("no-notes").hidden = Boolean(set) || shown.length > 0;
    if (set) {
      const rest = set.unknown ? ` ${counted(set.unknown, "unit")} that it names ${set.unknown === 1 ? "is" : "are"} not in this atlas.` : "";
      find("set-notice").textContent = `The address names ${set.units.length ? "these units" : "no unit of this atlas"}.${rest}`;
    }
    find("notes-kept").textContent = store.kept();
    const unknown = set ? 0 : store.all().filter((note) => !isKnown(note)).length;
    form.count.value = counted(shown.length, "unit") + (unknown ? `, ${unknown} not in this atlas` : "");
    const address = `notes.html${set ? location.hash : asAddress(form.tag.value)}`;
    if (JSON.stringify([address, shown]) === drawn) return;
    drawn = JSON.stringify([address, shown]);
    list.replaceChildren(...shown.map(block));
    keepList(address, set ? "Set" : { all: "Notes", favourites: "Favourites" }[form.tag.value] ?? withoutWord(form.tag.value));
    if (focused) [...list.querySelectorAll(".star")].find((star) => star.dataset.layer === focused.dataset.layer && star.dataset.unit === focused.dataset.unit)?.focus();
  }

  // ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  function exportNotes() {
    const content = JSON.stringify(store.asFile(store.all()), null, 1);
    window.unitscopeSave(`${list.dataset.name}.notes.json`, content, "application/json");
  }

  // Where a unit's page is; of a site that lies on a disk, seen from the site.
  function pageOf({ layer, unit }) {
    const address = window.unitscopeAddress(`units/${layers.get(layer).slug}/${unit}.html`);
    return location.protocol === "file:" ? address : new URL(address, location.href).href;
  }

  // The units that are shown, in their order.
  function exportCsv() {
    const rows = shown.map((note) => [note.layer, note.unit, String(note.favourite), note.tags.join("; "), note.text, pageOf(note)]);
    const name = setOfAddress() ? "set" : "notes";
    window.unitscopeSaveCsv(`${list.dataset.name}.${name}.csv`, [["layer", "unit", "favourite", "tags", "note", "address"], ...rows]);
  }

  // Gives notes of a file that may hold anything. Throws an error that says what is wrong with it.
  function parse(text) {
    let content;
    try {
      content = JSON.parse(text);
    } catch {
      throw new Error("it is no JSON");
    }
    if (content?.format !== "unitscope notes" || !Array.isArray(content.units)) throw new Error("it holds no notes of unitscope");
    if (content.version !== 1) throw new Error("it is of another version of unitscope");
    return content;
  }

  async function importNotes(file) {
    if (file.size > MAX_FILE_MB * 2 ** 20) {
      say(`${file.name} can't be imported: it is larger than ${MAX_FILE_MB} MB.`);
      return;
    }
    let content;
    try {
      content = parse(await file.text());
    } catch (error) {
      say(`${file.name} can't be imported: ${error.message}.`);
      return;
    }
    const given = content.units.map(store.clean);
    const known = given.filter((note) => note && isKnown(note));
    const { taken, older } = store.take(known);
    const own = store.asFile([]);
    const parts = [`${counted(taken, "note")} imported`];
    if (older) parts.push(`${older} older than yours left out`);
    if (known.length < given.length) parts.push(`${given.length - known.length} of no unit of this atlas left out`);
    if (content.network !== own.network) parts.push("they were made on another network");
    else if (content.images !== own.images) parts.push("they were made on other images");
    say(`${parts.join("; ")}.`);
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    wantedTag = form.tag.value;
    history.replaceState(null, "", asAddress(wantedTag) || location.pathname + location.search);
    show();
  });
  find("copy-address").addEventListener("click", copyAddress);
  find("export-csv").addEventListener("click", exportCsv);
  find("export-notes").addEventListener("click", exportNotes);
  find("import-notes").addEventListener("click", () => find("import-file").click());
  find("import-file").addEventListener("change", async ({ target }) => {
    if (target.files.length) await importNotes(target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
  find("set-adopt").addEventListener("click", () => {
    const others = shown.filter((note) => !note.favourite);
    for (const { layer, unit } of others) store.change(layer, unit, { favourite: true });
    say(`${counted(others.length, "unit")} added to your favourites.`);
  });
  list.addEventListener("click", (event) => {
    const star = event.target.closest(".star");
    if (star) store.change(star.dataset.layer, Number(star.dataset.unit), { favourite: star.getAttribute("aria-pressed") !== "true" });
  });
  window.addEventListener("hashchange", () => {
    if (location.hash === "#main") return; // a person skips to the content
    wantedTag = tagOfAddress();
    say("");
    find("address-line").hidden = true;
    show();
  });
  document.addEventListener("unitscope:notes", show);
  wantedTag = tagOfAddress();
  show();
}

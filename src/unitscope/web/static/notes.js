// What a person notes of units: a star, tags, a text. The browser keeps it, by the hash of the network and that of the list of images, and
// where the explorer is served from this machine a file beside the atlas does, too. Of two notes of a unit the later one counts.
"use strict";
{
  const { root, network, images, site } = document.documentElement.dataset;
  const KEY = `unitscope-notes ${network} ${images}`;
  const MAX_TAGS = 50, MAX_TAG_LENGTH = 100, MAX_TEXT_LENGTH = 20_000, MAX_LAYER_LENGTH = 1000;
  const PAUSE_MS = 600; // of a person who types, before the file is written
  const ATTEMPTS = 5;
  let notes = new Map(); // by layer and unit
  let storage = null; // why the browser keeps nothing; null where it does
  const UNSAVED = `${KEY} unsaved`;
  let unsaved = new Map(); // by layer and unit, what the file had of a unit that was changed here since
  let isJoined = false; // true where another page changed a note meanwhile
  let file = null; // what is known of the file beside the atlas: { file, problem }; null where there can be none, or nothing is known yet

  const keyOf = ({ layer, unit }) => `${unit} ${layer}`;
  const isEmpty = (note) => !note.favourite && !note.tags.length && !note.text;
  const rankOf = (note) => [note.changed_ms, JSON.stringify(note)];
  const wellFormed = (text) => text.toWellFormed?.() ?? text;

  // Cuts to at most so many UTF-16 units, between letters.
  const cut = (text, length) => (text.length <= length ? text : [...text.slice(0, length)].slice(0, -1).join(""));

  function tagsOf(texts) {
    const tags = texts.filter((text) => typeof text === "string").map((text) => cut(wellFormed(text).trim(), MAX_TAG_LENGTH));
    return [...new Set(tags.filter(Boolean))].slice(0, MAX_TAGS);
  }

  // What may be anything, as a note of these fields in this order, or null.
  function clean(given) {
    const { layer, unit, favourite, tags, text, changed_ms: changed } = given ?? {};
    if (typeof layer !== "string" || layer.length > MAX_LAYER_LENGTH || !Number.isSafeInteger(unit) || unit < 0 || unit >= 2 ** 31) return null;
    return {
      layer,
      unit,
      favourite: favourite === true,
      tags: Array.isArray(tags) ? tagsOf(tags) : [],
      text: typeof text === "string" ? cut(wellFormed(text), MAX_TEXT_LENGTH) : "",
      changed_ms: Number.isSafeInteger(changed) && changed > 0 ? Math.min(changed, Date.now()) : 0,
    };
  }

  // Gives how many notes are new, or later than what was here, and how many are not.
  function merge(given) {
    const counts = { taken: 0, older: 0 };
    for (const note of given.map(clean)) {
      if (!note) continue;
      const own = notes.get(keyOf(note));
      const [time, text] = rankOf(note);
      const [ownTime, ownText] = own ? rankOf(own) : [-1, ""];
      if (time > ownTime || (time === ownTime && text > ownText)) {
        notes.set(keyOf(note), note);
        counts.taken += 1;
      } else if (text !== ownText) counts.older += 1;
    }
    return counts;
  }

  // Of lists that two changed who knew the same one: what each added is there, and what one took out isn't.
  function joinLists(own, theirs, known) {
    const kept = own.filter((item) => theirs.includes(item) || !known.includes(item));
    return [...kept, ...theirs.filter((item) => !own.includes(item) && !known.includes(item))];
  }

  // Of texts the same, line by line.
  function join(own, theirs, known) {
    const lines = [own, theirs, known].map(({ text }) => (text ? text.split("\n") : []));
    return clean({
      ...own,
      favourite: own.favourite === known.favourite ? theirs.favourite : own.favourite,
      tags: joinLists(own.tags, theirs.tags, known.tags),
      text: joinLists(...lines).join("\n"),
      changed_ms: Math.max(Date.now(), own.changed_ms + 1, theirs.changed_ms + 1),
    });
  }

  // Takes in what the file has. A note that was changed here and there since it was read is joined, not replaced.
  function mergeFile(given) {
    for (const note of given.map(clean)) {
      const key = note && keyOf(note);
      const known = unsaved.get(key);
      const [own, theirs] = [notes.get(key), note].map((each) => JSON.stringify(each));
      if (known && own !== theirs && theirs !== JSON.stringify(known)) {
        notes.set(key, join(notes.get(key), note, known));
        unsaved.set(key, note);
        isJoined = true;
      } else merge([note]);
    }
  }

  // ── in the browser ────────────────────────────────────────────────────────────────────────────────────────────────

  function readStorage() {
    try {
      const text = localStorage.getItem(KEY);
      if (text === null) return;
      try {
        merge(JSON.parse(text));
      } catch {
        localStorage.setItem(`${KEY} damaged`, text); // by whom, nobody knows; it isn't lost
      }
    } catch {
      storage = "this browser keeps nothing for pages like this one";
    }
  }

  function writeStorage() {
    try {
      localStorage.setItem(KEY, JSON.stringify([...notes.values()]));
      storage = null;
    } catch (error) {
      storage = error?.name === "QuotaExceededError" ? "this browser has no room for more" : "this browser keeps nothing for pages like this one";
    }
  }

  function readUnsaved() {
    try {
      for (const given of JSON.parse(localStorage.getItem(UNSAVED) ?? "[]")) {
        const note = clean(given);
        if (note && !unsaved.has(keyOf(note))) unsaved.set(keyOf(note), note);
      }
    } catch {
      // what this page knows has to do
    }
  }

  function writeUnsaved() {
    try {
      localStorage.setItem(UNSAVED, JSON.stringify([...unsaved.values()]));
    } catch {
      // it is kept for this page alone
    }
  }

  // The file has these notes now.
  function noteSaved(saved) {
    unsaved = new Map(saved.filter((note) => unsaved.has(keyOf(note)) && notes.get(keyOf(note)) !== note).map((note) => [keyOf(note), note]));
    writeUnsaved();
  }

  window.addEventListener("storage", (event) => {
    if (event.key !== KEY) return;
    readStorage();
    tell();
  });

  // ── beside the atlas ──────────────────────────────────────────────────────────────────────────────────────────────

  const asFile = (units) => ({ format: "unitscope notes", version: 1, network, images, units });

  async function synchronise() {
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
      const answer = await fetch(`${root}notes.json`, { cache: "no-store" });
      const stored = await answer.json();
      file = { file: stored.file, problem: stored.problem };
      if (file.problem) return;
      readUnsaved();
      mergeFile(stored.notes.units);
      writeStorage();
      const units = [...notes.values()];
      const there = new Map(stored.notes.units.map((note) => [keyOf(note), JSON.stringify(clean(note))]));
      if (units.every((note) => there.get(keyOf(note)) === JSON.stringify(note))) {
        noteSaved(units);
        return;
      }
      const headers = { "Content-Type": "application/json", "If-Match": answer.headers.get("ETag") };
      const taken = await fetch(`${root}notes.json`, { method: "PUT", headers, body: JSON.stringify(asFile(units)) });
      if (taken.ok) {
        noteSaved(units);
        return;
      }
      file.problem = (await taken.text()).replace(/\.$/, "");
      if (taken.status !== 412) return; // else another tab has written meanwhile
    }
  }

  let running = null, isWanted = false;

  // One at a time; what is asked for meanwhile is done after it.
  async function save() {
    if (site !== undefined) return;
    isWanted = true;
    while (isWanted && !running) {
      isWanted = false;
      running = synchronise();
      try {
        await running;
      } catch {
        file = { file: "notes.json", problem: "the server can't be reached" };
      }
      running = null;
      tell();
    }
  }

  let timer = 0;

  function saveSoon() {
    clearTimeout(timer);
    timer = setTimeout(save, PAUSE_MS);
  }

  // ── for the pages ─────────────────────────────────────────────────────────────────────────────────────────────────

  const tell = () => document.dispatchEvent(new Event("unitscope:notes"));

  const noteOf = (layer, unit) => notes.get(keyOf({ layer, unit })) ?? { layer, unit, favourite: false, tags: [], text: "", changed_ms: 0 };

  function change(layer, unit, changes) {
    readStorage(); // another tab may have written
    const note = noteOf(layer, unit);
    if (site === undefined) {
      readUnsaved();
      if (!unsaved.has(keyOf(note))) unsaved.set(keyOf(note), note);
      writeUnsaved();
    }
    const now = Math.max(Date.now(), note.changed_ms + 1);
    const changed = { ...clean({ ...note, ...changes, layer, unit }), changed_ms: now };
    notes.set(keyOf(note), changed);
    writeStorage();
    saveSoon();
    tell();
  }

  // Merges notes of another file.
  function take(given) {
    readStorage();
    const counts = merge(given);
    writeStorage();
    saveSoon();
    tell();
    return counts;
  }

  function kept() {
    const beside = file && !file.problem;
    const places = [...(beside ? [`in ${file.file} beside the atlas`] : []), ...(storage ? [] : ["in this browser"])];
    const place = places.length ? `Kept ${places.join(", and ")}.` : `Kept as long as this page is open: ${storage}.`;
    if (file?.problem) return `${place} Not beside the atlas: ${file.problem}.`;
    return isJoined ? `${place} Another page has changed a note meanwhile: what both noted is in it.` : place;
  }

  window.unitscopeNotes = {
    tagsOf,
    all: () => [...notes.values()].filter((note) => !isEmpty(note)),
    of: noteOf,
    asFile,
    change,
    take,
    clean,
    kept,
  };

  readStorage();
  save();
}

// The row of notes on a unit's page.
{
  const store = window.unitscopeNotes;
  const find = (id) => document.getElementById(id);
  const row = () => find("unit-note");
  const unitOf = (element) => [element.dataset.layer, Number(element.dataset.unit)];

  function show() {
    const element = row();
    if (!element) return;
    const note = store.of(...unitOf(element));
    find("favourite").setAttribute("aria-pressed", String(note.favourite));
    find("favourite").textContent = note.favourite ? "★" : "☆";
    find("note-glance").textContent = [note.tags.join(", "), note.text].filter(Boolean).join(" · ");
    find("notes-kept").textContent = store.kept();
    fill(find("note-tags"), note.tags.join(", "), (text) => store.tagsOf(text.split(",")).join(", "));
    fill(find("note-text"), note.text, (text) => text);
  }

  // While a person types, a field is left alone unless it says something else: another page has written.
  function fill(field, text, read) {
    if (document.activeElement === field && read(field.value) === text) return;
    if (field.value === text) return;
    const { selectionStart, selectionEnd } = field;
    field.value = text;
    if (document.activeElement === field) field.setSelectionRange(selectionStart, selectionEnd);
  }

  function toggleFavourite() {
    const [layer, unit] = unitOf(row());
    store.change(layer, unit, { favourite: !store.of(layer, unit).favourite });
  }

  function openFields(isOpen) {
    find("note-fields").hidden = !isOpen;
    find("note-open").setAttribute("aria-expanded", String(isOpen));
    find("note-glance").hidden = isOpen;
    find(isOpen ? "note-tags" : "note-open").focus();
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest("#favourite")) toggleFavourite();
    if (event.target.closest("#note-open")) openFields(find("note-fields").hidden);
  });
  document.addEventListener("input", (event) => {
    if (event.target.id === "note-tags") store.change(...unitOf(row()), { tags: event.target.value.split(",") });
    if (event.target.id === "note-text") store.change(...unitOf(row()), { text: event.target.value });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target.closest("#note-fields")) openFields(false);
    if (event.key !== "f" || event.defaultPrevented || event.repeat || event.altKey || event.ctrlKey || event.metaKey || !row()) return;
    if (event.target.closest("input, select, textarea, dialog") || document.querySelector("dialog[open]")) return;
    toggleFavourite();
  });
  document.addEventListener("unitscope:part", show);
  document.addEventListener("unitscope:notes", show);
  show();
}

// The stars on a layer's page.
{
  const store = window.unitscopeNotes;
  const grid = document.querySelector("#units[data-layer]");

  function show() {
    const favourites = new Set(store.all().filter((note) => note.favourite && note.layer === grid.dataset.layer).map((note) => String(note.unit)));
    for (const block of grid.children) {
      const isFavourite = favourites.has(block.dataset.unit);
      if (isFavourite === (block.dataset.favourite !== undefined)) continue;
      if (isFavourite) {
        const star = document.createElement("span");
        star.className = "star";
        star.setAttribute("role", "img");
        star.setAttribute("aria-label", "favourite");
        star.textContent = "★";
        block.dataset.favourite = "1";
        block.querySelector(".block .unit-number").after(star);
      } else {
        delete block.dataset.favourite;
        block.querySelector(".star").remove();
      }
    }
  }

  if (grid) {
    document.addEventListener("unitscope:notes", show);
    show();
  }
}

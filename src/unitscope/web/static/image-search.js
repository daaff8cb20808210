// Search by image: uploads the image that a person chooses, or names the one of the atlas that the address names, and shows the results. The
// image that was uploaded last stays in this browser, to come back to from the page of a unit.
"use strict";
{
  const drop = document.getElementById("drop");
  const file = document.getElementById("file");
  const status = document.getElementById("upload-status");
  const results = document.getElementById("upload-results");
  const keptNote = document.getElementById("kept-image");
  const MAX_AGE_MS = 24 * 60 * 60 * 1000;
  let current = null; // the image that is shown
  let mark = null; // by which the address names the image that this browser keeps
  let offered = null; // the image that the browser was asked to keep, whether it does or not
  let requests = 0;

  function showStatus(text) {
    status.textContent = text;
    status.hidden = !text;
    if (text) status.scrollIntoView({ block: "nearest" });
  }

  // `image` is a file, or names one of the atlas: `image=17`. `query` says which class is explained, by which layer, and which units are
  // taken away.
  async function upload(image, query = "") {
    showStatus("The network is running …");
    if (image !== current) results.replaceChildren();
    current = image;
    const isFile = image instanceof Blob;
    const request = ++requests;
    let response;
    let text;
    try {
      const sent = isFile ? { body: image, headers: { "Content-Type": "application/octet-stream" } } : {};
      response = await fetch(`image-search?${isFile ? "" : `${image}&`}${query}`, { method: "POST", ...sent });
      text = await response.text();
    } catch {
      if (request === requests) showStatus("The server can't be reached.");
      return;
    }
    if (request !== requests) return; // something else was asked meanwhile
    if (!response.ok) {
      // An address may ask what can't be answered, such as a class that isn't there; the image is shown all the same.
      if (!results.firstChild && String(query)) await upload(image);
      showStatus(text);
      return;
    }
    const { name, value, type } = results.contains(document.activeElement) ? document.activeElement : {};
    results.innerHTML = text; // the server's own template escaped it
    const same = (field) => field.name === name && (type !== "checkbox" || field.value === value);
    if (name) [...results.querySelectorAll("input, select, button")].find(same)?.focus();
    showStatus("");
    if (!isFile) return;
    if (image !== offered) keep(image);
    const uploaded = document.getElementById("uploaded-image");
    const address = URL.createObjectURL(image);
    uploaded.addEventListener("load", () => URL.revokeObjectURL(address));
    uploaded.setAttribute("href", address);
  }

  // What is asked now stands in the address, to come back to, where the image can be had again.
  function question(changes = {}) {
    const form = document.getElementById("why-form");
    const asked = new URLSearchParams(form ? new FormData(form) : {});
    for (const [name, value] of Object.entries(changes)) asked.set(name, value);
    for (const box of results.querySelectorAll('input[name="without"]:checked')) asked.append("without", box.value);
    const named = current instanceof Blob ? mark && `upload=${mark}` : current;
    if (named) history.replaceState(null, "", `?${named}&${asked}`);
    return asked;
  }

  const ask = (changes) => upload(current, question(changes));

  // ── the uploaded image, kept in this browser; where it can't be (no space, a private window), it is gone with the page ─────────────

  // What `use` asks of the store that holds the last image.
  function inStore(mode, use) {
    return new Promise((resolve, reject) => {
      const opening = indexedDB.open("unitscope-image-search", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("images");
      opening.onerror = () => reject(opening.error);
      opening.onsuccess = () => {
        const database = opening.result;
        database.onversionchange = () => database.close();
        const transaction = database.transaction("images", mode);
        const request = use(transaction.objectStore("images"));
        transaction.oncomplete = () => {
          database.close();
          resolve(request.result);
        };
        transaction.onabort = () => {
          database.close();
          reject(transaction.error);
        };
      };
    });
  }

  async function keep(image) {
    offered = image;
    const ownMark = [...crypto.getRandomValues(new Uint32Array(2))].map((number) => number.toString(36)).join("");
    try {
      await inStore("readwrite", (images) => images.put({ image, mark: ownMark, time: Date.now() }, "last"));
    } catch {
      await forget();
      return;
    }
    if (image !== current) return;
    mark = ownMark;
    keptNote.hidden = false;
    question();
  }

  async function forget() {
    mark = null;
    keptNote.hidden = true;
    try {
      await inStore("readwrite", (images) => images.delete("last"));
    } catch {
      // nothing is kept
    }
  }

  // The image of a mark; null where another one was uploaded since, or where this one is a day old.
  async function keptImage(asked) {
    try {
      const last = await inStore("readonly", (images) => images.get("last"));
      if (!last) return null;
      if (Date.now() - last.time > MAX_AGE_MS) {
        await forget();
        return null;
      }
      return last.mark === asked ? last.image : null;
    } catch {
      return null;
    }
  }

  async function showKept(asked, query) {
    const image = await keptImage(asked);
    if (requests || !asked) return; // a person has chosen another meanwhile
    if (!image) {
      showStatus("This browser no longer has the image; choose it again.");
      return;
    }
    [mark, offered] = [asked, image];
    keptNote.hidden = false;
    upload(image, query);
  }

  function choose(image) {
    mark = null;
    keptNote.hidden = true;
    history.replaceState(null, "", location.pathname);
    upload(image);
  }

  document.getElementById("forget-image").addEventListener("click", () => {
    history.replaceState(null, "", location.pathname);
    forget();
  });

  results.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  results.addEventListener("change", (event) => {
    if (event.target.name === "without" || event.target.name === "layer") ask();
  });
  results.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-class]");
    if (chosen) ask({ class: chosen.dataset.class });
  });

  // A link on the page of an image, or of a mistake, or the way back to an image that was uploaded.
  function searchAddress() {
    const asked = new URLSearchParams(location.search);
    for (const name of ["image", "predicted-image"]) {
      if (!asked.has(name)) continue;
      const image = new URLSearchParams({ [name]: asked.get(name) }).toString();
      asked.delete(name);
      upload(image, asked);
      return;
    }
    const askedMark = asked.get("upload");
    asked.delete("upload");
    showKept(askedMark, asked);
  }

  searchAddress();

  file.addEventListener("change", () => file.files.length && choose(file.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
    });
  }
}

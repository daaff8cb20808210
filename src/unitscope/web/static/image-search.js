// Search by image: uploads the image that a person chooses, or names the one of the atlas that the address names, and shows the results.
"use strict";
{
  const drop = document.getElementById("drop");
  const file = document.getElementById("file");
  const status = document.getElementById("upload-status");
  const results = document.getElementById("upload-results");
  let current = null; // the image that is shown

  function showStatus(text) {
    status.textContent = text;
    status.hidden = !text;
    if (text) status.scrollIntoView({ block: "nearest" });
  }

  // `image` is a file, or names one of the atlas: `image=17`. `question` says which class is explained, by which layer, and which units are
  // taken away.
  async function upload(image, question = "") {
    showStatus("The network is running …");
    if (image !== current) results.replaceChildren();
    current = image;
    const isFile = image instanceof Blob;
    let response;
    try {
      const sent = isFile ? { body: image, headers: { "Content-Type": "application/octet-stream" } } : {};
      response = await fetch(`image-search?${isFile ? "" : `${image}&`}${question}`, { method: "POST", ...sent });
    } catch {
      showStatus("The server can't be reached.");
      return;
    }
    const text = await response.text();
    if (!response.ok) {
      showStatus(text);
      return;
    }
    const { name, value, type } = results.contains(document.activeElement) ? document.activeElement : {};
    results.innerHTML = text; // the server's own template escaped it
    const same = (field) => field.name === name && (type !== "checkbox" || field.value === value);
    if (name) [...results.querySelectorAll("input, select, button")].find(same)?.focus();
    showStatus("");
    if (!isFile) return;
    const uploaded = document.getElementById("uploaded-image");
    const address = URL.createObjectURL(image);
    uploaded.addEventListener("load", () => URL.revokeObjectURL(address));
    uploaded.setAttribute("href", address);
  }

  function ask(changes = {}) {
    const question = new URLSearchParams(new FormData(document.getElementById("why-form")));
    for (const [name, value] of Object.entries(changes)) question.set(name, value);
    for (const box of results.querySelectorAll('input[name="without"]:checked')) question.append("without", box.value);
    // What is asked of an image of the atlas stands in the address, to come back to.
    if (!(current instanceof Blob)) history.replaceState(null, "", `?${current}&${question}`);
    upload(current, question);
  }

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

  // A link on the page of an image, or of a mistake.
  function searchAddress() {
    const asked = new URLSearchParams(location.search);
    for (const name of ["image", "predicted-image"]) {
      if (!asked.has(name)) continue;
      const image = new URLSearchParams({ [name]: asked.get(name) }).toString();
      asked.delete(name);
      upload(image, asked);
      return;
    }
  }

  searchAddress();

  file.addEventListener("change", () => file.files.length && upload(file.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
    });
  }
}

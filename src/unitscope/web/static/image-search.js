// Search by image: uploads the image that a person chooses, and shows the results.
"use strict";
{
  const drop = document.getElementById("drop");
  const file = document.getElementById("file");
  const status = document.getElementById("upload-status");
  const results = document.getElementById("upload-results");

  function showStatus(text) {
    status.textContent = text;
    status.hidden = !text;
  }

  async function upload(image) {
    showStatus("The network is running …");
    results.replaceChildren();
    let response;
    try {
      response = await fetch("image-search", { method: "POST", body: image, headers: { "Content-Type": "application/octet-stream" } });
    } catch {
      showStatus("The server can't be reached.");
      return;
    }
    const text = await response.text();
    if (!response.ok) {
      showStatus(text);
      return;
    }
    results.innerHTML = text; // the server's own template escaped it
    const uploaded = document.getElementById("uploaded-image");
    const address = URL.createObjectURL(image);
    uploaded.addEventListener("load", () => URL.revokeObjectURL(address));
    uploaded.setAttribute("href", address);
    showStatus("");
  }

  file.addEventListener("change", () => file.files.length && upload(file.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
    });
  }
}

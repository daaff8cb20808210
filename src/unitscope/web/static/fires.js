// "What fires here": sends the image that a person gives, and shows what comes back.
"use strict";
{
  const drop = document.getElementById("drop");
  const file = document.getElementById("file");
  const said = document.getElementById("said");
  const place = document.getElementById("fired");

  function say(text) {
    said.textContent = text;
    said.hidden = !text;
  }

  async function send(image) {
    say("The network is running …");
    place.replaceChildren();
    let answer;
    try {
      answer = await fetch("fires", { method: "POST", body: image, headers: { "Content-Type": "application/octet-stream" } });
    } catch {
      say("The server can't be reached.");
      return;
    }
    const text = await answer.text();
    if (!answer.ok) {
      say(text);
      return;
    }
    place.innerHTML = text; // what the server's own template escaped
    const own = document.getElementById("own");
    const shown = URL.createObjectURL(image);
    own.addEventListener("load", () => URL.revokeObjectURL(shown));
    own.setAttribute("href", shown);
    say("");
  }

  file.addEventListener("change", () => file.files.length && send(file.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
    });
  }
}

// The page of an exported site that shows units, images and names: the part that its address names.
"use strict";
{
  const main = document.getElementById("main");
  const partOf = window.unitscopePartOf;

  function say(text) {
    const notice = document.createElement("p");
    notice.className = "notice";
    notice.textContent = text;
    document.title = "unitscope";
    main.replaceChildren(notice);
  }

  async function show() {
    const part = partOf(location.hash);
    if (part === "main") return; // a person skips to the content
    let found;
    try {
      found = await window.unitscopePart(part);
    } catch (error) {
      say(`This can't be shown: ${error.message}.`);
      return;
    }
    if (part !== partOf(location.hash)) return; // a person went on meanwhile
    if (!found) {
      say("There is nothing at this address.");
      return;
    }
    const [title, content] = found;
    document.title = `${title} · unitscope`;
    main.innerHTML = content; // the exporter's own template escaped it
    window.scrollTo(0, 0);
    document.dispatchEvent(new Event("unitscope:part"));
  }

  window.addEventListener("hashchange", show);
  show();
}

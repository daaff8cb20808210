// The page of an exported site that shows units, images and names. Bundles hold what they look like, and are loaded as scripts, since a
// page that lies on a disk may load nothing else.
"use strict";
{
  const main = document.getElementById("main");
  const { layers, bundles, unitsPerBundle } = window.unitscopeParts;
  const loading = new Map(); // by bundle, a promise of its parts
  const arrived = new Map(); // by bundle, what is told when it is there

  window.unitscopeBundle = (name, content) => arrived.get(name)?.(content);

  async function unpack(content) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const { parts, titles, sections } = JSON.parse(await new Response(stream).text());
    return new Map(parts.map((part, index) => [part, [titles[index], sections.map((column) => column[index]).join("")]]));
  }

  function load(name) {
    if (!loading.has(name)) {
      loading.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        arrived.set(name, (content) => resolve(unpack(content)));
        script.src = `parts/${name}.js`;
        script.onerror = () => reject(new Error(`parts/${name}.js can't be loaded`));
        document.head.append(script);
      }));
    }
    return loading.get(name);
  }

  // The same sum as of Fowler, Noll and Vo (FNV-1a, 32 bits), over the part's address in UTF-8.
  function hash(text) {
    let sum = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) sum = Math.imul(sum ^ byte, 0x01000193) >>> 0;
    return sum;
  }

  function bundleOf(part) {
    const [kind, layer, unit] = part.split("/");
    if (kind !== "units") return `part-${hash(part) % bundles}`;
    if (!Object.hasOwn(layers, layer)) return null;
    const [number, units] = layers[layer];
    return Number(unit) < units ? `units-${number}-${Math.floor(Number(unit) / unitsPerBundle)}` : null;
  }

  function say(text) {
    const notice = document.createElement("p");
    notice.className = "notice";
    notice.textContent = text;
    document.title = "unitscope";
    main.replaceChildren(notice);
  }

  // Behind a question mark stands the list that a person came from.
  const partOf = (hash) => decodeURI(hash.slice(1).split("?")[0]);

  async function show() {
    const part = partOf(location.hash);
    if (part === "main") return; // a person skips to the content
    const bundle = part && bundleOf(part);
    let parts;
    try {
      parts = bundle ? await load(bundle) : new Map();
    } catch (error) {
      say(`This can't be shown: ${error.message}.`);
      return;
    }
    if (part !== partOf(location.hash)) return; // a person went on meanwhile
    if (!parts.has(part)) {
      say("There is nothing at this address.");
      return;
    }
    const [title, content] = parts.get(part);
    document.title = `${title} · unitscope`;
    main.innerHTML = content; // the exporter's own template escaped it
    window.scrollTo(0, 0);
    document.dispatchEvent(new Event("unitscope:part"));
  }

  window.addEventListener("hashchange", show);
  show();
}

// The bundles of an exported site, which hold its parts: what pages of units, images and names show. They are loaded as scripts, since a page
// that lies on a disk may load nothing else.
"use strict";
{
  const { root } = document.documentElement.dataset;
  const { layers, bundles, unitsPerBundle } = window.unitscopeParts;
  const MOST_KEPT = 8; // unpacked, each takes some 2 MB
  const loading = new Map(); // by bundle, a promise of its parts
  const arrived = new Map(); // by bundle, what is told when it is there
  const kept = []; // bundles that are there, the oldest first

  window.unitscopeBundle = (name, content) => arrived.get(name)?.(content);

  async function unpack(content) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const { parts, titles, sections } = JSON.parse(await new Response(stream).text());
    return new Map(parts.map((part, index) => [part, [titles[index], sections.map((column) => column[index]).join("")]]));
  }

  function request(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      arrived.set(name, (content) => {
        script.remove();
        resolve(unpack(content));
      });
      script.src = `${root}parts/${name}.js`;
      script.onerror = () => reject(new Error(`parts/${name}.js can't be loaded`));
      document.head.append(script);
    });
  }

  async function load(name) {
    if (!loading.has(name)) {
      loading.set(name, request(name));
      await loading.get(name);
      kept.push(name);
      if (kept.length > MOST_KEPT) loading.delete(kept.shift());
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

  // Title and content of the part at an address, such as units/features.4/17; nothing where there is none. An error where its bundle can't be
  // loaded.
  window.unitscopePart = async (part) => {
    const bundle = part && bundleOf(part);
    return bundle ? (await load(bundle)).get(part) : undefined;
  };

  // Which part an address leads to; behind a question mark stands the list that a person came from.
  window.unitscopePartOf = (hash) => decodeURI(hash.slice(1).split("?")[0]);
}

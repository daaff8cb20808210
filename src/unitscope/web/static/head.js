// What every page needs before it is drawn: its colours, its addresses, what patches show, and an eye on images that are missing.
"use strict";

// Light or dark: the system's choice until the button says otherwise. Loaded before the page is drawn.
{
  const KEY = "unitscope-theme";
  const root = document.documentElement;

  function storedTheme() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // a browser may forbid it, as some do for files
    }
  }

  function storeTheme(theme) {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // it is kept for this page alone
    }
  }

  const theme = storedTheme();
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  root.dataset.scripts = "";

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme")?.addEventListener("click", () => {
      const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = isDark ? "light" : "dark";
      storeTheme(root.dataset.theme);
    });
  });
}

// What patches show: the switch in the head says it, and it stays so on every page. The server reads it from a cookie; an exported site, which
// has no server, from this browser's storage. Where neither is allowed, as in some frames, it stands in the address.
{
  const KEY = "unitscope-patch";
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  const numbers = (text) => text.split(" ").map(Number);

  // A box as left, top, width and height.
  function intersection([x, y, width, height], [left, top, otherWidth, otherHeight]) {
    const x1 = Math.max(x, left), y1 = Math.max(y, top);
    return [x1, y1, Math.max(0, Math.min(x + width, left + otherWidth) - x1), Math.max(0, Math.min(y + height, top + otherHeight) - y1)];
  }

  window.unitscopePatches = {
    kind() {
      const kind = stored();
      return kind === "field" || kind === "image" ? kind : "auto";
    },

    // What a patch of some kind shows of its image, by what its button says: its box, and the part of it that the network sees.
    crop({ patch, receptiveField, input, size }, kind) {
      const box = numbers({ field: receptiveField ?? patch, image: input }[kind] ?? patch);
      return { box, seen: intersection(intersection(box, numbers(input)), [0, 0, ...numbers(size)]) };
    },
  };

  function choose(kind) {
    try {
      localStorage.setItem(KEY, kind);
    } catch {
      // the cookie may do
    }
    if (root.dataset.site !== undefined) {
      location.reload();
      return;
    }
    document.cookie = `${KEY}=${kind}; path=/; max-age=31536000; SameSite=Strict`;
    const address = new URL(location.href);
    if (document.cookie.split("; ").includes(`${KEY}=${kind}`)) address.searchParams.delete("patch");
    else address.searchParams.set("patch", kind);
    if (address.href === location.href) location.reload();
    else location.replace(address);
  }

  document.addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("patches");
    if (!select) return;
    if (root.dataset.site !== undefined) select.value = window.unitscopePatches.kind();
    select.addEventListener("change", () => choose(select.value));
  });
}

// On a narrow screen the links of the head are behind a button.
document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("menu-open");
  button?.addEventListener("click", () => {
    const isOpen = document.getElementById("menu").toggleAttribute("data-open");
    button.setAttribute("aria-expanded", String(isOpen));
  });
});

// Numbers as pages write them, in three digits with a true minus (numbers.py), and back.
window.unitscopeNumbers = {
  text: (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))).replaceAll("-", "−") : "–"),
  value: (text) => Number(text.replaceAll("−", "-")),
};

// Where a page lies that is served at `path`: of an exported site, most are parts of page.html.
window.unitscopeAddress = (path) => {
  const { root, site } = document.documentElement.dataset;
  const isPart = site !== undefined && /^(units|images|labels|concepts|classes|mistakes)\/.*\.html$/.test(path);
  return root + (isPart ? `page.html#${path.slice(0, -".html".length)}` : path);
};

// Says which images can't be shown, since they are gone or were changed after the scan. Loaded before the first of them.
{
  const missing = new Set();

  document.addEventListener(
    "error",
    (event) => {
      const element = event.target;
      if (!(element instanceof HTMLImageElement || element instanceof SVGImageElement)) return;
      missing.add(element.getAttribute("src") ?? element.getAttribute("href"));
      element.closest(".example, .stage, .thumbnails li, .block")?.classList.add("missing");
      const notice = document.getElementById("missing-images");
      if (!notice) return;
      notice.hidden = false;
      notice.textContent =
        missing.size === 1
          ? "One image of this page can't be shown: it is gone, or has changed since the scan."
          : `${missing.size} images of this page can't be shown: they are gone, or have changed since the scan.`;
    },
    true,
  );
}

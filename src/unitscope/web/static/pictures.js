// Says which pictures can't be shown, since their images are gone or were changed after the scan. Loaded before the first of them.
"use strict";
{
  const gone = new Set();

  document.addEventListener(
    "error",
    (event) => {
      const element = event.target;
      if (!(element instanceof HTMLImageElement || element instanceof SVGImageElement)) return;
      gone.add(element.getAttribute("src") ?? element.getAttribute("href"));
      element.closest(".example, .stage, .thumbs li, .block")?.classList.add("gone");
      const note = document.getElementById("gone");
      if (!note) return;
      note.hidden = false;
      note.textContent =
        gone.size === 1
          ? "One image of this page can't be shown: it is gone, or has changed since the scan."
          : `${gone.size} images of this page can't be shown: they are gone, or have changed since the scan.`;
    },
    true,
  );
}

// Says which images can't be shown, since they are gone or were changed after the scan. Loaded before the first of them.
"use strict";
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

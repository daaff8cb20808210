// Arrow keys go to the page before and after, and up. Not while a person types, chooses or scrolls sideways.
"use strict";
{
  const rel = { ArrowLeft: "prev", ArrowRight: "next", ArrowUp: "up" };
  const busy = (element) => element.closest("input, select, textarea, dialog") !== null;

  document.addEventListener("keydown", (event) => {
    const wanted = rel[event.key];
    if (!wanted || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (busy(event.target) || (wanted === "up" && window.scrollY > 0)) return;
    const link = document.querySelector(`a[rel="${wanted}"]`);
    if (!link) return;
    event.preventDefault();
    link.click();
  });
}

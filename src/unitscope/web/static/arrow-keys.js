// Arrow keys go to the page before and after, and up. Not while a person types, chooses or scrolls sideways.
"use strict";
{
  const RELATIONS = { ArrowLeft: "prev", ArrowRight: "next", ArrowUp: "up" };
  const takesKeys = (element) => element.closest("input, select, textarea, dialog") !== null;

  document.addEventListener("keydown", (event) => {
    const relation = RELATIONS[event.key];
    if (!relation || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (takesKeys(event.target) || (relation === "up" && window.scrollY > 0)) return;
    const link = document.querySelector(`a[rel="${relation}"]`);
    if (!link) return;
    event.preventDefault();
    link.click();
  });
}

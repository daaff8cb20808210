// Light or dark: the system's choice until the button says otherwise. Loaded before the page is drawn.
"use strict";
{
  const root = document.documentElement;
  const kept = () => {
    try {
      return localStorage.getItem("unitscope-theme");
    } catch {
      return null; // a browser may forbid it, as some do for files
    }
  };
  const asked = kept();
  if (asked === "light" || asked === "dark") root.dataset.theme = asked;

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme")?.addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      try {
        localStorage.setItem("unitscope-theme", root.dataset.theme);
      } catch {
        // it holds for this page then
      }
    });
  });
}

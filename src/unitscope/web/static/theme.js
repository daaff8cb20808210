// Light or dark: the system's choice until the button says otherwise. Loaded before the page is drawn.
"use strict";
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

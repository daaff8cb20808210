// Where a page lies that is served at `path`: of an exported site, most are parts of page.html.
"use strict";
window.unitscopeAddress = (path) => {
  const { root, site } = document.documentElement.dataset;
  const isPart = site !== undefined && /^(units|images|labels|concepts|classes|mistakes)\/.*\.html$/.test(path);
  return root + (isPart ? `page.html#${path.slice(0, -".html".length)}` : path);
};

// Downloads that depend on what is shown: tables and a sheet of the units that are chosen, and, of an exported site, which has no server, the
// page's units, peaks or troughs as CSV.
"use strict";
{
  const MAX_SHEET_UNITS = 400; // as downloads.py has it
  const menu = document.getElementById("downloads");
  const isSite = document.documentElement.dataset.site !== undefined;
  const shownUnits = () => [...document.querySelectorAll("#units > li:not([hidden])")];

  const number = (text) => (text === undefined || text === null || text === "" || !Number.isFinite(Number(text)) ? "" : Number(text));

  // The units of a layer that are shown, with what they can be sorted by.
  function unitRows() {
    const keys = [...document.querySelectorAll('#grid-choice select[name="sort"] option[data-index]')];
    const { layer } = document.getElementById("units").dataset;
    const names = ["layer", "unit", "name", "belief", "labels", "dead", "no_preference", ...keys.map((key) => key.value)];
    const rows = shownUnits().map((block) => [block, block.dataset]).map(([block, dataset]) => [
      layer, number(dataset.unit), dataset.name ?? "", dataset.belief ?? "", window.unitscopeLabels(block).join("; "), String("dead" in dataset), String("noPreference" in dataset),
      ...keys.map((key) => number(window.unitscopeValue(block, key.dataset.index))),
    ]);
    return [`${layer}.csv`, [names, ...rows]];
  }

  // A unit's peaks or troughs. Values have the digits that the page shows.
  function exampleRows(selector, ending) {
    const { layer, unit } = document.querySelector("[data-layer][data-unit]").dataset;
    const names = ["layer", "unit", "rank", "value", "image", "key", "label", "patch_left", "patch_top", "patch_width", "patch_height"];
    const rows = [...document.querySelectorAll(selector)].map((example, index) => {
      const { image, key, patch } = example.querySelector("button.show").dataset;
      const label = example.querySelector("figcaption a")?.textContent ?? "";
      return [layer, number(unit), index + 1, window.unitscopeNumbers.value(example.querySelector(".value").textContent), number(image), key, label, ...patch.split(" ").map(number)];
    });
    return [`${layer}-${unit}${ending}.csv`, [names, ...rows]];
  }

  // The units of a name or a label, those that aren't shown yet as well.
  function listedRows() {
    const { columns, layers, units } = JSON.parse(document.getElementById("listed-units").textContent);
    const name = document.getElementById("unit-list").dataset.list.replace(/\.html$/, "").replaceAll("/", "-");
    return [`${name}.csv`, [["layer", "unit", ...columns], ...units.map(([layer, unit, , ...values]) => [layers[layer][1], unit, ...values.map((value) => value ?? "")])]];
  }

  const EXAMPLES = { peaks: [".patches .example", ""], troughs: [".troughs .example", "-troughs"] };
  const buttons = [...menu.querySelectorAll("button[data-rows]")];

  function downloadCsv({ dataset }) {
    const rows = { units: unitRows, listed: listedRows }[dataset.rows] ?? (() => exampleRows(...EXAMPLES[dataset.rows]));
    window.unitscopeSaveCsv(...rows());
  }

  // Parts that show no patches have nothing to keep.
  const SHOWN = { units: "#units", listed: "#listed-units", peaks: EXAMPLES.peaks[0], troughs: EXAMPLES.troughs[0] };
  const showMenu = () => {
    for (const button of buttons) button.parentElement.hidden = !document.querySelector(SHOWN[button.dataset.rows]);
    menu.hidden = buttons.every((button) => button.parentElement.hidden);
    menu.open = false;
  };

  // Tables hold the list that is shown; where nothing was chosen that is all units by number, as their labels say.
  function chooseTables() {
    const count = shownUnits().length;
    const query = window.unitscopeListQuery();
    const rows = count === 1 ? "The unit shown" : `The ${count.toLocaleString("en")} units shown, in their order,`;
    for (const hint of menu.querySelectorAll(".hint")) hint.hidden = !count;
    for (const link of menu.querySelectorAll('a[href*=".csv"], a[href*=".parquet"], button[data-rows="units"]')) {
      const { dataset } = link;
      link.parentElement.hidden = !count;
      dataset.label ??= link.textContent;
      link.textContent = query ? `${rows} as ${dataset.label.split(" ").at(-1)}` : dataset.label;
      if (link.hasAttribute("href")) {
        dataset.all ??= link.getAttribute("href");
        link.setAttribute("href", query ? `${dataset.all}?${query}` : dataset.all);
      }
    }
  }

  function chooseSheet() {
    const sheet = menu.querySelector('a[href*=".png"]');
    if (!sheet) return;
    const units = shownUnits().map((block) => block.dataset.unit);
    const drawn = units.slice(0, MAX_SHEET_UNITS);
    sheet.dataset.all ??= sheet.getAttribute("href");
    sheet.setAttribute("href", `${sheet.dataset.all}?units=${drawn.join(",")}`);
    sheet.textContent = units.length > drawn.length ? `Sheet of the first ${drawn.length} of ${units.length.toLocaleString("en")} units shown as PNG` : `Sheet of the ${units.length.toLocaleString("en")} units shown as PNG`;
    sheet.parentElement.hidden = !units.length;
  }

  function choose() {
    if (!menu.open) return;
    chooseTables();
    chooseSheet();
  }

  for (const button of buttons) button.addEventListener("click", () => downloadCsv(button));
  if (isSite) {
    document.addEventListener("unitscope:part", showMenu);
    showMenu();
  }
  const form = document.getElementById("grid-choice");
  if (form) {
    menu.addEventListener("toggle", choose);
    form.addEventListener("input", () => setTimeout(choose));
    window.addEventListener("hashchange", () => setTimeout(choose));
  }
}

// The layer page: order, choice and size of its blocks. What is chosen stays in the address, so that a link shows the same.
"use strict";
{
  const form = document.getElementById("choice");
  const grid = document.getElementById("units");
  const blocks = [...grid.children];
  const asked = new URLSearchParams(location.hash.slice(1));

  const number = (block, name) => (block.dataset[name] === "" || block.dataset[name] === undefined ? -Infinity : Number(block.dataset[name]));
  const labels = new Map(blocks.map((block) => [block, (block.dataset.labels ?? "").split("\n")]));

  const shown = {
    all: () => true,
    fires: (block) => !block.dataset.dead,
    dead: (block) => Boolean(block.dataset.dead),
    tied: (block) => Boolean(block.dataset.tied),
    always: (block) => Number(block.dataset.active) === 1,
  };

  function order() {
    const by = form.sort.value;
    const sorted = [...blocks];
    if (by !== "unit") {
      const values = new Map(blocks.map((block) => [block, number(block, by)]));
      sorted.sort((a, b) => values.get(b) - values.get(a) || number(a, "unit") - number(b, "unit"));
    }
    grid.replaceChildren(...sorted);
  }

  function choose() {
    const fits = shown[form.show?.value ?? "all"];
    const label = form.label?.value.trim().toLowerCase() ?? "";
    let count = 0;
    for (const block of blocks) {
      const kept = fits(block) && (!label || labels.get(block).some((name) => name.toLowerCase().includes(label)));
      block.hidden = !kept;
      count += kept;
    }
    form.count.value = count === blocks.length ? `${count.toLocaleString("en")} units` : `${count.toLocaleString("en")} of ${blocks.length.toLocaleString("en")} units`;
  }

  function resize() {
    grid.style.setProperty("--block", `${form.size.value}px`);
  }

  function keep() {
    const fields = ["sort", "show", "label", "size"].filter((name) => form[name] && form[name].value !== initial[name]);
    const said = new URLSearchParams(fields.map((name) => [name, form[name].value])).toString();
    history.replaceState(null, "", said ? `#${said}` : location.pathname + location.search);
  }

  const initial = Object.fromEntries(["sort", "show", "label", "size"].filter((name) => form[name]).map((name) => [name, form[name].defaultValue ?? form[name].options[0].value]));
  for (const name of Object.keys(initial)) {
    if (asked.has(name)) form[name].value = asked.get(name);
  }
  if (form.sort.selectedIndex < 0) form.sort.selectedIndex = 0;
  if (form.show && form.show.selectedIndex < 0) form.show.selectedIndex = 0;
  resize();
  if (form.sort.value !== "unit") order();
  choose();

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name === "sort") order();
    else if (event.target.name === "size") resize();
    else choose();
    keep();
  });
}

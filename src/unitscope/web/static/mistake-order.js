// The page of predictions: mistakes by how frequent they are, or by how certain the network is of the most certain one.
"use strict";
{
  const bar = document.getElementById("mistake-order");
  const body = document.querySelector(".mistakes tbody");
  if (bar && body) {
    const select = bar.querySelector("select");
    const byFrequency = [...body.rows];
    const byCertainty = [...byFrequency].sort((a, b) => Number(b.dataset.probability) - Number(a.dataset.probability));
    const show = () => body.append(...(select.value === "certain" ? byCertainty : byFrequency));
    bar.hidden = false;
    select.value = location.hash === "#order=certain" ? "certain" : "images";
    show();
    select.addEventListener("change", () => {
      // The order stands in the address, to come back to.
      history.replaceState(null, "", select.value === "certain" ? "#order=certain" : location.pathname + location.search);
      show();
    });
  }
}

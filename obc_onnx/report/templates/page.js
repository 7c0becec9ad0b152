"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const show = () => theme.setAttribute("aria-pressed", String(dark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  show();

  const openAll = (open) => {
    for (const fold of document.querySelectorAll("details:not(.layer)")) fold.open = open;
  };
  document.getElementById("unfold").addEventListener("click", () => openAll(true));
  document.getElementById("fold").addEventListener("click", () => openAll(false));

  const search = document.getElementById("search");
  if (!search) return;
  const which = document.getElementById("which");
  const found = document.getElementById("found");
  const blocks = [...document.querySelectorAll(".block")].map((block) => ({
    block,
    layers: [...block.querySelectorAll(".layer")].map((layer) => ({ layer, text: layer.textContent.toLowerCase() })),
  }));
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = which.value;
    let shown = 0, all = 0;
    for (const { block, layers } of blocks) {
      let here = 0;
      for (const { layer, text } of layers) {
        const fits = (!kind || layer.classList.contains(kind)) && words.every((word) => text.includes(word));
        layer.hidden = !fits;
        here += fits;
      }
      block.hidden = here === 0;
      if (words.length || kind) block.open = here > 0;
      shown += here;
      all += layers.length;
    }
    found.value = words.length || kind ? `${shown} of ${all} layers` : "";
  };
  search.addEventListener("input", filter);
  which.addEventListener("change", filter);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      document.getElementById("network").open = true;
      search.focus();
    } else if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      filter();
    }
  });
})();

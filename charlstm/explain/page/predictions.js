"use strict";
/* The five most probable characters under each character of the text. */

{
  const { el, at } = page;
  const COLUMN = 27; // pixels, as in style.css
  const ROWS = 4;

  page.buildPredictions = ({ text }, store) => {
    const grid = el("div", { class: "grid-of-guesses" });
    const place = el("span", { class: "unit-note" });
    let start = 0;
    let count = 80;

    const cell = (symbol, className) => {
      const shown = page.shown(symbol);
      return el("span", { class: shown.length > 2 ? `${className} narrow` : className, text: shown });
    };

    const draw = () => {
      const perRow = Math.max(8, Math.floor((grid.clientWidth || 600) / COLUMN));
      count = perRow * ROWS;
      const here = store.get("position");
      start = Math.max(0, Math.min(start, text.length - 1));
      const columns = [];
      for (let t = start; t < Math.min(text.length, start + count); t += 1) {
        const column = el("button", {
          type: "button", class: t === here ? "column here" : "column", title: page.shown(text.symbol(t)),
          "aria-label": `${page.shown(text.symbol(t))}: expected ${text.guesses(t).map(({ symbol, share }) => `${page.shown(symbol)} ${page.percent(share)}`).join(", ")}`,
          on: { click: () => store.set({ position: t, pointer: null }) },
        }, cell(text.symbol(t), "actual"));
        for (const { symbol, share, came } of text.guesses(t)) {
          const guess = cell(symbol, came ? "hit" : "");
          guess.style.background = page.background("share", share);
          column.append(guess);
        }
        columns.push(column);
      }
      grid.replaceChildren(...columns);
      place.textContent = `characters ${page.count(start + 1)} to ${page.count(Math.min(text.length, start + count))} of ${page.count(text.length)}`;
    };
    const jump = (by) => {
      start = Math.max(0, Math.min(text.length - count, start + by * count));
      draw();
    };
    at("predictions-body").append(
      el("div", { class: "buttons" },
        el("button", { type: "button", id: "predictions-back", text: "◀ Earlier", on: { click: () => jump(-1) } }),
        el("button", { type: "button", id: "predictions-forward", text: "Later ▶", on: { click: () => jump(1) } }), place),
      grid,
    );
    store.on("position", () => {
      const here = store.get("position");
      if (here < start || here >= start + count) start = Math.max(0, Math.min(text.length - count, here - Math.floor(count / 3)));
      draw();
    });
    store.on("version", draw);
    let width = 0;
    new ResizeObserver(() => {
      if (grid.clientWidth !== width) {
        width = grid.clientWidth;
        draw();
      }
    }).observe(grid);
  };
}

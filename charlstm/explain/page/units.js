"use strict";
/* The units that follow a feature of the text, with the score that chance reaches. */

{
  const { el, at, number } = page;
  const SHOWN = 10;
  const STRONG = 0.7;

  page.buildUnits = (data, store) => {
    const { units, model } = data;
    const { layers, hidden } = model.config;
    const body = at("units-body");
    if (!units.length) {
      page.missing(body, data.reasons.units || "No unit follows a feature of this text better than chance. A longer text or a longer training may show some.");
      return;
    }
    let all = false;
    const table = el("div");
    const draw = () => {
      const current = ({ layer, unit }) => layer === store.get("layer") && unit === store.get("unit");
      table.replaceChildren(page.barTable({
        head: ["unit and what it follows", "score on the second half", ""],
        high: 1,
        rows: (all ? units : units.slice(0, SHOWN)).map((found) => ({
          name: `${page.unitName(found.layer, found.unit, layers)}: ${page.visible(found.feature)}`,
          value: found.score,
          mark: found.control,
          text: `${number(found.score)} (${number(found.control)})`,
          colour: found.score > found.control ? "var(--blue)" : "var(--grey)",
          current: current(found),
          onClick: () => store.set({ layer: found.layer, unit: found.unit, quantity: data.stateQuantity, colouring: "unit" }),
        })),
      }));
    };
    const strong = units.filter(({ score, control }) => score > STRONG && score > control).length;
    body.append(
      el("p", { class: "big-number" },
        el("strong", { text: page.percent(data.strongShare ?? strong / (layers * hidden), 1) }),
        el("span", { text: `of the ${page.count(layers * hidden)} units score above ${STRONG} (${strong} units). Karpathy estimated about 5 % by looking at a larger LSTM.` })),
      table,
    );
    if (units.length > SHOWN) {
      const more = el("button", { type: "button", text: `Show all ${units.length} units`, on: { click: () => {
        all = !all;
        more.textContent = all ? `Show the best ${SHOWN}` : `Show all ${units.length} units`;
        draw();
      } } });
      body.append(el("div", { class: "buttons" }, more));
    }
    body.append(el("p", { class: "note", text: "In brackets: the best score that shuffled features reach. Click a unit to colour the text with it." }));
    store.on(["layer", "unit"], draw);
    draw();
  };
}

"use strict";
/* How often each gate is open or closed, and how long each unit remembers. */

{
  const { el, at, number } = page;
  const LONGEST = 1000; // characters on the axis of memory lengths

  page.buildSaturation = (data, store) => {
    const { saturation, model } = data;
    const { layers, hidden, cell } = model.config;
    const body = at("saturation-body");
    if (!saturation.length) {
      page.missing(body, data.reasons.saturation || `A ${page.CELLS[cell]} has no gates, so there is nothing that can be open or closed.`);
      return;
    }
    const charts = [];
    const key = () => `${store.get("layer")}:${store.get("unit")}`;
    const select = (quantity) => (point) => store.set({ layer: point.layer, unit: point.unit, quantity, colouring: "unit" });
    for (let layer = 0; layer < layers; layer += 1) {
      const multiples = el("div", { class: "small-multiples" });
      for (const { gate, closed, open } of saturation.filter((found) => found.layer === layer)) {
        const points = Array.from(closed, (share, unit) => ({
          x: share, y: open[unit], layer, unit, key: `${layer}:${unit}`,
          text: `unit ${unit}: closed ${page.percent(share)}, open ${page.percent(open[unit])} of the time`,
        }));
        const chart = page.scatterChart({
          title: `${page.gateName(gate)} ${gate}`,
          label: `${page.gateName(gate)} of the ${hidden} units of layer ${layer + 1}: share of time closed and open.`,
          x: { label: "share of time closed (below 0.1)", domain: [0, 1], ticks: [0, 0.5, 1] },
          y: { label: "share of time open (above 0.9)", domain: [0, 1], ticks: [0, 0.5, 1] },
          points, colour: page.gateColour(gate), selected: key, onSelect: select(gate), diagonal: true,
        });
        charts.push(chart);
        multiples.append(chart);
      }
      const lengths = data.memory[layer];
      if (lengths) {
        const points = Array.from(lengths, (length, unit) => ({ x: Math.max(0.5, Math.min(LONGEST, length)), y: 0, layer, unit, key: `${layer}:${unit}`, length, text: `unit ${unit}: ${number(length, 1)} characters` }));
        points.sort((a, b) => a.x - b.x).forEach((point, rank) => {
          point.y = (rank + 1) / points.length;
        });
        const gate = page.keepGate(cell);
        const chart = page.scatterChart({
          title: "memory length",
          label: `Memory length of the ${hidden} units of layer ${layer + 1}, from the shortest to the longest.`,
          x: { label: `characters: −1/ln(mean ${gate})`, domain: [0.5, LONGEST], log: true, ticks: [1, 10, 100, 1000] },
          y: { label: "share of units with at most this", domain: [0, 1], ticks: [0, 0.5, 1] },
          points, colour: "var(--grey)", selected: key, onSelect: select(data.stateQuantity),
        });
        charts.push(chart);
        multiples.append(chart);
        const sorted = [...lengths].sort((a, b) => a - b);
        body.append(
          layers > 1 ? el("h3", { text: `Layer ${layer + 1}` }) : null ?? "",
          el("p", { text: `Half of the units${layers > 1 ? " of this layer" : ""} forget within ${number(sorted[Math.floor(sorted.length / 2)], 1)} characters; the most persistent one keeps its memory for about ${number(Math.min(1e5, sorted[sorted.length - 1]), 0)} characters.` }),
        );
      } else if (layers > 1) body.append(el("h3", { text: `Layer ${layer + 1}` }));
      body.append(multiples);
    }
    store.on(["layer", "unit"], () => charts.forEach((chart) => chart.redraw()));
  };
}

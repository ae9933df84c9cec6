"use strict";
/* The units that are on throughout a phrase, and the other places where they are on (after LSTMVis). */

{
  const { el, at, number } = page;
  const MOST_UNITS = 40;
  const MOST_PLACES = 12;

  /** Return the units by what their output stays above, with one sign, throughout a phrase, the strongest first. */
  function unitsBy(trace, [start, end]) {
    const found = [];
    for (let layer = 0; layer < trace.bytes.length; layer += 1) {
      for (let unit = 0; unit < trace.size; unit += 1) {
        let least = Infinity;
        const sign = Math.sign(trace.value(layer, unit, "h", start));
        for (let t = start; t < end; t += 1) least = Math.min(least, sign * trace.value(layer, unit, "h", t));
        found.push({ layer, unit, sign, least, before: start ? sign * trace.value(layer, unit, "h", start - 1) : 0 });
      }
    }
    return found.sort((a, b) => b.least - a.least);
  }

  /** Return the other places where most of the units are on: [start, end, share], the most similar first. */
  function otherPlaces(trace, units, [start, end], threshold) {
    const share = new Float32Array(trace.done);
    for (const { layer, unit, sign } of units) {
      for (let t = 0; t < trace.done; t += 1) if (sign * trace.value(layer, unit, "h", t) > threshold) share[t] += 1 / units.length;
    }
    const enough = units.length < 3 ? 0.999 : 0.75;
    const runs = [];
    for (let t = 0; t < trace.done; t += 1) {
      if (share[t] < enough || (t >= start && t < end)) continue;
      const first = t;
      let sum = 0;
      while (t < trace.done && share[t] >= enough && !(t >= start && t < end)) sum += share[t++];
      runs.push({ start: first, end: t, share: sum / (t - first) });
    }
    const length = end - start;
    const rank = (run) => run.share * Math.min(run.end - run.start, length) / Math.max(run.end - run.start, length) ** 0.5;
    return runs.sort((a, b) => rank(b) - rank(a));
  }

  page.buildPhrase = (data, store) => {
    const { trace, text, model } = data;
    const { layers } = model.config;
    const body = at("phrase-body");
    const threshold = el("input", { type: "range", id: "phrase-threshold", min: 0.05, max: 0.95, step: 0.05, value: 0.3 });
    const shownThreshold = el("output", { text: "0.30" });
    const offBefore = el("input", { type: "checkbox", id: "phrase-off" });
    const result = el("div", { id: "phrase-result" });
    const change = (by) => {
      const [start, end] = store.get("phrase") || [store.get("position"), store.get("position")];
      store.set({ phrase: [start, Math.max(start + 1, Math.min(text.length, end + by))] });
    };
    body.append(
      el("div", { class: "form" },
        el("label", null, el("span", null, "threshold of the output", shownThreshold), threshold),
        el("label", null, el("span", { text: "only units that were off just before" }), offBefore)),
      el("div", { class: "buttons" },
        el("button", { type: "button", id: "phrase-longer", text: "One character longer", on: { click: () => change(1) } }),
        el("button", { type: "button", text: "One shorter", on: { click: () => change(-1) } }),
        el("button", { type: "button", id: "phrase-here", text: "Begin at the selected character", on: { click: () => store.set({ phrase: [store.get("position"), Math.min(text.length, store.get("position") + 5)] }) } }),
        el("button", { type: "button", text: "Clear", on: { click: () => store.set({ phrase: null, places: null }) } })),
      result,
    );
    const contextOf = (start, end) => {
      const part = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, k) => page.plain(text.symbol(from + k))).join("");
      return el("code", null, part(Math.max(0, start - 14), start), el("mark", { text: part(start, Math.min(end, start + 40)) }), part(end, Math.min(text.length, end + 10)));
    };
    const draw = () => {
      shownThreshold.textContent = number(Number(threshold.value));
      const phrase = store.get("phrase");
      if (!phrase) {
        result.replaceChildren(el("p", { class: "note", text: "No phrase is selected." }));
        return;
      }
      if (phrase[1] > trace.done) {
        result.replaceChildren(el("p", { class: "note", text: "The page is still computing this part of the text." }));
        return;
      }
      const all = unitsBy(trace, phrase);
      const limit = Number(threshold.value);
      const found = all.filter(({ least, before }) => least > limit && !(offBefore.checked && before > limit));
      const used = found.slice(0, MOST_UNITS);
      const places = used.length ? otherPlaces(trace, used, phrase, limit) : [];
      const shown = places.slice(0, MOST_PLACES);
      const units = el("div", { class: "buttons" }, used.slice(0, 24).map(({ layer, unit, sign, least }) => el("button", {
        type: "button", text: layers > 1 ? `${layer + 1}/${unit}` : `${unit}`, title: `${page.unitName(layer, unit, layers)}: ${sign > 0 ? "at least" : "at most"} ${number(sign * least)} ${data.noteOfUnit(layer, unit)}`,
        on: { click: () => store.set({ layer, unit, quantity: "h", colouring: "unit" }) },
      })));
      result.replaceChildren(
        el("p", null, contextOf(...phrase)),
        el("p", { text: found.length
          ? `${found.length} ${found.length === 1 ? "unit is" : "units are"} on throughout this phrase${found.length > MOST_UNITS ? `; the ${MOST_UNITS} strongest are used below` : ""}.`
          : `No unit is on throughout this phrase. ${page.unitName(all[0].layer, all[0].unit, layers).replace("unit", "Unit")} comes closest: its output stays ${all[0].sign > 0 ? "above" : "below"} ${number(all[0].sign * all[0].least)}. A lower threshold or a shorter phrase finds more.` }),
        units,
        el("p", { text: shown.length ? `Other places where most of them are on (${places.length}):` : found.length ? "There is no other place where most of them are on." : "" }),
        el("ul", { class: "places" }, shown.map(({ start, end, share }) => el("li", null,
          el("button", { type: "button", class: "link", text: `character ${page.count(start + 1)}`, on: { click: () => store.set({ position: start, pointer: null }) } }),
          ` ${page.percent(share)} `, contextOf(start, end)))),
      );
      store.set({ places: shown.map(({ start, end }) => [start, end]) });
    };
    threshold.addEventListener("input", draw);
    offBefore.addEventListener("change", draw);
    store.on(["phrase"], draw);
    draw();
  };
}

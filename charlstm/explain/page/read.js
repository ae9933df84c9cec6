"use strict";
/* The data of the page in the form that its elements use. explain/page/build.py and Explanation.to_json describe it. */

{
  const BITS_SCALE = 24; // as in build.py

  /** Return little-endian numbers of `width` bytes. */
  function integers(base64, width) {
    const bytes = page.bytes(base64);
    const kind = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[width];
    return new kind(bytes.buffer);
  }

  /** Return the quartiles (K + 1, L, 3) of one layer as three curves; null stays null. */
  function curves(values, layer) {
    if (!values) return null;
    const part = (k) => values.map((row) => row[layer][k]);
    return { low: part(0), middle: part(1), high: part(2) };
  }

  const cellOf = (name) => /\((\w+)\)$/.exec(name)?.[1] || "lstm";
  const plainName = (name) => name.replace(/ \(\w+\)$/, "");

  function readGradients(found) {
    return found.filter(({ h }) => h.length > 2).map(({ name, lags, h, path, product }) => ({
      name: plainName(name), cell: cellOf(name), lags,
      layers: h[0].map((_, layer) => ({ h: curves(h, layer), path: curves(path, layer), product: curves(product, layer) })),
    }));
  }

  function readNgrams(found) {
    if (!found) return null;
    const { orders, bits_per_char: bits } = found;
    const own = orders.length; // the last entry is the model
    const best = bits.indexOf(Math.min(...bits.slice(0, own)));
    return {
      orders, bits: bits.slice(0, own), model: bits[own],
      kinds: found.kinds.map((name, k) => ({ name, count: found.kind_count[k], model: found.kind_bits[k][own], ngram: found.kind_bits[k][best] })).filter(({ count }) => count > 0),
      distances: found.distances.map(({ name, most, count, bits: rows }) => {
        const used = [...most.keys()].filter((k) => count[k] > 0);
        const far = (k) => (most[k] < 0 ? 2 * most[k - 1] : most[k]);
        return { name: `${name}, by the distance to its beginning`, distance: used.map(far), model: used.map((k) => rows[k][own]), ngram: used.map((k) => rows[k][best]) };
      }).filter(({ distance }) => distance.length > 1),
    };
  }

  function readAblation(found, { gates: names }) {
    if (!found || !found.unit_chars) return null;
    return {
      unitChars: found.unit_chars, gateChars: found.gate_chars,
      units: found.ranking.map(([layer, unit]) => ({ layer, unit, cost: found.units[layer][unit] })),
      gates: found.gate_costs.flatMap((gates, layer) => gates.flatMap((costs, k) => costs.map((cost, value) => ({ layer, gate: found.gates[k], value, cost })))),
      names,
    };
  }

  function readSaturation({ gates, closed, open }) {
    return closed.flatMap((rows, layer) => gates.map((gate, k) => ({ layer, gate, closed: rows[k], open: open[layer][k] })));
  }

  function readHistory(found, checkpoints) {
    if (!found) return null;
    return {
      points: found.validations.map((point) => ({ step: point.step, seconds: point.seconds, valid: point.valid_bits_per_char, train: point.train_bits_per_char, sample: point.sample })),
      training: found.training,
      checkpoints: checkpoints.map(({ step, mean, bits }) => {
        const bytes = page.bytes(bits);
        return { step, mean, bits: (t) => (t ? bytes[t - 1] / BITS_SCALE : NaN) };
      }),
    };
  }

  function readCopies(found) {
    return found && found.map(({ text, temperature, length, copied }) => ({ text, temperature, length, copied }));
  }

  /** The activations of the units that are drawn before the page has computed the text. */
  function readTraces(found) {
    const traces = new Map(found.map(({ layer, unit, quantity, values }) => [`${layer}:${unit}:${quantity}`, page.bytes(values)]));
    return (layer, unit, quantity, t) => {
      const bytes = traces.get(`${layer}:${unit}:${quantity}`);
      return bytes ? bytes[t] / 127.5 - 1 : NaN;
    };
  }

  /** Return the first line of a text, or some of its words, as the text that a sample continues. */
  function beginning(text, boundary) {
    const whole = boundary ? text.split(boundary)[0] : text;
    const line = whole.slice(0, whole.indexOf("\n") + 1);
    if (line.length >= 4 && line.length <= 40) return line;
    const words = [...whole].slice(0, 30).join("");
    return words.slice(0, words.lastIndexOf(" ") + 1) || [...whole].slice(0, 12).join("");
  }

  page.read = (json, model) => {
    const { config, symbols } = model;
    const { ids } = json;
    const trace = new page.Trace(model, ids);
    const colours = readTraces(json.traces);
    const { count } = json.top;
    const topIds = integers(json.top.ids, json.top.width);
    const topShares = page.bytes(json.top.shares);
    const early = topIds.length / count;
    const guess = (t, k) => (t < trace.done ? [trace.top.ids[t * count + k], trace.top.shares[t * count + k]] : [topIds[t * count + k], topShares[t * count + k] / 255]);
    const text = {
      ids,
      length: ids.length,
      symbol: (t) => symbols[ids[t]],
      isBoundary: (t) => ids[t] === config.boundary,
      bits: (t) => (t ? json.bits[t] ?? NaN : NaN),
      guesses: (t) => (t > 0 && (t <= early || t <= trace.done) ? Array.from({ length: count }, (_, k) => {
        const [id, share] = guess(t - 1, k);
        return { symbol: symbols[id], share, came: id === ids[t] };
      }) : []),
      unitValue: (layer, unit, quantity, t) => (t < trace.done ? trace.value(layer, unit, quantity, t) : colours(layer, unit, quantity, t)),
    };
    const units = json.units ? json.units.named.map(({ chance, ...found }) => ({ ...found, control: chance })) : [];
    const named = new Map(units.map((found) => [`${found.layer}:${found.unit}`, found]));
    const exact = new Map();
    const begin = config.boundary !== null && ids[0] === config.boundary ? 1 : 0;
    return {
      model, text, trace, units,
      facts: { name: plainName(json.name), unit: json.unit, bits: json.bits_per_char, ...json.page },
      reasons: json.missing,
      strongShare: json.units ? json.units.strong_share : 0,
      chance: json.units ? json.units.chance : 0,
      saturation: readSaturation(json.saturation),
      memory: json.saturation.memory || [],
      gradients: readGradients(json.gradients),
      context: json.context.map((found) => ({ name: plainName(found.name), cell: cellOf(found.name), context: found.context, bits: found.bits_per_char, error: found.standard_error })),
      ablation: readAblation(json.ablation, config),
      ngrams: readNgrams(json.ngrams),
      history: readHistory(json.learning, json.page.checkpoints),
      copies: readCopies(json.copies),
      firstBias: json.page.first_bias,
      stateQuantity: trace.hasCell ? "c" : "h",
      prime: beginning(model.decode(ids.slice(begin, begin + 60)), config.boundary === null ? null : symbols[config.boundary]),
      featureOfUnit: (layer, unit) => named.get(`${layer}:${unit}`)?.feature || null,
      noteOfUnit: (layer, unit) => {
        const found = named.get(`${layer}:${unit}`);
        return found ? `follows “${page.visible(found.feature)}”, score ${page.number(found.score)}` : "";
      },
      exact: (t) => {
        if (exact.size > 50) exact.clear();
        if (!exact.has(t)) exact.set(t, trace.exact(t));
        return exact.get(t);
      },
    };
  };
}

"use strict";
/* How strongly a logit depends on each earlier character: the backward pass of one logit through the model.

   The measure is that of "Visualizing memorization in RNNs" (Distill, 2019): the squared gradient of the logit with
   respect to the one-hot input, summed over the vocabulary. */

{
  const { el, at, number } = page;
  const MOST_STEPS = 300;
  const ACTIVATION = 127; // the engine's factor of a row of whole numbers also divides by this
  const GROUP = 8; // rows of a matrix of the engine that are stored side by side

  /** target += matrix^T · d, where d holds the rows from `first` on. */
  function addTransposed(target, matrix, d, first) {
    const { rows, columns, weights, scale } = matrix;
    for (let row = 0; row < rows; row += 1) {
      const factor = d[first + row] * (scale ? scale[row] * ACTIVATION : 1);
      if (factor === 0) continue;
      let place = (row - (row % GROUP)) * columns + (row % GROUP);
      for (let k = 0; k < columns; k += 1, place += GROUP) target[k] += weights[place] * factor;
    }
  }

  /** row · x of a matrix, plus a bias. */
  function product(matrix, row, x, bias) {
    let sum = 0;
    let place = (row - (row % GROUP)) * matrix.columns + (row % GROUP);
    for (let k = 0; k < matrix.columns; k += 1, place += GROUP) sum += matrix.weights[place] * x[k];
    return bias + sum * (matrix.scale ? matrix.scale[row] * ACTIVATION : 1);
  }

  /** The backward step of one layer: from the gradients of h and c after it to those of its sums, and of c before it.
      Returns {sums: (G·H), hidden: sums as the recurrent matrices see them, c}. */
  const BACKWARD = {
    lstm(H, gates, before, after, dh, dc, layer) {
      const sums = new Float64Array(4 * H);
      const old = new Float64Array(H);
      const p = layer.peephole;
      for (let u = 0; u < H; u += 1) {
        const [i, f, g, o] = [gates[u], gates[H + u], gates[2 * H + u], gates[3 * H + u]];
        const squashed = Math.tanh(after.c[u]);
        const d_o = dh[u] * squashed * o * (1 - o);
        const d_c = dc[u] + dh[u] * o * (1 - squashed ** 2) + (p.length ? d_o * p[2 * H + u] : 0);
        const d_i = d_c * g * i * (1 - i);
        const d_f = d_c * before.c[u] * f * (1 - f);
        sums[u] = d_i;
        sums[H + u] = d_f;
        sums[2 * H + u] = d_c * i * (1 - g ** 2);
        sums[3 * H + u] = d_o;
        old[u] = d_c * f + (p.length ? d_i * p[u] + d_f * p[H + u] : 0);
      }
      return { sums, hidden: sums, c: old, h: null };
    },
    coupled(H, gates, before, after, dh, dc) {
      const sums = new Float64Array(3 * H);
      const old = new Float64Array(H);
      for (let u = 0; u < H; u += 1) {
        const [f, g, o] = [gates[u], gates[H + u], gates[2 * H + u]];
        const squashed = Math.tanh(after.c[u]);
        const d_c = dc[u] + dh[u] * o * (1 - squashed ** 2);
        sums[u] = d_c * (before.c[u] - g) * f * (1 - f);
        sums[H + u] = d_c * (1 - f) * (1 - g ** 2);
        sums[2 * H + u] = dh[u] * squashed * o * (1 - o);
        old[u] = d_c * f;
      }
      return { sums, hidden: sums, c: old, h: null };
    },
    gru(H, gates, before, after, dh, dc, layer) {
      const sums = new Float64Array(3 * H);
      const hidden = new Float64Array(3 * H);
      const direct = new Float64Array(H);
      for (let u = 0; u < H; u += 1) {
        const [r, z, n] = [gates[u], gates[H + u], gates[2 * H + u]];
        const d_n = dh[u] * (1 - z) * (1 - n ** 2);
        const candidate = product(layer.hidden[1], u, before.h, layer.candidateBias[u]);
        sums[u] = hidden[u] = d_n * candidate * r * (1 - r);
        sums[H + u] = hidden[H + u] = dh[u] * (before.h[u] - n) * z * (1 - z);
        sums[2 * H + u] = d_n;
        hidden[2 * H + u] = d_n * r;
        direct[u] = dh[u] * z;
      }
      return { sums, hidden, c: null, h: direct };
    },
    rnn(H, gates, before, after, dh) {
      const sums = Float64Array.from(dh, (d, u) => d * (1 - after.h[u] ** 2));
      return { sums, hidden: sums, c: null, h: null };
    },
  };
  BACKWARD.peephole = BACKWARD.lstm;

  /** The squared norm of the gradient of the sums of the first layer with respect to the one-hot input. */
  function squaredInput(model, sums, bias) {
    const { vocabulary, embedding } = model.config;
    let total = 0;
    if (model.table) {
      const rows = sums.length;
      let own = 0;
      for (let k = 0; k < rows; k += 1) own += bias[k] * sums[k];
      for (let id = 0; id < vocabulary; id += 1) {
        let dot = -own;
        for (let k = 0, place = id * rows; k < rows; k += 1, place += 1) dot += model.table[place] * sums[k];
        total += dot * dot;
      }
      return total;
    }
    const d = new Float64Array(embedding);
    addTransposed(d, model.layers[0].input, sums, 0);
    for (let id = 0; id < vocabulary; id += 1) {
      let dot = 0;
      for (let k = 0, place = id * embedding; k < embedding; k += 1, place += 1) dot += model.embedding[place] * d[k];
      total += dot * dot;
    }
    return total;
  }

  /** Return the influence of the symbols before position t on the logit of the symbol at t: values[k] is that of the
      symbol t − 1 − k, divided by the largest. `bias` is the bias of the first layer, which the engine's table contains. */
  page.influence = (trace, t, bias) => {
    const { model, ids } = trace;
    const { hidden: H, layers, cell, boundary } = model.config;
    const last = t - 1;
    const first = Math.max(0, last - MOST_STEPS);
    const state = trace.stateBefore(first);
    const steps = [];
    for (let k = first; k <= last; k += 1) {
      const before = ids[k] === boundary ? model.zeroState() : page.copiedState(state);
      const record = [];
      model.step(ids[k], state, { record });
      steps.push({ before, record });
    }
    let dh = Array.from({ length: layers }, () => new Float64Array(H));
    let dc = Array.from({ length: layers }, () => new Float64Array(H));
    const one = new Float64Array(model.config.vocabulary);
    one[ids[t]] = 1;
    addTransposed(dh[layers - 1], model.projection, one, 0);
    const logs = [];
    let scale = 0; // the logarithm of what the gradients were divided by
    for (let k = last; k >= first; k -= 1) {
      const { before, record } = steps[k - first];
      const nextH = [];
      const nextC = [];
      for (let l = layers - 1; l >= 0; l -= 1) {
        const layer = model.layers[l];
        const found = BACKWARD[cell](H, record[l].gates, before[l], record[l], dh[l], dc[l], layer);
        nextH[l] = found.h || new Float64Array(H);
        nextC[l] = found.c || dc[l];
        addTransposed(nextH[l], layer.hidden[0], found.hidden, 0);
        if (layer.hidden[1]) addTransposed(nextH[l], layer.hidden[1], found.hidden, layer.hidden[0].rows);
        if (l > 0) addTransposed(dh[l - 1], layer.input, found.sums, 0);
        else logs.push(Math.log(squaredInput(model, found.sums, bias)) + 2 * scale);
      }
      if (ids[k] === boundary) break;
      let size = 0;
      for (const part of [...nextH, ...nextC]) for (const value of part) size += value * value;
      size = Math.sqrt(size) || 1;
      scale += Math.log(size);
      [dh, dc] = [nextH, nextC].map((parts) => parts.map((part) => part.map((value) => value / size)));
    }
    const highest = Math.max(...logs);
    return logs.map((value) => Math.exp(value - highest));
  };

  page.buildInfluence = (data, store) => {
    const { trace, text } = data;
    const body = at("influence-body");
    const result = el("p", { "aria-live": "polite" });
    const chart = el("div");
    body.append(
      el("div", { class: "buttons" }, el("button", { type: "button", id: "influence-show", class: "primary", text: "Colour the text by this influence", on: { click: () => compute(true) } })),
      result, chart,
    );
    page.colourings.set("influence", {
      label: "influence on the selected character", question: "Which characters moved this prediction?", kind: "share", low: "none", high: "the largest",
      isAbsent: () => store.get("influence") === null,
      value: (t) => {
        const found = store.get("influence");
        const k = found ? found.t - 1 - t : -1;
        return k >= 0 && k < found.values.length ? Math.sqrt(found.values[k]) : 0;
      },
    });
    const compute = (colour) => {
      const t = store.get("position");
      if (t < 1 || t > trace.done) {
        result.textContent = t < 1 ? "The first character has nothing before it. Select a later one." : "The page is still computing this part of the text.";
        return;
      }
      const values = page.influence(trace, t, data.firstBias);
      store.set({ influence: { t, values }, ...(colour ? { colouring: "influence" } : {}) });
      const order = [...values.keys()].sort((a, b) => values[b] - values[a]);
      const far = values.findLastIndex((value) => value > 0.01);
      result.replaceChildren(
        "For ", el("span", { class: "glyph", text: page.shown(text.symbol(t)) }), ", the strongest earlier characters are ",
        ...order.slice(0, 3).flatMap((k, rank) => [rank ? ", " : "", el("span", { class: "glyph", text: page.shown(text.symbol(t - 1 - k)) }), ` (${k + 1} back)`]),
        `. The farthest one with more than 1 % of the largest influence is ${far + 1} characters back.`,
      );
      const shown = Math.min(values.length, 60);
      chart.replaceChildren(page.lineChart({
        title: "Influence of earlier characters", label: `Influence of the ${shown} characters before the selected one, relative to the largest.`,
        x: { label: "characters back" }, y: { label: "influence, relative to the largest", domain: [1e-6, 1], log: true, ticks: [1e-6, 1e-4, 1e-2, 1] },
        series: [{ name: "influence", colour: "var(--blue)", x: Array.from({ length: shown }, (_, k) => k + 1), y: values.slice(0, shown).map((value) => Math.max(value, 1e-7)) }],
        height: 200, digits: 4, onPick: (back) => store.set({ pointer: t - back }),
      }));
    };
    // The backward pass takes some tenths of a second in a large model, so it waits until somebody can see its result.
    let isVisible = false;
    new IntersectionObserver((entries) => {
      isVisible = entries.at(-1).isIntersecting;
      if (isVisible && store.get("influence")?.t !== store.get("position")) compute(false);
    }).observe(body);
    store.on(["position", "version"], () => {
      const isCurrent = store.get("influence")?.t === store.get("position");
      if ((isVisible || store.get("colouring") === "influence") && !isCurrent) compute(false);
    });
  };
}

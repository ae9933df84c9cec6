"use strict";
/* The model over the whole text: every gate and state of every unit, one byte each, computed in slices of a few
   milliseconds. Exact numbers of one character are computed again from the nearest saved state. */

{
  const SLICE_MS = 24;
  const MOST_TOP = 5; // predictions that are kept of each character
  const SAVED_EVERY = 64; // characters between two saved states
  const SIGNED = new Set(["g", "n", "h", "c"]); // from -1 to 1; the others are from 0 to 1

  /** Return a copy of the state of a model. */
  const copied = (state) => state.map(({ h, c }) => ({ h: h.slice(), c: c ? c.slice() : null }));

  /** The run of a model over the ids of a text. */
  class Trace {
    constructor(model, ids) {
      this.model = model;
      this.ids = ids;
      const { config } = model;
      this.gates = config.gates.filter((name) => name !== "h");
      this.hasCell = config.states.includes("c");
      this.quantities = [...this.gates, ...(this.hasCell ? ["c"] : []), "h"];
      this.size = config.hidden;
      this.done = 0; // number of characters that have been computed
      this.bytes = Array.from({ length: config.layers }, () => this.quantities.map(() => new Uint8Array(ids.length * this.size)));
      this.saved = [];
      this.topCount = Math.min(MOST_TOP, model.config.vocabulary);
      const count = this.topCount;
      this.top = { ids: new Uint32Array(count * ids.length), shares: new Float32Array(count * ids.length) };
    }

    get length() {
      return this.ids.length;
    }

    get isComplete() {
      return this.done === this.ids.length;
    }

    /** Compute the text in slices. Calls `progress(share)` after each slice. */
    start(progress) {
      const state = this.model.zeroState();
      const record = [];
      const count = this.topCount;
      const slice = () => {
        const end = performance.now() + SLICE_MS;
        while (this.done < this.ids.length && performance.now() < end) {
          const t = this.done;
          if (t % SAVED_EVERY === 0) this.saved.push(copied(state));
          const logits = this.model.step(this.ids[t], state, { record });
          page.best(logits, count).forEach(({ id, share }, k) => {
            this.top.ids[count * t + k] = id;
            this.top.shares[count * t + k] = share;
          });
          this.keep(t, record);
          this.done += 1;
        }
        progress(this.done / this.ids.length);
        if (this.done < this.ids.length) setTimeout(slice, 0);
      };
      slice();
    }

    keep(t, record) {
      const size = this.size;
      const { gates: names } = this.model.config;
      this.bytes.forEach((layer, l) => {
        const found = record[l];
        this.quantities.forEach((name, k) => {
          const target = layer[k];
          const start = t * size;
          const at = names.indexOf(name);
          if (name === "h") for (let j = 0; j < size; j += 1) target[start + j] = 127.5 * found.h[j] + 128;
          else if (name === "c") for (let j = 0; j < size; j += 1) target[start + j] = 127.5 * Math.tanh(found.c[j]) + 128;
          else if (SIGNED.has(name)) for (let j = 0; j < size; j += 1) target[start + j] = 127.5 * found.gates[at * size + j] + 128;
          else for (let j = 0; j < size; j += 1) target[start + j] = 255 * found.gates[at * size + j] + 0.5;
        });
      });
    }

    /** Return a quantity of a unit after a character, to about two digits; NaN if it has not been computed. */
    value(layer, unit, quantity, t) {
      if (t >= this.done) return NaN;
      const byte = this.bytes[layer][this.quantities.indexOf(quantity)][t * this.size + unit];
      return SIGNED.has(quantity) ? (byte - 127.5) / 127.5 : byte / 255;
    }

    /** Return the state before a character, exactly. */
    stateBefore(t) {
      const start = Math.min(Math.floor(t / SAVED_EVERY), this.saved.length - 1);
      const state = copied(this.saved[start]);
      for (let k = start * SAVED_EVERY; k < t; k += 1) this.model.step(this.ids[k], state);
      return state;
    }

    /** Return what happened at a character, exactly: the state before and after it, the gates, and the logits. */
    exact(t) {
      const before = this.stateBefore(t);
      const state = copied(before);
      const record = [];
      const logits = this.model.step(this.ids[t], state, { record }).slice();
      const layers = this.bytes.map((_, l) => {
        const found = record[l];
        return { gates: found.gates.slice(), h: found.h.slice(), c: found.c ? found.c.slice() : null };
      });
      const start = this.ids[t] === this.model.config.boundary ? this.model.zeroState() : before; // a boundary resets the state
      return { start, after: state, layers, logits };
    }
  }
  page.Trace = Trace;
  page.isSigned = (quantity) => SIGNED.has(quantity);
  page.copiedState = copied;

  /** Return the surprisal, in bits, of a symbol under logits. */
  page.bits = (logits, id) => {
    let high = -Infinity;
    for (const logit of logits) if (logit > high) high = logit;
    let sum = 0;
    for (const logit of logits) sum += Math.exp(logit - high);
    return (Math.log(sum) + high - logits[id]) / Math.LN2;
  };

  /** Return the `count` most probable symbols under logits: [{id, share}], the most probable first. */
  page.best = (logits, count) => {
    let high = -Infinity;
    for (const logit of logits) if (logit > high) high = logit;
    let sum = 0;
    for (const logit of logits) sum += Math.exp(logit - high);
    const found = [];
    for (let id = 0; id < logits.length; id += 1) {
      if (found.length === count && logits[id] <= found[count - 1].logit) continue;
      let place = found.length;
      while (place > 0 && found[place - 1].logit < logits[id]) place -= 1;
      found.splice(place, 0, { id, logit: logits[id] });
      if (found.length > count) found.pop();
    }
    return found.map(({ id, logit }) => ({ id, share: Math.exp(logit - high) / sum }));
  };
}

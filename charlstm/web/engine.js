/* charlstm's inference engine for a page: symbols in, logits out.
 *
 * It computes what charlstm's C engine computes on a processor with fused multiply-adds, in the same order and with the
 * same roundings. All numbers are single-precision floats. Math.fround rounds the double-precision result of an
 * operation; fround(a * b + c) is a fused multiply-add, because the product of two floats is exact in double precision.
 *
 * A page contains a header in JSON and the weights in base 85: charlstm/web/weights.py and page.py define them.
 *
 * Letters: V vocabulary, E embedding, H hidden, G gates, L layers.
 */
"use strict";

const charlstmEngine = (() => {
  const f32 = Math.fround;
  const GROUP = 8; // rows of a matrix whose sums are kept in registers at the same time
  const CACHED_SUMS = 1 << 22; // largest number of first-layer sums that are kept: 16 MB
  const MAGIC = 1.5 * 2 ** 23; // the last bit of a float between 2^23 and 2^24 is worth 1: adding this rounds

  // ---- activations ----

  const POWERS = Float64Array.from({ length: 253 }, (_, k) => 2 ** (k - 126));
  const TAYLOR = [1.540353e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1].map(f32);
  const FIRST_TERM = f32(1.5252734e-5);
  const [T1, T2, T3, T4, T5, T6] = TAYLOR; // (ln 2)^k/k!, k from 6 to 1

  /** 2^x with a relative error of 1e-8: the rounded x goes to the exponent, the rest into a Taylor series. */
  function exp2(x) {
    x = x < -126 ? -126 : x > 126 ? 126 : x;
    const whole = f32(f32(x + MAGIC) - MAGIC);
    const rest = x - whole;
    let p = f32(FIRST_TERM * rest + T1);
    p = f32(p * rest + T2);
    p = f32(p * rest + T3);
    p = f32(p * rest + T4);
    p = f32(p * rest + T5);
    p = f32(p * rest + T6);
    p = f32(p * rest + 1);
    return p * POWERS[whole + 126];
  }

  const MINUS_LOG2_E = f32(-1.442695);
  const TWICE_LOG2_E = f32(2.8853901);
  const sigmoid = (x) => f32(1 / f32(1 + exp2(f32(x * MINUS_LOG2_E))));
  const tanh = (x) => f32(1 - f32(2 / f32(1 + exp2(f32(x * TWICE_LOG2_E)))));

  /** A hidden activation in 8 bits, from -127 to 127. */
  const quantised = (h) => f32(Math.max(-1, Math.min(1, h)) * 127 + MAGIC) - MAGIC;

  // ---- products ----

  /** Reads arrays from the page's block of numbers, in the order in which weights.py wrote them. */
  class Reader {
    constructor(buffer) {
      this.buffer = buffer;
      this.at = 0;
    }
    floats(count) {
      const found = new Float32Array(this.buffer, this.at, count);
      this.at += 4 * count;
      return found;
    }
    bytes(count) {
      const found = new Int8Array(this.buffer, this.at, count);
      this.at += (count + 3) & ~3;
      return found;
    }
  }

  /** A matrix of weights, (rows, columns), packed in groups of rows: GROUP sums are computed in one pass over x. */
  class Matrix {
    constructor(rows, columns, weights, scale) {
      const groups = Math.ceil(rows / GROUP);
      this.rows = rows;
      this.columns = columns;
      this.weights = new Float32Array(groups * GROUP * columns);
      for (let row = 0, from = 0; row < rows; row++) {
        let to = (row - (row % GROUP)) * columns + (row % GROUP);
        for (let k = 0; k < columns; k++, to += GROUP) this.weights[to] = weights[from++];
      }
      this.scale = scale && new Float32Array(groups * GROUP);
      if (scale) this.scale.set(scale);
    }

    static read(reader, rows, columns, int8) {
      const scale = int8 ? reader.floats(rows) : null;
      return new Matrix(rows, columns, int8 ? reader.bytes(rows * columns) : reader.floats(rows * columns), scale);
    }

    /** z[first + row] += row · x. Up to GROUP - 1 numbers of z after the last row are read and written unchanged. */
    addTo(z, first, x) {
      const w = this.weights;
      const columns = this.columns;
      for (let row = 0; row < this.rows; row += GROUP) {
        const o = first + row;
        if (this.scale) {
          this.addScaled(z, o, x, row);
          continue;
        }
        let s0 = z[o], s1 = z[o + 1], s2 = z[o + 2], s3 = z[o + 3];
        let s4 = z[o + 4], s5 = z[o + 5], s6 = z[o + 6], s7 = z[o + 7];
        for (let k = 0, i = row * columns; k < columns; k++, i += GROUP) {
          const v = x[k];
          s0 = f32(w[i] * v + s0);
          s1 = f32(w[i + 1] * v + s1);
          s2 = f32(w[i + 2] * v + s2);
          s3 = f32(w[i + 3] * v + s3);
          s4 = f32(w[i + 4] * v + s4);
          s5 = f32(w[i + 5] * v + s5);
          s6 = f32(w[i + 6] * v + s6);
          s7 = f32(w[i + 7] * v + s7);
        }
        z[o] = s0; z[o + 1] = s1; z[o + 2] = s2; z[o + 3] = s3;
        z[o + 4] = s4; z[o + 5] = s5; z[o + 6] = s6; z[o + 7] = s7;
      }
    }

    /** The same for GROUP rows of whole numbers: their sums are exact, then scaled. */
    addScaled(z, o, x, row) {
      const w = this.weights;
      const scale = this.scale;
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
      for (let k = 0, i = row * this.columns; k < this.columns; k++, i += GROUP) {
        const v = x[k];
        s0 += w[i] * v;
        s1 += w[i + 1] * v;
        s2 += w[i + 2] * v;
        s3 += w[i + 3] * v;
        s4 += w[i + 4] * v;
        s5 += w[i + 5] * v;
        s6 += w[i + 6] * v;
        s7 += w[i + 7] * v;
      }
      z[o] = f32(scale[row] * f32(s0) + z[o]);
      z[o + 1] = f32(scale[row + 1] * f32(s1) + z[o + 1]);
      z[o + 2] = f32(scale[row + 2] * f32(s2) + z[o + 2]);
      z[o + 3] = f32(scale[row + 3] * f32(s3) + z[o + 3]);
      z[o + 4] = f32(scale[row + 4] * f32(s4) + z[o + 4]);
      z[o + 5] = f32(scale[row + 5] * f32(s5) + z[o + 5]);
      z[o + 6] = f32(scale[row + 6] * f32(s6) + z[o + 6]);
      z[o + 7] = f32(scale[row + 7] * f32(s7) + z[o + 7]);
    }
  }

  // ---- cells ----

  /* One unit of each cell: charlstm/cells.py has the equations. z holds the sums of the gates in the order of
   * config.gates, H each, and after them the hidden sums of the GRU's candidate. `gate(k, u, value)` stores a gate and
   * returns it or its clamped value; `cell(u, value)` does the same for c. */
  const CELLS = {
    lstm(u, H, z, p, h, c, gate, cell) {
      const i = gate(0, u, sigmoid(z[u]));
      const f = gate(1, u, sigmoid(z[H + u]));
      const g = gate(2, u, tanh(z[2 * H + u]));
      const o = gate(3, u, sigmoid(z[3 * H + u]));
      return f32(o * tanh(cell(u, f32(f * c[u] + f32(i * g)))));
    },
    peephole(u, H, z, p, h, c, gate, cell) {
      const i = gate(0, u, sigmoid(f32(p[u] * c[u] + z[u])));
      const f = gate(1, u, sigmoid(f32(p[H + u] * c[u] + z[H + u])));
      const g = gate(2, u, tanh(z[2 * H + u]));
      const now = cell(u, f32(f * c[u] + f32(i * g)));
      const o = gate(3, u, sigmoid(f32(p[2 * H + u] * now + z[3 * H + u])));
      return f32(o * tanh(now));
    },
    coupled(u, H, z, p, h, c, gate, cell) {
      const f = gate(0, u, sigmoid(z[u]));
      const g = gate(1, u, tanh(z[H + u]));
      const o = gate(2, u, sigmoid(z[2 * H + u]));
      return f32(o * tanh(cell(u, f32(f * c[u] + f32(f32(1 - f) * g)))));
    },
    gru(u, H, z, p, h, c, gate) {
      const r = gate(0, u, sigmoid(z[u]));
      const update = gate(1, u, sigmoid(z[H + u]));
      const n = gate(2, u, tanh(f32(r * z[3 * H + u] + z[2 * H + u])));
      return f32(f32(1 - update) * n + f32(update * h[u]));
    },
    rnn(u, H, z, p, h, c, gate) {
      return gate(0, u, tanh(z[u]));
    },
  };

  // ---- the model ----

  /** A model that is ready to run. It keeps nothing between calls: the state is an argument of every step.
   *
   * config: {cell, vocabulary, embedding, hidden, layers, gates, states, precision, boundary}
   * symbols: the text of each symbol; of the boundary, the text that it represents.
   */
  class Model {
    constructor(header, buffer) {
      const { cell, hidden: H, layers, gates, vocabulary: V, embedding: E, precision } = header;
      const reader = new Reader(buffer);
      const int8 = precision === "int8";
      const rows = gates.length * H;
      this.config = header;
      this.table = header.table ? reader.floats(V * rows) : null; // the first layer's sums for each symbol
      this.embedding = this.table ? null : reader.floats(V * E);
      this.cache = new Map(); // the same, computed when a symbol occurs for the first time
      this.layers = Array.from({ length: layers }, (_, l) => {
        const layer = {};
        if (l > 0 || !this.table) {
          layer.input = Matrix.read(reader, rows, l > 0 ? H : E, int8 && l > 0);
          layer.bias = reader.floats(rows);
        }
        // The GRU's candidate has two sums; the hidden one is the last of z.
        const apart = cell === "gru" ? H : 0;
        layer.hidden = [Matrix.read(reader, rows - apart, H, int8)];
        if (apart) layer.hidden.push(Matrix.read(reader, H, H, int8));
        layer.candidateBias = reader.floats(apart);
        layer.peephole = reader.floats(cell === "peephole" ? 3 * H : 0);
        return layer;
      });
      this.projection = Matrix.read(reader, V, H, int8);
      this.bias = reader.floats(V);
      if (reader.at !== buffer.byteLength) throw new Error("the weights do not match the model");
      this.z = new Float32Array(4 * H + GROUP);
      this.gates = new Float32Array(rows);
      this.logits = new Float32Array(V + GROUP);
      this.input = new Float32Array(H);
      this.text = new charlstmText.Vocabulary(header);
      this.symbols = this.text.symbols;
    }

    encode(text) {
      return this.text.encode(text);
    }

    decode(ids) {
      return this.text.decode(ids);
    }

    /** The initial state: one {h, c} of (H) zeros per layer; c is null in a cell without one. */
    zeroState() {
      const { layers, hidden, states } = this.config;
      const zeros = () => new Float32Array(hidden);
      return Array.from({ length: layers }, () => ({ h: zeros(), c: states.includes("c") ? zeros() : null }));
    }

    copyState(state) {
      return state.map(({ h, c }) => ({ h: h.slice(), c: c && c.slice() }));
    }

    /** Read one symbol: update the state, and return the logits (V) of the next one.
     *
     * clamp: a list of {layer, unit, quantity, value}: fix h, c or a gate of a unit, or of all if unit is null.
     * record: an array that receives {gates: (G·H), h: (H), c: (H) or null} of each layer.
     */
    step(id, state, { clamp = null, record = null } = {}) {
      if (!(Number.isInteger(id) && id >= 0 && id < this.config.vocabulary)) throw new RangeError(`no symbol ${id}`);
      if (id === this.config.boundary) for (const { h, c } of state) h.fill(0), c && c.fill(0);
      let x = null;
      for (let l = 0; l < this.layers.length; l++) {
        const { h, c } = state[l];
        this.sum(l, id, x, h);
        this.activate(l, h, c, clamp ? clamp.filter(({ layer }) => layer === l) : []);
        if (record) record[l] = { gates: this.gates.slice(), h: h.slice(), c: c && c.slice() };
        x = h;
      }
      const logits = new Float32Array(this.logits.length);
      logits.set(this.bias);
      this.projection.addTo(logits, 0, this.activations(x, this.projection));
      return logits.subarray(0, this.config.vocabulary);
    }

    /** Set z to the sums of a layer. */
    sum(l, id, x, h) {
      const z = this.z;
      const { hidden, input, bias, candidateBias } = this.layers[l];
      const rows = this.gates.length;
      if (l === 0) z.set(this.firstSums(id));
      else z.set(bias), input.addTo(z, 0, this.activations(x, input));
      z.set(candidateBias, rows);
      const activations = this.activations(h, hidden[0]);
      hidden[0].addTo(z, 0, activations);
      if (hidden[1]) hidden[1].addTo(z, rows, activations);
    }

    /** The first layer's bias and input product of a symbol, (G·H). */
    firstSums(id) {
      const { embedding: E, vocabulary } = this.config;
      const rows = this.gates.length;
      if (this.table) return this.table.subarray(id * rows, (id + 1) * rows);
      let sums = this.cache.get(id);
      if (!sums) {
        const padded = new Float32Array(rows + GROUP);
        padded.set(this.layers[0].bias);
        this.layers[0].input.addTo(padded, 0, this.embedding.subarray(id * E, (id + 1) * E));
        sums = padded.subarray(0, rows);
        if (vocabulary * rows <= CACHED_SUMS) this.cache.set(id, sums);
      }
      return sums;
    }

    /** h as the input of a matrix: in 8 bits if the matrix is. */
    activations(h, matrix) {
      if (!matrix.scale) return h;
      for (let u = 0; u < h.length; u++) this.input[u] = quantised(h[u]);
      return this.input;
    }

    /** Compute the gates and the new state of a layer from z. */
    activate(l, h, c, clamps) {
      const H = this.config.hidden;
      const gates = this.gates;
      const step = CELLS[this.config.cell];
      const peephole = this.layers[l].peephole;
      let gate = (k, u, value) => (gates[k * H + u] = value);
      let cell = (u, value) => (c[u] = value);
      let hidden = (u, value) => (h[u] = value);
      if (clamps.length) {
        const fixed = clampedValues(this.config, clamps);
        const or = (quantity, u, value) => (Number.isNaN(fixed[quantity][u]) ? value : fixed[quantity][u]);
        gate = (k, u, value) => (gates[k * H + u] = or(this.config.gates[k], u, value));
        cell = (u, value) => (c[u] = or("c", u, value));
        hidden = (u, value) => (h[u] = or("h", u, value));
      }
      for (let u = 0; u < H; u++) hidden(u, step(u, H, this.z, peephole, h, c, gate, cell));
    }
  }

  /** The fixed values of one layer by quantity, (H) each; NaN where a unit is free. */
  function clampedValues({ gates, hidden }, clamps) {
    const fixed = {};
    for (const name of [...gates, "h", "c"]) fixed[name] = new Float32Array(hidden).fill(NaN);
    for (const { unit = null, quantity, value } of clamps) {
      if (!Object.hasOwn(fixed, quantity)) throw new RangeError(`the cell has no ${quantity}`);
      if (unit === null) fixed[quantity].fill(value);
      else fixed[quantity][unit] = value;
    }
    return fixed;
  }

  /** The model of this page, from the elements that charlstm/web/page.py wrote. */
  function load() {
    const header = JSON.parse(document.getElementById("charlstm-model").textContent);
    const text = document.getElementById("charlstm-weights").textContent;
    const words = new Uint32Array(text.length / 5);
    const digit = (at) => (text.charCodeAt(at) === 33 ? 20 : text.charCodeAt(at) - 40);
    for (let k = 0, at = 0; k < words.length; k++) {
      let word = 0;
      for (const end = at + 5; at < end; at++) word = 85 * word + digit(at);
      words[k] = word;
    }
    return new Model(header, words.buffer);
  }

  return { Model, load };
})();

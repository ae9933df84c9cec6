/* Sample text from a model: the same text as `charlstm sample` for the same seed, precision and options.
 *
 * charlstm/inference/filters.py defines each step; charlstm/csrc/engine_sampling.c is the implementation that this one
 * follows, up to the order of its sums.
 */
"use strict";

const charlstmSampler = (() => {
  const f32 = Math.fround;
  const GAMMA = 0x9e3779b97f4a7c15n;
  const DEFAULT_LENGTH = 1000;
  const MOST_CHARS = 1e6;
  const GREEDY_LENGTH = 10000; // of a document: the most probable symbols may never end it
  const DEFAULTS = {
    prime: "",
    length: null, // null: until the end of the document, or DEFAULT_LENGTH if the model has no documents
    temperature: 0.8,
    topK: 0,
    topP: 1,
    minP: 0,
    typical: 1,
    repeatPenalty: 1,
    repeatWindow: 64,
    seed: null, // null: a random seed
    clamp: null,
  };
  const RANGES = {
    length: [0, MOST_CHARS],
    temperature: [0, Number.MAX_VALUE],
    topK: [0, 1114112],
    topP: [0, 1],
    minP: [0, 1],
    typical: [0, 1],
    repeatPenalty: [0.01, 100],
    repeatWindow: [1, 1024],
  };
  const WHOLE = ["length", "topK", "repeatWindow"];

  /** The options with their defaults. Throws a RangeError for a value outside its range. */
  function complete(options) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    const all = { ...DEFAULTS, ...Object.fromEntries(given) };
    for (const [name, [low, high]] of Object.entries(RANGES)) {
      const value = all[name];
      if (name === "length" && value === null) continue;
      const isWhole = WHOLE.includes(name);
      const isInRange = typeof value === "number" && value >= low && value <= high;
      const range = high === Number.MAX_VALUE ? `of at least ${low}` : `from ${low} to ${high}`;
      if (!isInRange || (isWhole && !Number.isInteger(value)))
        throw new RangeError(`${name} must be a ${isWhole ? "whole " : ""}number ${range}, not ${value}`);
    }
    return all;
  }

  // ---- random numbers: SplitMix64 ----

  function mix(x) {
    x = BigInt.asUintN(64, (x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n);
    x = BigInt.asUintN(64, (x ^ (x >> 27n)) * 0x94d049bb133111ebn);
    return x ^ (x >> 31n);
  }

  /** A function of the position in a text that returns its random number in [0, 1). */
  function randomNumbers(seed) {
    const start = mix(mix(BigInt.asUintN(64, BigInt(seed))));
    return (position) => {
      const bits = mix(BigInt.asUintN(64, start + BigInt(position + 1) * GAMMA)) >> 11n;
      return Number(bits) * 2 ** -53;
    };
  }

  /** An unpredictable seed from 0 to 2^53 - 1. */
  function randomSeed() {
    const [low, high] = crypto.getRandomValues(new Uint32Array(2));
    return low + 2 ** 32 * (high & 0x1fffff);
  }

  // ---- from logits to weights ----

  /** The largest logit. Throws an Error if one is NaN or +∞, or if all are -∞. */
  function largestOf(logits) {
    let largest = -Infinity;
    for (const logit of logits) largest = Number.isNaN(logit) || logit > largest ? logit : largest;
    if (!Number.isFinite(largest)) throw new Error("the model's logits are not finite");
    return largest;
  }

  /** The logits after the repeat penalty, with -∞ for the symbols that the automaton does not allow next. */
  function adjusted(logits, { repeatPenalty, repeatWindow }, recent, transitions, phase) {
    const own = logits.slice();
    const penalty = f32(repeatPenalty);
    if (repeatPenalty !== 1)
      for (const id of recent.slice(-repeatWindow))
        own[id] = logits[id] > 0 ? f32(logits[id] / penalty) : f32(logits[id] * penalty);
    if (transitions)
      for (let id = 0; id < own.length; id++)
        if (transitions[256 * phase + id] === charlstmText.NEVER) own[id] = -Infinity;
    return own;
  }

  const ranked = (a, b) => b.key - a.key || b.weight - a.weight || a.id - b.id;
  const weightOf = (candidates) => candidates.reduce((sum, { weight }) => sum + weight, 0);

  /** The first candidates by rank: the fewest with at least this weight, but at least one and at most `most`. */
  function keepFirst(candidates, most, mass) {
    const sorted = candidates.sort(ranked);
    let kept = 0;
    let sum = 0;
    while (kept < sorted.length && kept < most && (kept === 0 || sum < mass)) sum += sorted[kept++].weight;
    return sorted.slice(0, kept);
  }

  /** Rank candidates by the distance of their surprisal from the entropy. */
  function rankByTypicality(candidates) {
    const total = weightOf(candidates);
    let entropy = 0;
    for (const candidate of candidates) {
      const share = candidate.weight / total;
      candidate.key = share > 0 ? -Math.log(share) : Infinity;
      if (share > 0) entropy += share * candidate.key;
    }
    const rounded = (x) => x + 2 ** 52 - 2 ** 52; // half to even
    for (const candidate of candidates) candidate.key = -rounded(Math.abs(candidate.key - entropy) * 2 ** 32);
    return candidates;
  }

  /** Set the weights that the filters exclude to 0. The largest weight is 1. */
  function filter(weights, { topK, topP, minP, typical }) {
    let kept = [];
    weights.forEach((weight, id) => weight > 0 && kept.push({ id, weight, key: weight }));
    if (topK > 0 && topK < kept.length) kept = keepFirst(kept, topK, Infinity);
    if (topP < 1) kept = keepFirst(kept, kept.length, topP * weightOf(kept));
    if (minP > 0) kept = kept.filter(({ weight }) => weight >= minP);
    if (typical < 1) kept = keepFirst(rankByTypicality(kept), kept.length, typical * weightOf(kept));
    weights.fill(0);
    for (const { id, weight } of kept) weights[id] = weight;
  }

  /** The weight of each symbol; a probability is its share of the sum. */
  function weightsOf(logits, options, recent, transitions, phase) {
    largestOf(logits);
    const own = adjusted(logits, options, recent, transitions, phase);
    const largest = largestOf(own);
    const { temperature, topK, topP, minP, typical } = options;
    const weights = new Float64Array(own.length);
    if (temperature === 0) {
      weights[own.indexOf(largest)] = 1;
      return weights;
    }
    for (let id = 0; id < own.length; id++) {
      const x = temperature === 1 ? own[id] - largest : (own[id] - largest) / temperature;
      weights[id] = x * Math.LOG2E >= -1022 ? Math.exp(x) : 0;
    }
    if (topK > 0 || topP < 1 || minP > 0 || typical < 1) filter(weights, options);
    return weights;
  }

  /** The probability of each symbol after temperature, repeat penalty and filters.
   *
   * logits: (V) of `model.step`. options: as of `sampleText`. recent: the ids before, for the repeat penalty.
   * For a model of bytes, model and recent exclude the bytes that would make the text invalid UTF-8.
   */
  function distribution(logits, options = {}, recent = [], model = null) {
    const transitions = model && model.text.transitions;
    const phase = transitions ? charlstmText.incompleteSuffix(recent).state : 0;
    const weights = weightsOf(logits, complete(options), recent, transitions, phase);
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  }

  /** The first symbol whose cumulative weight exceeds number · total. */
  function choose(weights, number) {
    const cumulative = weights.slice();
    for (let id = 1; id < cumulative.length; id++) cumulative[id] += cumulative[id - 1];
    const limit = number * cumulative[cumulative.length - 1];
    return cumulative.findIndex((sum) => sum > limit);
  }

  // ---- texts ----

  /** Generate a text symbol by symbol, until it has `length` symbols or its document ends.
   *
   * Yields {id, text, logits, weights, state}: the symbol, the characters that it completes ("" within a character of a
   * model of bytes), the logits (V) that it was sampled from, the weights (V) of all symbols after the filters, and the
   * state before the symbol is read, which changes with the next one.
   */
  function* generate(model, options = {}) {
    const all = complete(options);
    const vocabulary = model.text;
    const { transitions, boundary } = vocabulary;
    const longest = all.temperature === 0 ? GREEDY_LENGTH : MOST_CHARS;
    const length = all.length ?? (boundary === null ? DEFAULT_LENGTH : longest);
    const number = randomNumbers(all.seed ?? randomSeed());
    const recent = vocabulary.encodeBegun(all.prime);
    const state = model.zeroState();
    for (const id of recent.slice(0, -1)) model.step(id, state, { clamp: all.clamp });
    // For a model of bytes: the automaton's state, and whether the last character of the prime is incomplete.
    let phase = transitions ? charlstmText.incompleteSuffix(recent).state : 0;
    let isOfPrime = phase !== 0;
    let pending = []; // symbols of an incomplete character
    for (let position = 0; position < length; position++) {
      const logits = model.step(recent[recent.length - 1], state, { clamp: all.clamp });
      const weights = weightsOf(logits, all, recent, transitions, phase);
      const id = choose(weights, number(position));
      if (all.length === null && id === boundary) return;
      recent.push(id);
      pending.push(id);
      if (transitions) phase = transitions[256 * phase + id];
      let text = "";
      if (phase === 0) {
        text = isOfPrime ? "" : vocabulary.decode(pending); // the prime's last character is not part of the text
        pending = [];
        isOfPrime = false;
      }
      yield { id, text, logits, weights, state };
    }
  }

  /** Return the text that `charlstm sample` generates for the same options, without the prime.
   *
   * options: {prime, length, temperature, topK, topP, minP, typical, repeatPenalty, repeatWindow, seed, clamp,
   * onSymbol}; all are optional. clamp is as in `Model.step`; onSymbol is called with what `generate` yields. A seed
   * above 2^53 - 1 must be a BigInt or a string.
   */
  function sampleText(model, { onSymbol = null, ...options } = {}) {
    let text = "";
    for (const symbol of generate(model, options)) {
      text += symbol.text;
      if (onSymbol) onSymbol(symbol);
    }
    return text;
  }

  /** Return the logits (V) of the symbol after a text, in the order of the vocabulary. */
  function logitsAfter(model, text) {
    const state = model.zeroState();
    let logits = null;
    for (const id of model.text.encodeBegun(text)) logits = model.step(id, state);
    return logits;
  }

  /** Set window.charlstm, and answer messages of the page that shows this one in a frame.
   *
   * A message is {charlstm: "logits" or "sample", argument, id}; the answer is {charlstm: "answer", id, result} or
   * {charlstm: "answer", id, error}.
   */
  function expose(model) {
    const calls = {
      logits: (text) => Array.from(logitsAfter(model, String(text))),
      sample: (options) => sampleText(model, options),
    };
    window.charlstm = Object.freeze({ ...calls, symbols: Object.freeze([...model.symbols]) });
    window.addEventListener("message", ({ data, source }) => {
      if (source !== window.parent || source === window || !data || !Object.hasOwn(calls, data.charlstm)) return;
      const answer = { charlstm: "answer", id: data.id };
      try {
        answer.result = calls[data.charlstm](data.argument);
      } catch (error) {
        answer.error = error.message;
      }
      source.postMessage(answer, "*");
    });
  }

  return { DEFAULTS, checkOptions: complete, generate, sampleText, distribution, logitsAfter, randomSeed, expose };
})();

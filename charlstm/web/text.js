/* Text to ids and back, as charlstm/text/vocabulary.py does it.
 *
 * The symbols of a model are code points or bytes. A byte that is not part of valid UTF-8 is the lone surrogate
 * U+DC00 + byte in a string.
 */
"use strict";

const charlstmText = (() => {
  const NEVER = 255; // in TRANSITIONS: the byte is not allowed in this state

  /* Well-formed UTF-8 as an automaton: the state after each byte in each state, [state * 256 + byte]. In state 0 all
   * characters are complete. The ranges are those of charlstm/text/utf8.py. */
  const FIRST = [[0x00, 0x7f, 0], [0xc2, 0xdf, 1], [0xe0, 0xe0, 3], [0xe1, 0xec, 2], [0xed, 0xed, 4], [0xee, 0xef, 2],
    [0xf0, 0xf0, 5], [0xf1, 0xf3, 6], [0xf4, 0xf4, 7]];
  const LATER = [[0x80, 0xbf, 0], [0x80, 0xbf, 1], [0xa0, 0xbf, 1], [0x80, 0x9f, 1], [0x90, 0xbf, 2], [0x80, 0xbf, 2],
    [0x80, 0x8f, 2]];
  const TRANSITIONS = new Uint8Array(8 * 256).fill(NEVER);
  for (const [low, high, after] of FIRST) TRANSITIONS.fill(after, low, high + 1);
  LATER.forEach(([low, high, after], k) => TRANSITIONS.fill(after, 256 * (k + 1) + low, 256 * (k + 1) + high + 1));

  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const encoder = new TextEncoder();

  /** The number of bytes of an incomplete character at the end of bytes, and the automaton's state after them. */
  function incompleteSuffix(bytes) {
    for (let length = 1; length <= Math.min(3, bytes.length); length++) {
      let state = 0;
      for (const byte of bytes.slice(-length)) {
        state = TRANSITIONS[256 * state + byte];
        if (state === 0 || state === NEVER) break;
      }
      if (state !== 0 && state !== NEVER) return { length, state };
    }
    return { length: 0, state: 0 };
  }

  /** The text of bytes; each byte that is not valid UTF-8 becomes a lone surrogate. */
  function decodeBytes(bytes) {
    const escaped = (part) => Array.from(part, (byte) => String.fromCharCode(0xdc00 + byte)).join("");
    let text = "";
    let valid = 0; // bytes from here to `complete` are valid; those up to `k` begin a character
    let complete = 0;
    for (let k = 0, state = 0; k < bytes.length; k++) {
      const before = state;
      state = TRANSITIONS[256 * state + bytes[k]];
      if (state === 0) complete = k + 1;
      if (state !== NEVER) continue;
      const end = before === 0 ? k + 1 : k; // a byte that ends an incomplete character may begin another
      text += decoder.decode(bytes.subarray(valid, complete)) + escaped(bytes.subarray(complete, end));
      valid = complete = end;
      k = end - 1;
      state = 0;
    }
    return text + decoder.decode(bytes.subarray(valid, complete)) + escaped(bytes.subarray(complete));
  }

  /** The bytes of a text. */
  function encodeBytes(text) {
    const bytes = [];
    for (const char of text) {
      const code = char.codePointAt(0);
      if (code >= 0xdc80 && code <= 0xdcff) bytes.push(code - 0xdc00);
      else if (code >= 0xd800 && code <= 0xdfff) throw unknown(char);
      else bytes.push(...encoder.encode(char));
    }
    return bytes;
  }

  function unknown(char) {
    return new RangeError(`the model has no symbol for ${printable(char)}`);
  }

  /** The symbols of a model.
   *
   * symbols: the text of each; of the boundary between documents, the text that it represents.
   * boundary: the id of the boundary, or null.
   * start: the symbol that an empty text begins with.
   * transitions: the automaton that accepts valid texts, or null if all are valid.
   */
  class Vocabulary {
    constructor({ characters, boundary, boundaryText, start }) {
      this.areBytes = characters === null;
      this.symbols = this.areBytes
        ? Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte < 128 ? byte : 0xdc00 + byte))
        : Array.from(characters);
      this.ids = new Map(this.symbols.map((symbol, id) => [symbol, id]));
      this.boundary = boundary;
      this.start = start;
      this.transitions = this.areBytes ? TRANSITIONS : null;
      if (boundary !== null) {
        this.boundarySymbol = this.symbols[boundary];
        this.symbols[boundary] = boundaryText;
      }
    }

    /** The ids of a text. Throws a RangeError for a character that the model does not have. */
    encode(text) {
      if (this.boundary !== null) text = text.split(this.symbols[this.boundary]).join(this.boundarySymbol);
      if (this.areBytes) return encodeBytes(text);
      return Array.from(text, (char) => {
        const id = this.ids.get(char);
        if (id === undefined) throw unknown(char);
        return id;
      });
    }

    /** The ids that the model reads before it predicts: a text of its own begins after a boundary. */
    encodeBegun(text) {
      const ids = this.encode(text);
      if (this.boundary !== null) return [this.boundary, ...ids];
      return ids.length ? ids : [this.start];
    }

    /** The text of ids. */
    decode(ids) {
      if (!this.areBytes) return Array.from(ids, (id) => this.symbols[id]).join("");
      const text = decodeBytes(Uint8Array.from(ids));
      return this.boundary === null ? text : text.split(this.boundarySymbol).join(this.symbols[this.boundary]);
    }
  }

  const NAMES = new Map([["\n", "↵"], [" ", "␣"], ["\t", "⇥"], ["\r", "␍"]]);

  /** A short label of a symbol, in which every character is visible and none changes the direction of the text. */
  function printable(symbol) {
    if (NAMES.has(symbol)) return NAMES.get(symbol);
    return Array.from(symbol, (char) => {
      const code = char.codePointAt(0);
      if (code >= 0xdc80 && code <= 0xdcff) return `0x${(code - 0xdc00).toString(16).toUpperCase()}`;
      if (!/[\p{C}\p{Z}\p{M}]/u.test(char) || char === " ") return char;
      return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    }).join("");
  }

  return { Vocabulary, TRANSITIONS, NEVER, incompleteSuffix, printable };
})();

"use strict";
/* What every module of the page uses: elements, the shared selection, and how numbers and symbols are shown.
   Data from the model reaches the document as text nodes and attributes only, never as HTML. */

const page = {};

{
  const SVG = "http://www.w3.org/2000/svg";

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
      else if (name === "text") node.textContent = value;
      else if (name === "style") for (const [key, given] of Object.entries(value)) node.style.setProperty(key, given);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  };

  /** Make an HTML element. `text` is its text, `on` its listeners, `style` its properties. */
  page.el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);

  /** Make an SVG element. */
  page.svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

  /** Find the element with an id. */
  page.at = (id) => document.getElementById(id);

  /** The selection that all elements share, with listeners by key. */
  class Store {
    constructor(values) {
      this.values = values;
      this.listeners = new Map();
    }

    get(key) {
      return this.values[key];
    }

    /** Set several values, then call once each listener of a key that changed. */
    set(changes) {
      const called = new Set();
      for (const [key, value] of Object.entries(changes)) {
        if (Object.is(this.values[key], value)) continue;
        this.values[key] = value;
        for (const listener of this.listeners.get(key) || []) called.add(listener);
      }
      for (const listener of called) listener(this.values);
    }

    /** Call a listener whenever one of the keys changes. */
    on(keys, listener) {
      for (const key of [].concat(keys)) {
        if (!this.listeners.has(key)) this.listeners.set(key, []);
        this.listeners.get(key).push(listener);
      }
    }
  }
  page.Store = Store;

  const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

  /** Return 10 to a whole power as text. */
  page.power = (exponent) => `10${[...String(exponent)].map((digit) => RAISED[digit]).join("")}`;

  /** Return a number with a fixed count of decimals and a true minus sign; a very large one as a power of ten. */
  page.number = (value, digits = 2) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    if (Math.abs(value) >= 1e6) return `${page.number(value / 10 ** Math.floor(Math.log10(Math.abs(value))), 1)} × ${page.power(Math.floor(Math.log10(Math.abs(value))))}`;
    return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
  };

  /** Return a number whose size may be far from 1. */
  page.quantity = (value) => {
    const size = Math.abs(value);
    if (!Number.isFinite(value)) return "–";
    if (size === 0 || (size >= 0.001 && size < 1e4)) return Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 }).replace("-", "−");
    const exponent = Math.floor(Math.log10(size));
    return `${page.number(value / 10 ** exponent, 1)} × ${page.power(exponent)}`;
  };

  page.percent = (share, digits = 0) => {
    if (share > 0 && share < 0.5 * 10 ** -(digits + 2)) return `<${page.number(10 ** -digits, digits)} %`;
    return `${page.number(100 * share, digits)} %`;
  };
  page.count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));

  /** Return how a symbol is shown on its own: always visible, and never able to reorder its neighbours. */
  page.shown = (symbol) => charlstmText.printable(symbol);

  /** Return a symbol for running text: a space stays a space, everything else is visible. */
  page.plain = (symbol) => (symbol === " " ? " " : page.shown(symbol));

  const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\u00a0]/u;

  /** Return whether a symbol cannot be shown in the text as it is. */
  page.isHidden = (symbol) => symbol !== "\n" && symbol !== "\t" && HIDDEN.test(symbol);

  /** Return a text in which every symbol is visible, except that spaces and line breaks stay what they are. */
  page.visible = (text) => [...String(text)].map((part) => (part === "\n" ? part : page.plain(part))).join("");

  /** Call `work` once, when an element first comes into view. */
  page.whenVisible = (element, work) => {
    const watcher = new IntersectionObserver((entries) => {
      if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
      watcher.disconnect();
      work();
    });
    watcher.observe(element);
  };

  /** Run `work` once the page is idle, so that the first paint does not wait. */
  page.later = (work) => setTimeout(work, 0);

  /** Return the bytes of a base64 text. */
  page.bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

  const GATES = {
    i: ["input gate", "--green", "how much of the candidate is written to the cell"],
    f: ["forget gate", "--blue", "how much of the old cell is kept: 1 keeps all of it, 0 forgets it"],
    g: ["candidate", "--orange", "the value that the input gate lets in"],
    o: ["output gate", "--purple", "how much of the cell is shown to the rest of the network"],
    c: ["cell, as tanh(c)", "--ink", "the memory of the unit"],
    h: ["output", "--red", "what the unit tells the rest of the network"],
    r: ["reset gate", "--green", "how much of the old output enters the candidate"],
    z: ["update gate", "--blue", "how much of the old output is kept: 1 keeps all of it, 0 replaces it"],
    n: ["candidate", "--orange", "the value that replaces the part that is not kept"],
  };

  /** Return the full name of a gate or of a part of the state. */
  page.gateName = (name) => (GATES[name] || [name])[0];
  page.gateColour = (name) => `var(${(GATES[name] || [name, "--ink"])[1]})`;
  page.gateMeaning = (name) => (GATES[name] || [name, "", ""])[2];

  /** Return the name of the gate that keeps the memory of a cell, or null for the plain recurrent network. */
  page.keepGate = (cell) => cell === "rnn" ? null : cell === "gru" ? "z" : "f";

  page.CELLS = {
    lstm: "LSTM",
    peephole: "LSTM with peepholes",
    coupled: "LSTM with coupled gates",
    gru: "GRU",
    rnn: "plain recurrent network",
  };

  /** Return how a unit is called in a sentence; layers count from 1 for readers. */
  page.unitName = (layer, unit, layers) => (layers > 1 ? `unit ${unit} of layer ${layer + 1}` : `unit ${unit}`);

  /** Announce a result to screen readers. */
  page.say = (text) => {
    page.at("announcer").textContent = text;
  };

  /** Replace the content of an element by a sentence that says why there is nothing to show. */
  page.missing = (target, reason) => {
    target.replaceChildren(page.el("p", { class: "missing", text: reason }));
  };
}

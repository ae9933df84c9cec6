"use strict";
/* The text: one element per character, coloured by what the reader chooses, with a cursor and a selected phrase. */

{
  const { el, at, number } = page;
  const MOST_BITS = 8;

  /** The colourings of the text by name: label, value(t), kind ('signed', 'share' or 'bits'), ends of the legend. */
  page.colourings = new Map();

  const tint = (name, alpha) => `rgb(var(--${name}) / ${alpha.toFixed(3)})`;

  /** Return the background of a value of a colouring. */
  page.background = (kind, value) => {
    if (!Number.isFinite(value)) return "";
    if (kind === "signed") return tint(value < 0 ? "negative" : "positive", Math.min(1, Math.abs(value)) * 0.72);
    if (kind === "bits") return tint("heat", Math.min(1, Math.max(0, value) / MOST_BITS) * 0.75);
    return tint("share", Math.min(1, Math.max(0, value)) * 0.72);
  };

  /** Make the elements of the text. A boundary between documents and hidden characters are shown as small labels. */
  function characters(view, text) {
    const spans = [];
    const fragment = document.createDocumentFragment();
    for (let t = 0; t < text.length; t += 1) {
      const symbol = text.symbol(t);
      const span = document.createElement("span");
      if (text.isBoundary(t)) {
        span.className = "boundary";
        span.textContent = t ? "¶\n" : "¶";
      } else if (symbol === "\n") {
        span.className = "newline";
        span.textContent = "↵\n";
      } else if (symbol === "\t") span.textContent = "\t";
      else if (symbol !== " " && (page.isHidden(symbol) || /\p{M}/u.test(symbol) || symbol.length > 2)) {
        span.className = "code";
        span.textContent = page.shown(symbol);
      } else span.textContent = symbol;
      span.place = t;
      spans.push(span);
      fragment.append(span);
    }
    view.replaceChildren(fragment);
    return spans;
  }

  /** Build the text, its controls and the line about one character. */
  page.buildReader = (data, store) => {
    const { text, trace, model } = data;
    const view = at("text-view");
    const spans = characters(view, text);
    const { layers, hidden } = model.config;

    page.colourings.set("surprisal", {
      label: "surprisal", kind: "bits", question: "Where is the model surprised?", value: (t) => text.bits(t),
      low: "expected, 0 bits", high: `surprising, ${MOST_BITS} bits or more`,
    });
    page.colourings.set("unit", {
      label: "a unit", kind: null,
      value: (t) => text.unitValue(store.get("layer"), store.get("unit"), store.get("quantity"), t),
    });
    const kindOf = (name) => {
      const found = page.colourings.get(name);
      return name === "unit" ? (page.isSigned(store.get("quantity")) ? "signed" : "share") : found.kind;
    };

    const paint = () => {
      const name = store.get("colouring");
      const { value } = page.colourings.get(name);
      const kind = kindOf(name);
      for (let t = 0; t < spans.length; t += 1) spans[t].style.background = page.background(kind, value(t));
      paintLegend(name, kind);
      paintTitle(name);
    };

    const paintTitle = (name) => {
      const [layer, unit, quantity] = [store.get("layer"), store.get("unit"), store.get("quantity")];
      const which = page.unitName(layer, unit, layers);
      at("text-title").textContent = name === "unit"
        ? quantity === "h" || quantity === "c" ? `What does ${which} follow?` : `${page.isSigned(quantity) ? "What is" : "When is"} the ${page.gateName(quantity)} of ${which}${page.isSigned(quantity) ? "" : " open"}?`
        : page.colourings.get(name).question;
    };

    const paintLegend = (name, kind) => {
      const found = page.colourings.get(name);
      const ramp = el("div", { class: "ramp", "aria-hidden": "true" });
      const stops = kind === "signed" ? [-1, -0.5, 0, 0.5, 1] : kind === "bits" ? [0, 4, 8] : [0, 0.5, 1];
      ramp.style.background = `linear-gradient(90deg, ${stops.map((value) => page.background(kind, value)).join(", ")})`;
      const ends = name !== "unit" ? [found.low, found.high] : kind === "signed" ? ["−1", "1"] : ["0, closed", "1, open"];
      at("legend").replaceChildren(el("span", { text: ends[0] }), ramp, el("span", { text: ends[1] }));
    };

    const chooser = el("select", { "aria-label": "Colour of the text", on: { change: (event) => store.set({ colouring: event.target.value }) } });
    const chips = el("div", { class: "chips", role: "group", "aria-label": "Quantity of the unit" });
    const unitBox = el("input", { type: "number", min: 0, max: hidden - 1, "aria-label": "Unit", on: { change: (event) => store.set({ unit: Math.max(0, Math.min(hidden - 1, Math.round(Number(event.target.value) || 0))), colouring: "unit" }) } });
    const layerBox = el("select", { "aria-label": "Layer", on: { change: (event) => store.set({ layer: Number(event.target.value), colouring: "unit" }) } });
    for (let layer = 0; layer < layers; layer += 1) layerBox.append(el("option", { value: layer, text: `layer ${layer + 1}` }));
    const unitNote = el("span", { class: "unit-note" });
    const step = (by) => page.stepUnit(store, data, by);

    const paintControls = () => {
      chooser.replaceChildren(...[...page.colourings].filter(([, found]) => !found.isAbsent || !found.isAbsent()).map(([name, found]) => el("option", { value: name, text: found.label })));
      chooser.value = store.get("colouring");
      unitBox.value = store.get("unit");
      layerBox.value = store.get("layer");
      unitNote.textContent = data.noteOfUnit(store.get("layer"), store.get("unit"));
      chips.replaceChildren(...trace.quantities.map((name) => el("button", {
        type: "button", text: name === "c" ? "tanh(c)" : name, title: page.gateName(name),
        "aria-pressed": String(store.get("colouring") === "unit" && name === store.get("quantity")),
        on: { click: () => store.set({ quantity: name, colouring: "unit" }) },
      })));
    };
    at("colour-controls").append(el("label", null, "Colour by ", chooser), chips);
    at("unit-controls").append(
      el("button", { type: "button", text: "◀", "aria-label": "Previous unit", on: { click: () => step(-1) } }),
      layers > 1 ? layerBox : el("span", { class: "unit-note", text: "unit" }), unitBox,
      el("button", { type: "button", text: "▶", "aria-label": "Next unit", on: { click: () => step(1) } }), unitNote,
    );
    store.on(["colouring", "unit", "layer", "quantity", "influence", "version"], paint);
    store.on(["colouring", "unit", "layer", "quantity", "version"], paintControls);
    store.on(["version"], () => describe());

    // The cursor, the character under the pointer, and the phrase.
    const mark = (name, t) => {
      view.querySelector("." + name)?.classList.remove(name);
      if (t !== null && spans[t]) spans[t].classList.add(name);
    };
    store.on("position", () => {
      mark("here", store.get("position"));
      const span = spans[store.get("position")];
      if (span) {
        const [top, bottom] = [span.offsetTop - view.offsetTop, span.offsetTop - view.offsetTop + span.offsetHeight];
        if (top < view.scrollTop || bottom > view.scrollTop + view.clientHeight) view.scrollTop = top - view.clientHeight / 2;
      }
    });
    store.on("pointer", () => mark("under", store.get("pointer")));
    const markPhrase = () => {
      const phrase = store.get("phrase");
      for (const span of view.querySelectorAll(".in-phrase, .in-place")) span.classList.remove("in-phrase", "in-place");
      for (const [start, end] of store.get("places") || []) for (let t = start; t < end; t += 1) spans[t]?.classList.add("in-place");
      if (phrase) for (let t = phrase[0]; t < phrase[1]; t += 1) spans[t].classList.add("in-phrase");
    };
    store.on(["phrase", "places"], markPhrase);

    const info = at("character");
    const describe = () => {
      const pointer = store.get("pointer");
      const t = pointer === null ? store.get("position") : pointer;
      const guesses = text.guesses(t);
      const share = 2 ** -text.bits(t);
      const facts = el("p", { class: "facts" }, el("span", { class: "glyph", text: page.shown(text.symbol(t)) }));
      if (Number.isFinite(text.bits(t))) facts.append(` probability ${page.percent(share, share < 0.1 ? 1 : 0)}, surprisal ${number(text.bits(t), 1)} bits`);
      else facts.append(" the first character has no prediction");
      const value = text.unitValue(store.get("layer"), store.get("unit"), store.get("quantity"), t);
      if (Number.isFinite(value)) {
        const quantity = store.get("quantity") === "c" ? "tanh(c)" : store.get("quantity");
        facts.append(` · ${page.unitName(store.get("layer"), store.get("unit"), layers)}: ${quantity} = ${number(value)}`);
      }
      const list = el("ol", { class: "guesses", "aria-label": "The five most probable characters here" });
      for (const { symbol, share: part, came } of guesses) {
        const item = el("li", { class: came ? "came" : null }, el("span", { class: "symbol", text: page.shown(symbol) }), el("span", { text: page.percent(part) }));
        item.style.setProperty("--filled", `${100 * part}%`);
        list.append(item);
      }
      info.replaceChildren(facts, list);
    };
    store.on(["position", "pointer", "unit", "layer", "quantity"], describe);

    let anchor = null;
    const placeOf = (event) => (event.target.place === undefined ? null : event.target.place);
    view.addEventListener("pointerdown", (event) => {
      anchor = placeOf(event);
    });
    view.addEventListener("pointermove", (event) => {
      const t = placeOf(event);
      store.set({ pointer: t });
      if (event.buttons === 1 && event.pointerType !== "touch" && anchor !== null && t !== null && t !== anchor) {
        store.set({ phrase: [Math.min(anchor, t), Math.max(anchor, t) + 1] });
      }
    });
    view.addEventListener("pointerup", (event) => {
      const t = placeOf(event);
      if (t !== null && t === anchor) store.set({ position: t });
      anchor = null;
    });
    view.addEventListener("pointerleave", () => store.set({ pointer: null }));
    view.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && event.shiftKey) {
        const [start, end] = store.get("phrase") || [store.get("position"), store.get("position") + 1];
        const moved = Math.max(start + 1, Math.min(spans.length, end + by));
        store.set({ phrase: [start, moved] });
      } else if (by) {
        store.set({ position: Math.max(0, Math.min(spans.length - 1, store.get("position") + by)), pointer: null });
      } else if (event.key === "ArrowUp" || event.key === "ArrowDown") step(event.key === "ArrowUp" ? -1 : 1);
      else if (event.key === "Home" || event.key === "End") store.set({ position: event.key === "Home" ? 0 : spans.length - 1 });
      else return;
      event.preventDefault();
      if (!event.shiftKey) page.say(`${page.shown(text.symbol(store.get("position")))}, ${page.unitName(store.get("layer"), store.get("unit"), layers)}`);
    });
    paintControls();
    paint();
    describe();
    mark("here", store.get("position"));
  };

  /** Move to the next or the previous unit, through the layers. */
  page.stepUnit = (store, { model }, by) => {
    const { hidden, layers } = model.config;
    const next = (store.get("layer") * hidden + store.get("unit") + by + hidden * layers) % (hidden * layers);
    store.set({ layer: Math.floor(next / hidden), unit: next % hidden, colouring: "unit" });
  };
}

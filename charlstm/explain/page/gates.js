"use strict";
/* The gates of one unit as aligned lines, and the equation of the cell with the numbers of one character. */

{
  const { el, svg, at, number } = page;
  const LABEL = 62; // pixels before the lines
  const TRACK = 40;
  const STEP = 9; // pixels per character

  const EXPLANATIONS = {
    lstm: "The unit has a memory, the cell c. At each character the forget gate f keeps a share of it, the input gate i lets a share of the candidate g in, and the output gate o decides how much of it the rest of the network sees.",
    peephole: "The unit has a memory, the cell c, and its gates read it directly. The forget gate f keeps a share of it, the input gate i lets a share of the candidate g in, and the output gate o shows it.",
    coupled: "The unit has a memory, the cell c. What the forget gate f does not keep, the candidate g replaces: the input gate is 1 − f. The output gate o shows the cell to the rest of the network.",
    gru: "The output h is also the memory. The update gate z keeps a share of it and replaces the rest by the candidate n; the reset gate r decides how much of the old output enters the candidate.",
    rnn: "This unit has no gates and no memory cell. Its output h is computed anew at each character, so nothing can be kept unchanged for long.",
  };

  const term = (symbol, value, name) =>
    el("span", { class: "term" }, el("b", { text: symbol }), el("span", { text: number(value, 3) }), el("small", { text: name || "" }));
  const operator = (text) => el("span", { class: "operator", text });
  const row = (...parts) => el("div", { class: "row" }, parts);

  /** Return the rows of the equation of a cell with the numbers of one step of one unit. */
  function equation(cell, v) {
    const eq = operator("=");
    const times = () => operator("×");
    const plus = () => operator("+");
    if (cell === "rnn") return [row(term("h", v.h, "output"), eq, operator("tanh("), term("a", Math.atanh(Math.max(-0.9999999, Math.min(0.9999999, v.h))), "input of the unit"), operator(")"))];
    if (cell === "gru") {
      return [
        row(term("h", v.h, "output"), eq, term("z", v.z, "update"), times(), term("h", v.hBefore, "before"), plus(), operator("(1 −"), term("z", v.z, ""), operator(") ×"), term("n", v.n, "candidate")),
        row(term("r", v.r, "reset gate: share of the old output in the candidate")),
      ];
    }
    const written = cell === "coupled" ? [operator("(1 −"), term("f", v.f, ""), operator(") ×")] : [term("i", v.i, "input"), times()];
    return [
      row(term("c", v.c, "new cell"), eq, term("f", v.f, "forget"), times(), term("c", v.cBefore, "old cell"), plus(), ...written, term("g", v.g, "candidate")),
      row(term("h", v.h, "output"), operator("="), term("o", v.o, "output gate"), times(), operator("tanh("), term("c", v.c, "new cell"), operator(")")),
    ];
  }

  /** Return the numbers of one unit at one character. */
  function numbersOf(trace, exact, layer, unit) {
    const found = exact.layers[layer];
    const { gates, hidden } = trace.model.config;
    const values = { h: found.h[unit], hBefore: exact.start[layer].h[unit] };
    if (found.c) Object.assign(values, { c: found.c[unit], cBefore: exact.start[layer].c[unit] });
    gates.forEach((name, k) => {
      if (name !== "h") values[name] = found.gates[k * hidden + unit];
    });
    return values;
  }

  page.buildGates = (data, store) => {
    const { trace, text, model } = data;
    const { cell, layers } = model.config;
    at("gates-intro").textContent = EXPLANATIONS[cell];
    const lines = svg("svg", { class: "chart traces", role: "img", "aria-label": "Lines of the gates and of the state of the selected unit over the text around the selected character." });
    const holder = el("div", { class: "chart-holder clickable" }, lines);
    const numbers = el("div", { class: "panel equation", "aria-live": "off" });
    const title = el("h3");
    const note = el("p", { class: "note" });
    const meanings = el("ul", { class: "legend" }, trace.quantities.map((name) => el("li", { title: page.gateMeaning(name) },
      el("span", { style: { color: page.gateColour(name), "font-weight": 600 }, text: name === "c" ? "tanh(c)" : name }), el("span", { text: `${page.gateName(name)}` }))));
    at("gates-body").append(meanings, holder, title, numbers, note);
    let first = 0;
    let count = 60;

    const drawLines = () => {
      const width = Math.max(260, holder.clientWidth || 640);
      const height = trace.quantities.length * (TRACK + 8) + 26;
      count = Math.min(text.length, Math.max(12, Math.floor((width - LABEL - 8) / STEP)));
      const here = store.get("position");
      first = Math.max(0, Math.min(text.length - count, here - Math.floor(count * 0.6)));
      lines.setAttribute("viewBox", `0 0 ${width} ${height}`);
      lines.setAttribute("height", height);
      lines.replaceChildren();
      const px = (t) => LABEL + (t - first + 0.5) * STEP;
      const [layer, unit] = [store.get("layer"), store.get("unit")];
      lines.append(svg("rect", { x: px(here) - STEP / 2, y: 0, width: STEP, height, class: "here-column" }));
      trace.quantities.forEach((name, k) => {
        const top = k * (TRACK + 8) + 4;
        const signed = page.isSigned(name);
        const py = (value) => top + TRACK * (signed ? (1 - value) / 2 : 1 - value);
        const zero = py(0);
        let path = "";
        let area = "";
        for (let t = first; t < first + count; t += 1) {
          const value = text.unitValue(layer, unit, name, t);
          if (!Number.isFinite(value)) continue;
          path += `${path ? "L" : "M"}${px(t)},${py(value).toFixed(1)}`;
          area += `${area ? "L" : `M${px(t)},${zero}L`}${px(t)},${py(value).toFixed(1)}`;
          if (t === first + count - 1) area += `L${px(t)},${zero}Z`;
        }
        const colour = page.gateColour(name);
        lines.append(
          svg("line", { x1: LABEL, x2: width, y1: zero, y2: zero, class: "grid" }),
          svg("path", { d: area.endsWith("Z") ? area : "", class: "band", style: { fill: colour } }),
          svg("path", { d: path, class: "line", style: { stroke: colour, "stroke-width": 1.8 } }),
          svg("text", { x: 0, y: top + TRACK / 2 + 4, class: "track-name", style: { fill: colour }, text: name === "c" ? "tanh(c)" : name }),
          svg("text", { x: LABEL - 8, y: top + 8, "text-anchor": "end", class: "tiny", text: "1" }),
          svg("text", { x: LABEL - 8, y: top + TRACK, "text-anchor": "end", class: "tiny", text: signed ? "−1" : "0" }),
        );
      });
      for (let t = first; t < first + count; t += 1) {
        const shown = text.symbol(t) === " " ? "·" : page.shown(text.symbol(t));
        lines.append(svg("text", { x: px(t), y: height - 6, "text-anchor": "middle", class: shown.length > 1 ? "letter tiny" : "letter", text: shown }));
      }
    };

    const drawNumbers = () => {
      const pointer = store.get("pointer");
      const t = pointer === null ? store.get("position") : pointer;
      const [layer, unit] = [store.get("layer"), store.get("unit")];
      at("gates-title").textContent = `What happens inside ${page.unitName(layer, unit, layers)}?`;
      if (t >= trace.done) {
        title.textContent = "The numbers at this character";
        numbers.replaceChildren(el("p", { class: "note", text: `The page is still computing the text: ${page.percent(trace.done / text.length)}.` }));
        return;
      }
      const exact = data.exact(t);
      title.replaceChildren("The numbers at ", el("span", { class: "glyph", text: page.shown(text.symbol(t)) }), ` (character ${page.count(t + 1)})`);
      const values = numbersOf(trace, exact, layer, unit);
      numbers.replaceChildren(...equation(cell, values));
      const keep = page.keepGate(cell);
      if (keep) {
        const kept = values[keep];
        note.textContent = `${kept > 0.9 ? "The unit keeps" : kept < 0.1 ? "The unit forgets nearly all and keeps" : "The unit keeps"} ${page.percent(kept)} of its memory at this character (${page.gateName(keep)} ${keep} = ${number(kept, 3)}).`;
      } else note.textContent = "Without a gate, the old output enters only through the weights and a tanh.";
    };

    holder.addEventListener("click", (event) => {
      const k = Math.floor((event.clientX - holder.getBoundingClientRect().left - LABEL) / STEP);
      if (k >= 0 && k < count) store.set({ position: first + k, pointer: null });
    });
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", "Gates of the selected unit. The left and right arrow keys move the character, the up and down arrow keys change the unit.");
    holder.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) store.set({ position: Math.max(0, Math.min(text.length - 1, store.get("position") + by)), pointer: null });
      else if (event.key === "ArrowUp" || event.key === "ArrowDown") page.stepUnit(store, data, event.key === "ArrowUp" ? -1 : 1);
      else return;
      event.preventDefault();
    });
    store.on(["position", "layer", "unit", "version"], drawLines);
    let asked = null;
    store.on(["position", "pointer", "layer", "unit", "version"], () => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(drawNumbers);
    });
    let width = 0;
    new ResizeObserver(() => {
      if (holder.clientWidth !== width) {
        width = holder.clientWidth;
        drawLines();
      }
    }).observe(holder);
    drawNumbers();
  };
}

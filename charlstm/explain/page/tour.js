"use strict";
/* A tour of six steps on the model of this page. */

{
  const { el, at, number } = page;

  /** Return the place where the gate that keeps the memory of a unit closes most, after it was open. */
  function whereItForgets(data, layer, unit) {
    const gate = page.keepGate(data.model.config.cell);
    if (!gate) return null;
    let best = null;
    let largest = 0;
    for (let t = 8; t < data.text.length; t += 1) {
      let before = 1;
      for (let k = t - 4; k < t; k += 1) before = Math.min(before, data.text.unitValue(layer, unit, gate, k));
      const fall = before - data.text.unitValue(layer, unit, gate, t);
      if (fall > largest) [largest, best] = [fall, t];
    }
    return best;
  }

  /** Return the steps: {title, text, place (id of an element), act()}. */
  function steps(data, store) {
    const { model, units } = data;
    const { cell, layers } = model.config;
    const keep = page.keepGate(cell);
    const best = units[0] || { layer: 0, unit: 0 };
    const name = page.unitName(best.layer, best.unit, layers);
    const select = (changes) => store.set({ layer: best.layer, unit: best.unit, quantity: data.stateQuantity, colouring: "unit", ...changes });
    const forgets = () => whereItForgets(data, best.layer, best.unit);
    const other = data.gradients.find((found) => found.cell === "rnn");
    return [
      {
        title: "One unit, and what it follows", place: "text",
        text: best.feature
          ? `The text is now coloured by ${name}: blue is high, orange is low. It follows “${page.visible(best.feature)}” with a score of ${number(best.score)}; shuffled features reach at most ${number(best.control)}. Use the up and down arrow keys in the text to see other units.`
          : `The text is now coloured by ${name}: blue is high, orange is low. Use the up and down arrow keys in the text to see other units.`,
        act: () => select({}),
      },
      {
        title: keep ? "What is a gate?" : "A network without gates", place: "gates",
        text: keep
          ? `A gate is a number from 0 to 1 that multiplies something. The ${page.gateName(keep)} ${keep} multiplies the memory of the unit: at 1 it is kept, at 0 it is gone. The equation shows the numbers of the selected character.`
          : "A plain recurrent network computes its output anew at each character. Nothing multiplies an old value by 1, so nothing is kept.",
        act: () => select({}),
      },
      {
        title: keep ? "Watch it forget" : "Watch it change", place: "gates",
        text: keep
          ? `At the marked character the ${page.gateName(keep)} of ${name} closes, and the memory that was kept before is replaced. Move with the arrow keys to see what comes before and after.`
          : `Move with the arrow keys, and watch how quickly ${name} changes.`,
        act: () => {
          const t = forgets();
          select({ quantity: keep || "h", ...(t === null ? {} : { position: t, pointer: null }) });
        },
      },
      {
        title: keep ? `What if ${keep} were always 0?` : "What if a unit were silent?", place: "intervene",
        text: keep
          ? `Every unit now forgets everything at each character. The model still knows which character follows which, but words and lines fall apart. This is what the ${page.gateName(keep)} does to the text.`
          : "One unit is held at 0 here. Compare the two texts, and the bits per character.",
        act: () => (keep ? page.runIntervention(keep, "all", 0) : page.runIntervention("h", "one", 0)),
      },
      {
        title: "Why the plain RNN cannot do this", place: "gradients",
        text: other && cell !== "rnn"
          ? "Training can only connect two characters if the gradient survives the way from one to the other. Compare the curves: without a gate that can stay at 1, each step shrinks the gradient by a factor."
          : keep
            ? "Training can only connect two characters if the gradient survives the way from one to the other. Along the cell it is multiplied by the gate alone, which can stay near 1; a plain RNN multiplies it by a matrix and the slope of a tanh at each step. Add a plain RNN to this chart with --beside."
            : "Training can only connect two characters if the gradient survives the way from one to the other. Here each step multiplies it by a matrix and the slope of a tanh, and it vanishes. Add an LSTM to this chart with --beside.",
      },
      {
        title: "Let it write", place: "sampling",
        text: "Each press of Step selects one character with a random number. The grey bars are what the model says, the blue ones are what the temperature and the filters leave. The same seed gives the same text in a terminal.",
        act: () => page.stepSampling(),
      },
    ];
  }

  page.buildTour = (data, store) => {
    const box = at("tour");
    let all = null;
    let now = -1;
    let opener = null;
    const close = () => {
      document.querySelector(".pointed")?.classList.remove("pointed");
      box.hidden = true;
      now = -1;
      opener?.focus();
    };
    const show = (k) => {
      all ??= steps(data, store);
      now = k;
      const { title, text, place, act } = all[k];
      document.querySelector(".pointed")?.classList.remove("pointed");
      if (act) act();
      const target = at(place);
      target.classList.add("pointed");
      target.scrollIntoView({ block: "start" });
      const isLast = k === all.length - 1;
      const next = el("button", { type: "button", id: "tour-next", class: "primary", text: isLast ? "Finish" : "Next", on: { click: () => (isLast ? close() : show(k + 1)) } });
      box.hidden = false;
      box.replaceChildren(
        el("p", { class: "count", text: `Step ${k + 1} of ${all.length}` }), el("h2", { id: "tour-title", text: title }), el("p", { text }),
        el("div", { class: "buttons" }, next,
          k ? el("button", { type: "button", text: "Back", on: { click: () => show(k - 1) } }) : null,
          el("button", { type: "button", id: "tour-close", text: "Close", on: { click: close } })),
      );
      next.focus({ preventScroll: true });
    };
    at("tour-start").addEventListener("click", (event) => {
      opener = event.currentTarget;
      show(0);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && now >= 0) close();
    });
    page.showTour = show;
  };
}

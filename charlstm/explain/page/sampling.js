"use strict";
/* Live sampling: one character at a time, with the probabilities before and after temperature and filters. */

{
  const { el, at, number } = page;
  const SHOWN = 12;
  const PAUSES = { slow: 900, normal: 220, fast: 0 }; // milliseconds between two characters

  const OPTIONS = [
    { name: "temperature", label: "temperature", flag: "--temp", min: 0, max: 2, step: 0.05, value: 0.8, off: null, show: (value) => number(value) },
    { name: "topK", label: "top-k", flag: "--top-k", min: 0, max: 50, step: 1, value: 0, off: 0, show: (value) => (value ? String(value) : "off") },
    { name: "topP", label: "top-p", flag: "--top-p", min: 0.05, max: 1, step: 0.05, value: 1, off: 1, show: (value) => (value < 1 ? number(value) : "off") },
    { name: "minP", label: "min-p", flag: "--min-p", min: 0, max: 0.5, step: 0.01, value: 0, off: 0, show: (value) => (value ? number(value) : "off") },
  ];

  /** Return a text as one word of a shell. */
  const quoted = (text) => `$'${[...text].map((char) => ({ "\n": "\\n", "\t": "\\t", "'": "\\'", "\\": "\\\\" })[char] || page.plain(char)).join("")}'`;

  page.buildSampling = (data) => {
    const { model } = data;
    const { symbols } = model;
    const body = at("sampling-body");
    const inputs = {};
    const form = el("div", { class: "form" });
    for (const option of OPTIONS) {
      const shown = el("output", { text: option.show(option.value) });
      const input = el("input", { type: "range", id: `sampling-${option.name}`, min: option.min, max: option.max, step: option.step, value: option.value });
      input.addEventListener("input", () => {
        shown.textContent = option.show(Number(input.value));
        changed();
      });
      inputs[option.name] = input;
      form.append(el("label", null, el("span", null, option.label, shown), input));
    }
    const prime = el("textarea", { id: "sampling-prime", rows: 2, spellcheck: "false", text: data.prime });
    const seed = el("input", { type: "number", id: "sampling-seed", min: 0, value: 1 });
    const length = el("input", { type: "number", id: "sampling-length", min: 1, max: 5000, value: 300 });
    const speed = el("select", { id: "sampling-speed" }, Object.keys(PAUSES).map((name) => el("option", { value: name, text: name })));
    speed.value = "normal";
    form.append(
      el("label", null, el("span", { text: "text to continue" }), prime), el("label", null, el("span", { text: "seed" }), seed),
      el("label", null, el("span", { text: "number of characters" }), length), el("label", null, el("span", { text: "speed" }), speed));
    const output = el("div", { class: "output", id: "sampling-output" });
    const message = el("p", { class: "note", id: "sampling-message", "aria-live": "polite" });
    const bars = el("tbody");
    const command = el("code", { id: "sampling-command" });
    const play = el("button", { type: "button", id: "sampling-play", text: "Play" });

    let run = null; // {generator, text, recent, last}
    let timer = null;

    const options = () => ({
      ...Object.fromEntries(OPTIONS.map(({ name }) => [name, Number(inputs[name].value)])),
      prime: prime.value, seed: Number(seed.value), length: Number(length.value),
    });

    const paintCommand = () => {
      const filters = OPTIONS.filter(({ name, off }) => Number(inputs[name].value) !== off).map(({ name, flag }) => `${flag} ${inputs[name].value}`);
      const words = ["charlstm sample", ...filters, `--seed ${seed.value}`, `-n ${length.value}`, `--precision ${model.config.precision}`];
      if (prime.value) words.push(`--prime ${quoted(prime.value)}`);
      command.textContent = words.join(" ");
    };

    const paintBars = (logits, shares, chosen) => {
      const before = charlstmSampler.distribution(logits, { temperature: 1 });
      const order = [...before.keys()].sort((a, b) => before[b] - before[a]).slice(0, SHOWN);
      if (chosen !== null && !order.includes(chosen)) order[SHOWN - 1] = chosen;
      const bar = (share, colour) => {
        const inner = el("div", { class: "bar" });
        inner.style.width = `${100 * share}%`;
        inner.style.background = colour;
        return el("td", { class: "bar-cell" }, el("div", { class: "track" }, inner));
      };
      bars.replaceChildren(...order.map((id) => el("tr", { class: [id === chosen ? "chosen" : "", shares[id] === 0 ? "excluded" : ""].join(" ") },
        el("th", { scope: "row", class: "symbol", text: page.shown(symbols[id]) }), bar(before[id], "var(--grey)"), el("td", { class: "value", text: page.percent(before[id], 1) }),
        bar(shares[id], "var(--blue)"), el("td", { class: "value", text: shares[id] ? page.percent(shares[id], 1) : "excluded" }))));
    };

    const paintText = (fresh) => {
      const text = run ? run.text : "";
      output.replaceChildren(el("span", { class: "prime", text: page.visible(prime.value) }), el("span", { text: page.visible(text.slice(0, text.length - fresh.length)) }), el("span", { class: "new", text: page.visible(fresh) }));
      output.scrollTop = output.scrollHeight;
      output.dataset.text = text;
    };

    const stop = () => {
      clearTimeout(timer);
      timer = null;
      play.textContent = "Play";
    };

    /** Begin a text: the bars show the first choice. */
    const restart = () => {
      stop();
      run = null;
      message.textContent = "";
      paintCommand();
      try {
        run = { generator: charlstmSampler.generate(model, options()), text: "", last: null, done: false };
        const logits = charlstmSampler.logitsAfter(model, prime.value);
        run.last = logits;
        paintBars(logits, charlstmSampler.distribution(logits, options(), model.text.encodeBegun(prime.value), model), null);
      } catch (error) {
        run = null;
        bars.replaceChildren();
        message.textContent = `This cannot be generated: ${error.message}.`;
      }
      paintText("");
    };

    /** Take one step; returns whether there was one. */
    const step = (isSilent) => {
      if (!run) restart();
      if (!run || run.done) return false;
      const { value, done } = run.generator.next();
      if (done) {
        run.done = true;
        message.textContent = "The text has ended.";
        stop();
        return false;
      }
      run.text += value.text;
      run.last = value.logits;
      if (!isSilent) {
        const total = value.weights.reduce((sum, weight) => sum + weight, 0);
        paintBars(value.logits, value.weights.map((weight) => weight / total), value.id);
        paintText(value.text);
      }
      return true;
    };

    const playOn = () => {
      const pause = PAUSES[speed.value];
      for (let k = pause ? 1 : 3; k > 0; k -= 1) if (!step(false)) return;
      timer = setTimeout(playOn, pause);
    };

    const changed = () => {
      stop();
      paintCommand();
      if (run && run.last) {
        const found = charlstmSampler.distribution(run.last, options(), [], null);
        paintBars(run.last, found, null);
      }
      run = run ? { ...run, done: true } : null; // the next step begins the text again with the new options
      if (run) run.isOld = true;
    };
    const current = () => {
      if (!run || run.isOld || run.done) restart();
    };

    play.addEventListener("click", () => {
      if (timer !== null) {
        stop();
        return;
      }
      current();
      play.textContent = "Pause";
      timer = 0;
      playOn();
    });
    for (const input of [prime, seed, length]) input.addEventListener("change", restart);
    body.append(
      form,
      el("div", { class: "buttons" },
        el("button", { type: "button", id: "sampling-step", class: "primary", text: "Step", on: { click: () => {
          stop();
          current();
          step(false);
        } } }),
        play,
        el("button", { type: "button", id: "sampling-all", text: "Write all", on: { click: () => {
          restart();
          while (step(true));
          paintText("");
        } } }),
        el("button", { type: "button", id: "sampling-restart", text: "Start again", on: { click: restart } })),
      output, message,
      el("table", { class: "distribution", id: "sampling-bars" },
        el("colgroup", null, ["symbol-column", "bar-column", "value-column", "bar-column", "value-column"].map((name) => el("col", { class: name }))),
        el("thead", null, el("tr", null, el("th", { text: "next" }), el("th", { colspan: 2, text: "as the model says it" }), el("th", { colspan: 2, text: "after temperature and filters" }))), bars),
      el("p", { class: "note" }, "The same text in a terminal: ", command),
    );
    restart();
    page.stepSampling = () => {
      current();
      step(false);
    };
  };
}

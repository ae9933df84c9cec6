"use strict";
/* Hands on: hold a unit or a gate at a value, and compare what the model writes and predicts. */

{
  const { el, at, number } = page;
  const LENGTH = 300;
  const SCORED = 600; // characters of the text on which the price of a clamp is measured
  const RANKED = 12;

  /** Return the mean surprisal of a text, in bits per character, with clamped quantities. */
  function meanBits(model, ids, clamp) {
    const state = model.zeroState();
    let sum = 0;
    let logits = null;
    for (let t = 0; t < ids.length; t += 1) {
      if (logits) sum += page.bits(logits, ids[t]);
      logits = model.step(ids[t], state, { clamp });
    }
    return sum / Math.max(1, ids.length - 1);
  }

  /** Return the elements of a generated text; characters from the first difference on are marked. */
  function shownText(prime, text, other) {
    const [mine, theirs] = [[...text], [...other]];
    let same = 0;
    while (same < mine.length && mine[same] === theirs[same]) same += 1;
    return [el("span", { class: "prime", text: page.visible(prime) }), el("span", { text: page.visible(mine.slice(0, same).join("")) }), el("span", { class: "differs", text: page.visible(mine.slice(same).join("")) })];
  }

  const controls = (data, store) => {
    const { trace, model } = data;
    const { layers, hidden, cell } = model.config;
    const quantities = trace.quantities.length > 1 ? trace.quantities : ["h"];
    const quantity = el("select", { id: "clamp-quantity" }, quantities.map((name) => el("option", { value: name, text: `${name}: ${name === "c" ? "cell" : page.gateName(name)}` })));
    quantity.value = page.keepGate(cell) || "h";
    const layer = el("select", { id: "clamp-layer" }, Array.from({ length: layers }, (_, k) => el("option", { value: k, text: `layer ${k + 1}` })));
    const unit = el("select", { id: "clamp-unit" }, el("option", { value: "all", text: "all units" }), el("option", { value: "one", text: "the selected unit" }));
    const value = el("input", { type: "range", id: "clamp-value", min: 0, max: 1, step: 0.05, value: 0 });
    const shownValue = el("output", { text: "0.00" });
    const range = () => {
      const signed = page.isSigned(quantity.value) || quantity.value === "h";
      value.min = signed ? (quantity.value === "c" ? -3 : -1) : 0;
      value.max = quantity.value === "c" ? 3 : 1;
    };
    const update = () => {
      range();
      shownValue.textContent = number(Number(value.value));
      unit.lastChild.textContent = `unit ${store.get("unit")}`;
    };
    const form = el("div", { class: "form" },
      el("label", null, el("span", { text: "what is held" }), quantity),
      layers > 1 ? el("label", null, el("span", { text: "in" }), layer) : null,
      el("label", null, el("span", { text: "of" }), unit),
      el("label", null, el("span", null, "at the value", shownValue), value));
    store.on(["unit", "layer"], () => {
      layer.value = store.get("layer");
      update();
    });
    quantity.addEventListener("change", update);
    value.addEventListener("input", update);
    const set = (name, of, held) => {
      quantity.value = name;
      unit.value = of;
      range();
      value.value = held;
      update();
    };
    const read = () => ({ layer: Number(layer.value), unit: unit.value === "all" ? null : store.get("unit"), quantity: quantity.value, value: Number(value.value) });
    set(page.keepGate(cell) || "h", page.keepGate(cell) ? "all" : "one", 0);
    return { form, set, read };
  };

  page.buildIntervene = (data, store) => {
    const { text, model, trace } = data;
    const { layers, cell } = model.config;
    const body = at("intervene-body");
    const { form, set, read } = controls(data, store);
    const keep = page.keepGate(cell);
    const prime = el("textarea", { id: "clamp-prime", rows: 2, spellcheck: "false", text: data.prime });
    const seed = el("input", { type: "number", id: "clamp-seed", min: 0, value: 1 });
    const temperature = el("input", { type: "number", id: "clamp-temperature", min: 0, max: 5, step: 0.1, value: 0.6 });
    const verdict = el("p", { id: "clamp-verdict", "aria-live": "polite" });
    const trained = el("div", { class: "output", id: "clamp-trained" });
    const held = el("div", { class: "output", id: "clamp-held" });
    const heldTitle = el("h3", { text: "With the value held" });
    const name = ({ layer, unit, quantity, value }) =>
      `${quantity} = ${number(value)} ${unit === null ? `in all units${layers > 1 ? ` of layer ${layer + 1}` : ""}` : `in ${page.unitName(layer, unit, layers)}`}`;
    let baseline = null;

    const run = () => {
      const change = read();
      const options = { prime: prime.value, seed: Number(seed.value), temperature: Number(temperature.value), length: LENGTH };
      let before;
      let after;
      try {
        before = charlstmSampler.sampleText(model, options);
        after = charlstmSampler.sampleText(model, { ...options, clamp: [change] });
      } catch (error) {
        verdict.textContent = `This cannot be generated: ${error.message}.`;
        return;
      }
      trained.replaceChildren(...shownText(prime.value, before, after));
      held.replaceChildren(...shownText(prime.value, after, before));
      heldTitle.textContent = `With ${name(change)}`;
      const ids = text.ids.slice(0, SCORED);
      baseline ??= meanBits(model, ids, null);
      const price = meanBits(model, ids, [change]);
      verdict.textContent = ids.length > 1
        ? `On the first ${page.count(ids.length)} characters of the text the model needs ${number(baseline)} bits per character as trained and ${number(price)} with ${name(change)}.`
        : "";
    };
    const preset = (label, id, ...how) => el("button", { type: "button", id, text: label, on: { click: () => {
      set(...how);
      run();
    } } });
    const presets = [];
    if (keep) {
      presets.push(preset(`Forget everything: ${keep} = 0`, "clamp-forget", keep, "all", 0), preset(`Forget nothing: ${keep} = 1`, "clamp-keep", keep, "all", 1));
      if (trace.quantities.includes("i")) presets.push(preset("Write nothing: i = 0", "clamp-closed", "i", "all", 0));
    }
    presets.push(preset("Silence the selected unit: h = 0", "clamp-silence", "h", "one", 0));
    if (trace.hasCell) presets.push(preset("Turn its cell on: c = 2", "clamp-on", "c", "one", 2));
    body.append(
      el("div", { class: "buttons" }, presets), form,
      el("div", { class: "form" },
        el("label", null, el("span", { text: "text to continue" }), prime),
        el("label", null, el("span", { text: "seed" }), seed),
        el("label", null, el("span", { text: "temperature" }), temperature)),
      el("div", { class: "buttons" }, el("button", { type: "button", class: "primary", id: "clamp-run", text: "Generate both texts", on: { click: run } })),
      verdict,
      el("div", { class: "two" }, el("div", null, el("h3", { text: "As trained" }), trained), el("div", null, heldTitle, held)),
    );
    page.runIntervention = (...how) => {
      set(...how);
      run();
    };
    page.whenVisible(trained, () => trained.childElementCount || run());
    buildRanking(data, store, body);
  };

  /** Add the rankings of what is lost when a gate is held or a unit is silenced. */
  function buildRanking(data, store, body) {
    const { ablation, model } = data;
    const { layers } = model.config;
    body.append(el("h3", { text: "Which units and gates matter most?" }));
    if (!ablation) {
      body.append(el("p", { class: "missing", text: data.reasons.ablation || "The text is too short to measure what each unit is worth." }));
      return;
    }
    if (ablation.gates.length) {
      body.append(page.barTable({
        caption: `Bits per character that are lost when a gate is held in all units of a layer (${page.count(ablation.gateChars)} characters)`,
        high: Math.max(...ablation.gates.map(({ cost }) => cost), 0.1),
        rows: ablation.gates.map(({ layer, gate, value, cost }) => ({
          name: `${page.gateName(gate)} ${gate} = ${value}${layers > 1 ? `, layer ${layer + 1}` : ""}`, value: cost, text: `${cost >= 0 ? "+" : ""}${number(cost)} bits`, colour: page.gateColour(gate),
        })),
      }));
    }
    const holder = el("div");
    const draw = () => holder.replaceChildren(page.barTable({
      caption: `Bits per character that are lost when one unit is silenced, h = 0 (${page.count(ablation.unitChars)} characters)`,
      high: Math.max(...ablation.units.slice(0, RANKED).map(({ cost }) => cost), 0.01),
      rows: ablation.units.slice(0, RANKED).map(({ layer, unit, cost }) => ({
        name: page.unitName(layer, unit, layers) + (data.featureOfUnit(layer, unit) ? `: ${page.visible(data.featureOfUnit(layer, unit))}` : ""),
        value: cost, text: `${cost >= 0 ? "+" : ""}${number(cost, 3)} bits`, colour: "var(--red)",
        current: layer === store.get("layer") && unit === store.get("unit"),
        onClick: () => store.set({ layer, unit, quantity: data.stateQuantity, colouring: "unit" }),
      })),
    }));
    body.append(holder);
    store.on(["layer", "unit"], draw);
    draw();
  }
}

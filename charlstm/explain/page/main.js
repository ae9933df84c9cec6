"use strict";
/* Start the page: the text first, then one element after another, then the model over the whole text. */

{
  const { el, at, number } = page;

  const QUESTIONS = [
    ["text", "Text"], ["predictions", "Predictions"], ["units", "Units"], ["gates", "Gates"], ["saturation", "Open or closed"], ["gradients", "Gradients"], ["influence", "Influence"],
    ["phrase", "Phrase"], ["intervene", "Hold a gate"], ["sampling", "Sampling"], ["ngrams", "n-grams"], ["history", "Learning"], ["copying", "Copying"],
  ];

  function buildTheme() {
    const root = document.documentElement;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const apply = (name) => {
      root.dataset.theme = name;
    };
    apply(dark.matches ? "dark" : "light");
    dark.addEventListener("change", () => apply(dark.matches ? "dark" : "light"));
    at("theme").addEventListener("click", () => apply(root.dataset.theme === "dark" ? "light" : "dark"));
  }

  function buildNavigation() {
    const links = new Map(QUESTIONS.map(([id, label]) => [id, el("a", { href: `#${id}`, text: label })]));
    at("navigation").append(...[...links.values()].map((link) => el("li", null, link)));
    const watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id).setAttribute("aria-current", "true");
      }
    }, { rootMargin: "-20% 0px -70% 0px" });
    for (const id of links.keys()) if (id !== "text") watcher.observe(at(id));
  }

  function buildIntro(data, store) {
    const { model, facts, units, text } = data;
    const { cell, layers, hidden, precision, vocabulary } = model.config;
    at("intro-model").append(
      el("strong", { text: facts.name }), ` is ${/^[aeiou]/i.test(page.CELLS[cell]) || cell === "lstm" || cell === "peephole" || cell === "coupled" ? "an" : "a"} ${page.CELLS[cell]} with ${layers > 1 ? `${layers} layers of ` : ""}${page.count(hidden)} units, ${page.count(facts.parameters)} parameters and ${page.count(vocabulary)} symbols. On the ${page.count(text.length)} ${facts.unit}s of this page it needs `,
      el("strong", { text: `${number(facts.bits)} bits per ${facts.unit}` }), `. The page runs the model itself, with ${precision === "fp32" ? "32-bit" : "8-bit"} weights; nothing is sent anywhere.`,
    );
    const best = units[0];
    const keep = page.keepGate(cell);
    const card = (title, body, id, label, act) => el("div", { class: "card" }, el("h2", { text: title }), el("p", null, body), el("button", { type: "button", id, text: label, on: { click: act } }));
    const cards = at("intro-cards");
    if (best) {
      cards.append(card("What does the strongest unit follow?",
        [el("strong", { text: `Unit ${best.unit}${layers > 1 ? ` of layer ${best.layer + 1}` : ""} follows “${page.visible(best.feature)}”` }), ` with a score of ${number(best.score)}. Shuffled features reach at most ${number(best.control)}.`],
        "card-unit", "Show it in the text", () => {
          store.set({ layer: best.layer, unit: best.unit, quantity: data.stateQuantity, colouring: "unit" });
          at("text").scrollIntoView({ block: "start" });
        }));
    }
    cards.append(keep
      ? card(`What does the ${page.gateName(keep)} do?`, `It decides at each character how much of the memory is kept. Hold it at 0, and the model writes without a memory.`,
        "card-gate", `Hold ${keep} at 0`, () => {
          at("intervene").scrollIntoView({ block: "start" });
          page.runIntervention(keep, "all", 0);
        })
      : card("What does a network without gates remember?", "Its gradients show how fast the past fades.", "card-gate", "Show the gradients", () => at("gradients").scrollIntoView({ block: "start" })));
    cards.append(card("Is this your first recurrent network?", "The tour takes six steps on this model: what a gate is, how a unit forgets, and why a plain RNN cannot do this.", "card-tour", "Take the tour", () => page.showTour(0)));
  }

  async function start() {
    const packed = new Blob([page.bytes(JSON.parse(at("charlstm-explain").textContent))]);
    const json = await new Response(packed.stream().pipeThrough(new DecompressionStream("deflate"))).json();
    const model = charlstmEngine.load();
    charlstmSampler.expose(model);
    const data = page.read(json, model);
    const best = data.units[0] || { layer: 0, unit: 0 };
    const store = new page.Store({
      layer: best.layer, unit: best.unit, quantity: data.stateQuantity, colouring: data.units.length ? "unit" : "surprisal",
      position: Math.min(data.text.length - 1, 40), pointer: null, phrase: null, places: null, influence: null, version: 0,
    });
    page.state = store;
    page.current = data;
    buildTheme();
    buildNavigation();
    buildIntro(data, store);
    page.buildReader(data, store);
    at("about").textContent = `Made by charlstm ${data.facts.version} from ${data.facts.path}.`;
    const builders = [
      page.buildPredictions, page.buildUnits, page.buildGates, page.buildSaturation, page.buildGradients, page.buildInfluence, page.buildPhrase,
      page.buildIntervene, page.buildSampling, page.buildNgrams, page.buildHistory, page.buildCopying, page.buildTour,
    ];
    const next = () => {
      const build = builders.shift();
      if (!build) {
        document.documentElement.dataset.ready = "true";
        let shown = 0;
        data.trace.start((share) => {
          if (share < 1 && share - shown < 0.1) return;
          shown = share;
          store.set({ version: store.get("version") + 1 });
          if (share === 1) document.documentElement.dataset.traced = "true";
        });
        return;
      }
      build(data, store);
      page.later(next);
    };
    page.later(next);
  }

  start();
}

"use strict";
/* How the model learned: its curve, what it wrote at each validation, and the text as the kept checkpoints saw it. */

{
  const { el, at, number } = page;

  const slider = (id, count, label, change) => {
    const input = el("input", { type: "range", id, min: 0, max: count - 1, step: 1, value: count - 1, "aria-label": label });
    input.addEventListener("input", () => change(Number(input.value)));
    return input;
  };

  /** Return the training loss at the recorded points of the run, or at the validations in older logs. */
  function trainingCurve({ points, training }) {
    if (training.length > 1) return { x: training.map(([step]) => step), y: training.map(([, bits]) => bits) };
    return { x: points.map(({ step }) => step), y: points.map(({ train }) => train ?? NaN) };
  }

  page.buildHistory = (data, store) => {
    const { history } = data;
    const body = at("history-body");
    if (!history || !history.points.length) {
      page.missing(body, data.reasons.learning || "The run directory of this model is not here, so its curve is unknown.");
      return;
    }
    const { points, checkpoints } = history;
    const steps = points.map(({ step }) => step);
    const sample = el("div", { class: "output", id: "history-sample" });
    const when = el("p", { id: "history-when", "aria-live": "polite" });
    const show = (k) => {
      const point = points[k];
      when.textContent = `After ${page.count(point.step)} steps${Number.isFinite(point.seconds) ? ` (${number(point.seconds, 0)} s)` : ""}: ${number(point.valid)} bits per character on the validation text. It wrote:`;
      sample.textContent = page.visible(point.sample || "No sample was kept at this validation.");
    };
    const byPoint = slider("history-slider", points.length, "Validation", show);
    body.append(
      page.lineChart({
        title: "Bits per character during the run", label: "Validation and training loss over the steps of the run.",
        x: { label: "step" }, y: { label: "bits per character" }, onPick: (_, k) => {
          byPoint.value = k;
          show(k);
        },
        series: [
          { name: "validation", colour: "var(--blue)", x: steps, y: points.map(({ valid }) => valid) },
          { name: "training", colour: "var(--orange)", dash: "7 4", ...trainingCurve(history) },
        ],
      }),
      el("h3", { text: "What it wrote on the way" }), byPoint, when, sample,
    );
    show(points.length - 1);
    body.append(el("h3", { text: "The same text, as earlier checkpoints saw it" }));
    if (!checkpoints.length) {
      body.append(el("p", { class: "missing", text: data.reasons.checkpoints || "This run kept no checkpoints of its validations. Train with --keep 20 to see the text as they saw it." }));
      return;
    }
    let chosen = checkpoints.length - 1;
    page.colourings.set("checkpoint", {
      label: "surprisal at a kept checkpoint", kind: "bits", question: "Where was an earlier checkpoint surprised?", low: "expected, 0 bits", high: "surprising, 8 bits or more",
      value: (t) => checkpoints[chosen].bits(t),
    });
    const about = el("p", { id: "checkpoint-about", "aria-live": "polite" });
    const pick = (k, colour) => {
      chosen = k;
      about.textContent = `Step ${page.count(checkpoints[k].step)}: ${number(checkpoints[k].mean)} bits per character on this text.`;
      if (colour) {
        store.set({ colouring: "checkpoint" });
        store.set({ version: store.get("version") + 1 });
      }
    };
    body.append(slider("checkpoint-slider", checkpoints.length, "Kept checkpoint", (k) => pick(k, true)), about);
    pick(chosen, false);
  };
}

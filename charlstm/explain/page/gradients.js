"use strict";
/* Why gradients survive: their norm over the steps back, beside other runs; and what context is worth. */

{
  const { el, at } = page;
  const COLOURS = { lstm: "--blue", peephole: "--purple", coupled: "--orange", gru: "--green", rnn: "--red" };
  const DASHES = ["", "7 4", "2 3", "10 3 2 3"];
  const FLOOR = 1e-12; // smaller norms are not drawn

  const INTROS = {
    lstm: "Training moves the weights by gradients. The effect of a character on the loss k characters later is a gradient that has to pass k steps. Along the cell, each step multiplies it by the forget gate f alone, and f can stay near 1.",
    gru: "Training moves the weights by gradients. The effect of a character on the loss k characters later is a gradient that has to pass k steps. Along the direct path, each step of a GRU multiplies it by the update gate z alone, and z can stay near 1.",
    rnn: "Training moves the weights by gradients. The effect of a character on the loss k characters later is a gradient that has to pass k steps. In a plain recurrent network each step multiplies it by a matrix and by the slope of a tanh, so it fades or explodes.",
  };

  const floored = (values) => values.map((value) => (value === null || value < FLOOR ? NaN : value));

  function survival(found, layer) {
    const series = found.layers[Math.min(layer, found.layers.length - 1)];
    const at100 = found.lags.indexOf(100) >= 0 ? found.lags.indexOf(100) : found.lags.length - 1;
    return { lag: found.lags[at100], share: series.h.middle[at100] / series.h.middle[0] };
  }

  page.buildGradients = (data, store) => {
    const { gradients, context, model } = data;
    const { cell } = model.config;
    at("gradients-intro").textContent = INTROS[cell] || INTROS.lstm;
    const body = at("gradients-body");
    const colourOf = (found, k) => (k ? `var(${COLOURS[found.cell]})` : `var(${COLOURS[cell]})`);
    const dashOf = (all, k) => DASHES[all.slice(0, k).filter((found) => found.cell === all[k].cell).length % DASHES.length];
    if (!gradients.length) page.missing(body, data.reasons.gradients || "The text is too short for gradients over several steps.");
    else {
      const most = Math.max(...gradients.map(({ layers }) => layers.length));
      const chooser = el("select", { id: "gradients-layer", "aria-label": "Layer" }, Array.from({ length: most }, (_, k) => el("option", { value: k, text: `layer ${k + 1}` })));
      const holder = el("div");
      const draw = () => {
        const layer = Number(chooser.value);
        const own = gradients[0].layers[Math.min(layer, gradients[0].layers.length - 1)];
        const series = gradients.map((found, k) => {
          const curve = found.layers[Math.min(layer, found.layers.length - 1)].h;
          return { name: `${found.name} (${found.cell})`, colour: colourOf(found, k), dash: dashOf(gradients, k), x: found.lags, y: floored(curve.middle), low: floored(curve.low), high: floored(curve.high) };
        });
        if (own.path) series.push({ name: "this model, along the cell path alone", colour: "var(--ink)", dash: "2 3", x: gradients[0].lags, y: floored(own.path.middle), low: floored(own.path.low), high: floored(own.path.high) });
        holder.replaceChildren(page.lineChart({
          title: "Size of the gradient of the loss, k characters back",
          label: "Median norm of the gradient of the loss with respect to the output k characters earlier, on a logarithmic scale; bands are quartiles.",
          x: { label: "k, characters back", domain: [0, Math.max(...gradients.map(({ lags }) => lags.at(-1)))] },
          y: { label: "norm of the gradient, median and quartiles", log: true }, series, height: 320, digits: 5,
        }));
        if (own.product) {
          holder.append(page.lineChart({
            title: `Mean over the units of the product of ${page.keepGate(cell)} over k steps`,
            label: "What is left of the memory of an average unit after k characters.",
            x: { label: "k, characters back" }, y: { label: "share of the memory that is kept", domain: [0, 1] }, height: 200, digits: 3,
            series: [{ name: "share", colour: "var(--blue)", x: gradients[0].lags, y: own.product.middle, low: own.product.low, high: own.product.high }],
          }));
        }
      };
      const sentences = gradients.map((found) => {
        const { lag, share } = survival(found, 0);
        return `In ${found.name} (${page.CELLS[found.cell]}), ${share >= 0.001 ? page.percent(share, share < 0.1 ? 1 : 0) : page.quantity(share)} of the gradient is left after ${lag} characters.`;
      });
      body.append(el("p", { text: sentences.join(" ") }));
      if (most > 1) body.append(el("div", { class: "controls" }, chooser));
      chooser.addEventListener("change", draw);
      body.append(holder);
      draw();
      if (gradients.length === 1) body.append(el("p", { class: "note", text: "To compare with another cell, train it on the same text and add its run: charlstm explain --beside RUN." }));
    }
    if (context.length) {
      body.append(page.lineChart({
        title: "What is context worth?",
        label: "Bits per character as a function of the number of characters that the model has read before.",
        x: { label: "characters of context", log: true, ticks: [1, 2, 4, 8, 16, 32, 64, 128, 256] },
        y: { label: "bits per character" }, digits: 3,
        series: context.map((found, k) => ({
          name: `${found.name} (${found.cell})`, colour: colourOf(found, k), dash: dashOf(context, k), x: found.context, y: found.bits,
          low: found.bits.map((value, n) => value - (found.error[n] || 0)), high: found.bits.map((value, n) => value + (found.error[n] || 0)),
        })),
      }));
    }
  };
}

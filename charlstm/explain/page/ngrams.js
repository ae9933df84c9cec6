"use strict";
/* Bits per character against n-gram models: in all, by kind of character, and by distance to an opening character. */

{
  const { el, at, number } = page;

  page.buildNgrams = (data) => {
    const { ngrams } = data;
    const body = at("ngrams-body");
    if (!ngrams) {
      page.missing(body, data.reasons.ngrams || "The training text cannot be read here, so there is nothing to count.");
      return;
    }
    const best = ngrams.bits.indexOf(Math.min(...ngrams.bits));
    const order = ngrams.orders[best];
    body.append(
      el("p", { class: "big-number" }, el("strong", { text: `${number(ngrams.model)} bits` }), el("span", { text: `per character, against ${number(ngrams.bits[best])} of the best n-gram model (n = ${order})` })),
      page.lineChart({
        title: "All characters", label: `Bits per character of n-gram models for n from ${ngrams.orders[0]} to ${ngrams.orders.at(-1)}, and of this model.`,
        x: { label: "n, length of the n-gram", ticks: ngrams.orders }, y: { label: "bits per character" }, height: 220,
        series: [
          { name: "n-gram model", colour: "var(--orange)", x: ngrams.orders, y: ngrams.bits },
          { name: "this model", colour: "var(--blue)", dash: "7 4", x: ngrams.orders, y: ngrams.orders.map(() => ngrams.model) },
        ],
      }),
    );
    if (ngrams.kinds.length) {
      const high = Math.max(...ngrams.kinds.flatMap(({ model, ngram }) => [model, ngram].filter(Number.isFinite)));
      body.append(page.barTable({
        caption: `By kind of character: the bar is this model, the tick is the ${order}-gram model. Shorter is better.`,
        high,
        rows: ngrams.kinds.map(({ name, count, model, ngram }) => ({
          name: `${name} (${page.count(count)})`, value: model, mark: ngram, text: `${number(model)} / ${number(ngram)}`, colour: model <= ngram ? "var(--blue)" : "var(--orange)",
        })),
      }));
    }
    for (const { name, distance, model, ngram } of ngrams.distances) {
      body.append(page.lineChart({
        title: name, label: `Bits per character as a function of the distance: ${name}.`, x: { label: "distance in characters", log: true, ticks: distance.length > 1 ? distance : undefined }, y: { label: "bits per character" }, height: 200,
        series: [
          { name: `${order}-gram model`, colour: "var(--orange)", x: distance, y: ngram },
          { name: "this model", colour: "var(--blue)", x: distance, y: model },
        ],
      }));
    }
  };
}

"use strict";
/* The copy meter: the longest part of each generated text that occurs in the training text. */

{
  const { el, at, number } = page;

  page.buildCopying = (data) => {
    const { copies } = data;
    const body = at("copying-body");
    if (!copies || !copies.length) {
      page.missing(body, data.reasons.copies || "The training text cannot be read here, so nothing can be compared with it.");
      return;
    }
    const output = el("div", { class: "output", id: "copy-text" });
    const about = el("p", { id: "copy-about", "aria-live": "polite" });
    const holder = el("div");
    const high = Math.max(...copies.map(({ length }) => length), 1);
    let chosen = 0;
    const draw = () => {
      const found = copies[chosen];
      const start = found.copied ? found.text.indexOf(found.copied) : -1;
      const parts = start < 0 ? [found.text] : [found.text.slice(0, start), found.copied, found.text.slice(start + found.copied.length)];
      output.replaceChildren(...parts.map((part, k) => el("span", { class: k === 1 ? "copied" : null, text: page.visible(part) })));
      about.textContent = `The marked ${page.count(found.length)} ${data.facts.unit}s, ${page.percent(found.length / Math.max(1, [...found.text].length))} of this text, occur in the training text.`;
      holder.replaceChildren(page.barTable({
        caption: `Longest copied part, in ${data.facts.unit}s`, high,
        rows: copies.map((copy, k) => ({
          name: `temperature ${number(copy.temperature, 1)}`, value: copy.length, text: `${copy.length}`, colour: "var(--blue)",
          current: k === chosen, onClick: () => {
            chosen = k;
            draw();
          },
        })),
      }));
    };
    body.append(holder, about, output);
    draw();
  };
}

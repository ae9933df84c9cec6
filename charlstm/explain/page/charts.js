"use strict";
/* Charts as SVG: lines with bands, points and bars. Each chart is a figure with a text alternative and its numbers. */

{
  const { el, svg, number } = page;
  const TICKS = [1, 2, 5, 10];

  /** Return round values that cover a range in about `count` steps. */
  function ticks(low, high, count) {
    const span = high - low || 1;
    const power = 10 ** Math.floor(Math.log10(span / count));
    const step = power * TICKS.find((factor) => span / (power * factor) <= count);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
    return found.map((value) => (Math.abs(value) < step / 1e6 ? 0 : value));
  }

  function logTicks(low, high) {
    const found = [];
    const first = Math.ceil(Math.log10(low) - 1e-9);
    const last = Math.floor(Math.log10(high) + 1e-9);
    const step = Math.max(1, Math.ceil((last - first) / 6));
    for (let power = first; power <= last; power += step) found.push(10 ** power);
    return found;
  }

  function tickLabel(value, isLog) {
    if (isLog && (value < 0.01 || value >= 1e4)) {
      return page.power(Math.round(Math.log10(value)));
    }
    return Number(value.toPrecision(6)).toLocaleString("en", { maximumFractionDigits: 6 }).replace("-", "−");
  }

  /** A scale from data to pixels. */
  function scale(domain, range, isLog) {
    const [low, high] = isLog ? domain.map(Math.log) : domain;
    const [start, end] = range;
    const slope = (end - start) / (high - low || 1);
    const place = (value) => start + ((isLog ? Math.log(Math.max(value, domain[0])) : value) - low) * slope;
    place.invert = (pixel) => {
      const value = low + (pixel - start) / slope;
      return isLog ? Math.exp(value) : value;
    };
    return place;
  }

  /** Return the axes of a chart with the scales of its inner area. */
  function frame(root, width, height, x, y) {
    const margin = { left: 52, right: 14, top: 12, bottom: 40 };
    const px = scale(x.domain, [margin.left, width - margin.right], x.log);
    const py = scale(y.domain, [height - margin.bottom, margin.top], y.log);
    const axes = svg("g", { class: "axes" });
    const xTicks = x.ticks || (x.log ? logTicks(...x.domain) : ticks(...x.domain, width / 90));
    for (const value of xTicks) {
      axes.append(
        svg("line", { x1: px(value), x2: px(value), y1: margin.top, y2: height - margin.bottom, class: "grid" }),
        svg("text", { x: px(value), y: height - margin.bottom + 16, "text-anchor": "middle", text: tickLabel(value, x.log) }),
      );
    }
    for (const value of y.ticks || (y.log ? logTicks(...y.domain) : ticks(...y.domain, 5))) {
      axes.append(
        svg("line", { x1: margin.left, x2: width - margin.right, y1: py(value), y2: py(value), class: "grid" }),
        svg("text", { x: margin.left - 7, y: py(value) + 4, "text-anchor": "end", text: tickLabel(value, y.log) }),
      );
    }
    axes.append(
      svg("text", { x: (margin.left + width - margin.right) / 2, y: height - 5, "text-anchor": "middle", class: "axis-title", text: x.label }),
    );
    root.append(axes);
    return { px, py, margin };
  }

  /** Make a figure that draws itself again whenever its width changes.
      `draw(root, width, height)` fills the SVG; `table` is {head, rows} for readers of numbers. */
  function figure({ title, label, height, draw, table, note, className }) {
    const root = svg("svg", { role: "img", "aria-label": label, class: "chart" });
    const holder = el("div", { class: "chart-holder" }, root);
    const node = el("figure", { class: className || "figure" }, title ? el("figcaption", { text: title }) : null, holder);
    if (note) node.append(el("p", { class: "note", text: note }));
    if (table) {
      const body = el("tbody");
      const details = el("details", { class: "numbers" }, el("summary", { text: "The numbers of this chart" }));
      details.addEventListener("toggle", () => {
        if (!details.open || details.childElementCount > 1) return;
        const { head, rows } = table();
        for (const row of rows) body.append(el("tr", null, row.map((cell, k) => el(k ? "td" : "th", { text: cell }))));
        details.append(
          el("div", { class: "scroll" }, el("table", null, el("thead", null, el("tr", null, head.map((text) => el("th", { text })))), body)),
        );
      });
      node.append(details);
    }
    node.redraw = () => {
      const width = Math.max(240, Math.floor(holder.clientWidth || 640));
      root.setAttribute("viewBox", `0 0 ${width} ${height}`);
      root.setAttribute("height", height);
      root.replaceChildren();
      draw(root, width, height);
    };
    let last = 0;
    new ResizeObserver(() => {
      if (holder.clientWidth && holder.clientWidth !== last) {
        last = holder.clientWidth;
        node.redraw();
      }
    }).observe(holder);
    node.root = root;
    return node;
  }

  function legend(series) {
    return el(
      "ul",
      { class: "legend" },
      series.map(({ name, colour, dash }) => {
        const mark = svg("svg", { width: 26, height: 10, "aria-hidden": "true" });
        mark.append(svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, style: { stroke: colour }, "stroke-width": 2.5, "stroke-dasharray": dash }));
        return el("li", null, mark, el("span", { text: name }));
      }),
    );
  }

  function extent(values, isLog) {
    const used = values.filter((value) => Number.isFinite(value) && (!isLog || value > 0));
    if (!used.length) return isLog ? [0.1, 1] : [0, 1];
    const [low, high] = used.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    if (isLog) return [low === high ? low / 2 : low, low === high ? high * 2 : high];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - room, high + room];
  }

  /** Lines over one axis, with optional bands. Arrow keys and the pointer move a cursor that shows the values.

      Args: title, label (text alternative), x {label, log, domain}, y {label, log, domain},
      series [{name, colour, dash, x, y, low, high}], onPick(x), marker {x, text}. */
  page.lineChart = ({ title, label, x, y, series, height = 260, onPick, note, digits = 2 }) => {
    const show = (value) => (y.log ? page.quantity(value) : number(value, digits));
    const shown = series.filter((line) => line.y.some(Number.isFinite));
    const xDomain = x.domain || extent(shown.flatMap((line) => [...line.x]), x.log).map((value, k) => (x.log ? value : [Math.min, Math.max][k](...shown.flatMap((line) => [...line.x]))));
    const yDomain = y.domain || extent(shown.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]), y.log);
    const readout = el("p", { class: "readout", "aria-live": "off" });
    let geometry = null;
    let cursor = null;
    const nearest = (line, value) => {
      let best = 0;
      for (let k = 1; k < line.x.length; k += 1) if (Math.abs(line.x[k] - value) < Math.abs(line.x[best] - value)) best = k;
      return best;
    };
    const longest = shown.reduce((a, b) => (a && a.x.length >= b.x.length ? a : b), null);
    const move = (index) => {
      if (!longest || !geometry) return;
      cursor = Math.max(0, Math.min(longest.x.length - 1, index));
      const value = longest.x[cursor];
      const place = geometry.px(value);
      geometry.line.setAttribute("x1", place);
      geometry.line.setAttribute("x2", place);
      geometry.line.setAttribute("visibility", "visible");
      const parts = shown.map((line) => `${line.name} ${show(line.y[nearest(line, value)])}`);
      readout.textContent = `${x.label} ${tickLabel(value, false)}: ${parts.join(", ")}`;
    };
    const node = figure({
      title,
      label: label || title,
      height,
      note,
      className: "figure line-chart",
      table: () => ({
        head: [x.label, ...shown.map((line) => line.name)],
        rows: longest ? [...longest.x].map((value) => [tickLabel(value, false), ...shown.map((line) => show(line.y[nearest(line, value)]))]) : [],
      }),
      draw: (root, width) => {
        const { px, py, margin } = frame(root, width, height, { ...x, domain: xDomain }, { ...y, domain: yDomain });
        for (const line of shown) {
          const valid = (value) => Number.isFinite(value) && (!y.log || value > 0);
          if (line.low) {
            const kept = [...line.x.keys()].filter((k) => valid(line.low[k]) && valid(line.high[k]));
            const upper = kept.map((k) => `${px(line.x[k])},${py(line.high[k])}`);
            const lower = kept.map((k) => `${px(line.x[k])},${py(line.low[k])}`).reverse();
            root.append(svg("polygon", { points: [...upper, ...lower].join(" "), class: "band", style: { fill: line.colour } }));
          }
          let path = "";
          line.x.forEach((value, k) => {
            if (valid(line.y[k]) && (!y.log || line.y[k] >= yDomain[0])) path += `${path && valid(line.y[k - 1]) ? "L" : "M"}${px(value).toFixed(1)},${py(line.y[k]).toFixed(1)}`;
          });
          root.append(svg("path", { d: path, class: "line", style: { stroke: line.colour }, "stroke-dasharray": line.dash }));
          if (line.x.length < 30) for (let k = 0; k < line.x.length; k += 1) if (valid(line.y[k])) root.append(svg("circle", { cx: px(line.x[k]), cy: py(line.y[k]), r: 2.6, style: { fill: line.colour } }));
        }
        const line = svg("line", { y1: margin.top, y2: height - margin.bottom, class: "cursor", visibility: "hidden" });
        root.append(line);
        geometry = { px, line };
        if (cursor !== null) move(cursor);
      },
    });
    node.querySelector("figcaption")?.after(el("p", { class: "axis-y", text: y.label }));
    if (series.length > 1) node.querySelector(".chart-holder").before(legend(shown));
    node.querySelector(".chart-holder").after(readout);
    const holder = node.querySelector(".chart-holder");
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `${title || label}: the left and right arrow keys read the values`);
    holder.addEventListener("pointermove", (event) => {
      if (longest && geometry) move(nearest(longest, geometry.px.invert(event.clientX - holder.getBoundingClientRect().left)));
    });
    if (onPick) holder.addEventListener("click", () => cursor !== null && onPick(longest.x[cursor], cursor));
    holder.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      move((cursor === null ? -1 : cursor) + step);
      readout.setAttribute("aria-live", "polite");
      if (onPick) onPick(longest.x[cursor], cursor);
    });
    return node;
  };

  /** Points in the unit square or another domain; a click or Enter selects the nearest one.

      Args: title, label, x, y, points [{x, y, key, text}], colour, selected() returns a key, onSelect(point). */
  page.scatterChart = ({ title, label, x, y, points, colour, selected, onSelect, height = 230, note, diagonal }) => {
    let geometry = null;
    const order = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
    const node = figure({
      title,
      label,
      height,
      note,
      className: "figure scatter-chart",
      draw: (root, width) => {
        const { px, py } = frame(root, width, height, x, y);
        geometry = { px, py };
        if (diagonal) root.append(svg("line", { x1: px(0), y1: py(1), x2: px(1), y2: py(0), class: "diagonal" }));
        const dots = svg("g", { class: "dots", style: { fill: colour } });
        let chosen = null;
        for (const point of points) {
          if (point.key === selected()) chosen = point;
          dots.append(svg("circle", { cx: px(point.x).toFixed(1), cy: py(point.y).toFixed(1), r: 3.2 }));
        }
        root.append(dots);
        if (chosen) {
          root.append(
            svg("circle", { cx: px(chosen.x), cy: py(chosen.y), r: 7, class: "chosen", style: { stroke: colour } }),
            svg("circle", { cx: px(chosen.x), cy: py(chosen.y), r: 3.6, style: { fill: colour } }),
          );
        }
      },
    });
    node.querySelector("figcaption")?.after(el("p", { class: "axis-y", text: y.label }));
    const holder = node.querySelector(".chart-holder");
    const readout = el("p", { class: "readout", text: "" });
    holder.after(readout);
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `${label} A click or the arrow keys select a unit.`);
    holder.classList.add("clickable");
    const nearest = (event) => {
      const box = holder.getBoundingClientRect();
      const [left, top] = [event.clientX - box.left, event.clientY - box.top];
      let best = null;
      let least = Infinity;
      for (const point of points) {
        const away = (geometry.px(point.x) - left) ** 2 + (geometry.py(point.y) - top) ** 2;
        if (away < least) [least, best] = [away, point];
      }
      return best;
    };
    holder.addEventListener("pointermove", (event) => {
      const point = nearest(event);
      if (point) readout.textContent = point.text;
    });
    holder.addEventListener("click", (event) => {
      const point = nearest(event);
      if (point) onSelect(point);
    });
    holder.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !order.length) return;
      event.preventDefault();
      const now = order.findIndex((point) => point.key === selected());
      const point = order[Math.max(0, Math.min(order.length - 1, now + step))];
      readout.textContent = point.text;
      onSelect(point);
    });
    return node;
  };

  /** Horizontal bars as a table: rows [{name, value, text, mark, colour, onClick, current}], all on one scale. */
  page.barTable = ({ caption, rows, high, low = 0, head }) => {
    const body = el("tbody");
    for (const row of rows) {
      const track = el("div", { class: "track", "aria-hidden": "true" });
      const share = (value) => Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
      const bar = el("div", { class: "bar" });
      bar.style.width = `${100 * share(row.value)}%`;
      if (row.colour) bar.style.background = row.colour;
      track.append(bar);
      if (Number.isFinite(row.mark)) {
        const mark = el("div", { class: "mark" });
        mark.style.left = `${100 * share(row.mark)}%`;
        track.append(mark);
      }
      const name = row.onClick
        ? el("button", { type: "button", class: "link", text: row.name, "aria-pressed": row.current ? "true" : null, on: { click: row.onClick } })
        : el("span", { text: row.name });
      body.append(el("tr", { class: row.current ? "current" : null }, el("th", { scope: "row" }, name), el("td", { class: "bar-cell" }, track), el("td", { class: "value", text: row.text })));
    }
    return el(
      "table",
      { class: "bars" },
      caption ? el("caption", { text: caption }) : null,
      head ? el("thead", null, el("tr", null, head.map((text) => el("th", { scope: "col", text })))) : null,
      body,
    );
  };
}

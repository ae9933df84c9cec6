/* The playground: settings, a text that is generated while one watches, and the probabilities of the next character. */
"use strict";

(() => {
  const SHOWN = 14; // characters with a bar
  const SLICE_MS = 12; // of computation between two frames
  const SETTINGS = ["temperature", "topK", "topP", "minP", "typical", "repeatPenalty", "length"];
  const FLAGS = { topK: "--top-k", topP: "--top-p", minP: "--min-p", typical: "--typical",
    repeatPenalty: "--repeat-penalty" };

  const element = (id) => document.getElementById(id);
  const model = charlstmEngine.load();
  const about = JSON.parse(element("about-data").textContent);
  const hasDocuments = model.text.boundary !== null;
  charlstmSampler.expose(model);

  // What is shown: the text, and the state of the model after it.
  let run = null; // the text that is being generated: {options, symbols, ids, count, ms, running, last}
  let next = null; // {logits, ids} of the next character; null while the prime is invalid

  // ---- settings ----

  /** The options of the sampler. Throws a RangeError for a value that is not a number or outside its range. */
  function options() {
    const found = { prime: element("prime").value };
    for (const name of SETTINGS) {
      const text = element(name).value.trim();
      found[name] = name === "length" && text === "" && hasDocuments ? null : text === "" ? NaN : Number(text);
    }
    const seed = element("seed").value.trim();
    if (!/^\d{0,18}$/.test(seed)) throw new RangeError("seed must be a whole number of at most 18 digits");
    found.seed = seed ? BigInt(seed) : null;
    charlstmSampler.checkOptions(found);
    return found;
  }

  const quoted = (text) => (/^[\w.,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

  /** The command that generates the same text. */
  function command({ prime, length, temperature, seed, ...others }) {
    const words = ["charlstm", "sample"];
    if (prime) words.push("--prime", quoted(prime));
    if (length !== null) words.push("-n", length);
    words.push("-t", temperature);
    for (const [name, flag] of Object.entries(FLAGS))
      if (others[name] !== charlstmSampler.DEFAULTS[name]) words.push(flag, others[name]);
    if (seed !== null) words.push("--seed", seed);
    return [...words, "--precision", model.config.precision].join(" ");
  }

  function showProblem(error) {
    element("problem").textContent = error ? `${error.message}.` : "";
    element("problem").hidden = !error;
    if (error) element("prime").setAttribute("aria-invalid", "true");
    else element("prime").removeAttribute("aria-invalid");
    for (const id of ["generate", "one"]) element(id).disabled = Boolean(error);
  }

  // ---- bars ----

  const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(0)} %` : `${(100 * share).toFixed(1)} %`);
  const positions = [];

  function makeBars() {
    for (let k = 0; k < Math.min(SHOWN, model.symbols.length); k++) {
      const button = document.createElement("button");
      button.type = "button";
      const [symbol, track, bar, mark, share] = ["symbol", "track", "bar", "mark", "share"].map((name) => {
        const span = document.createElement("span");
        span.className = name;
        return span;
      });
      track.append(bar, mark);
      button.append(symbol, track, share);
      const item = document.createElement("li");
      item.append(button);
      element("bars").append(item);
      const position = { item, button, symbol, bar, mark, share, id: 0 };
      button.addEventListener("click", () => continueWith(position.id));
      positions.push(position);
    }
  }

  /** Show the most probable next characters. */
  function showBars() {
    if (!next) return;
    let found;
    try {
      found = charlstmSampler.distribution(next.logits, options(), next.ids, model);
    } catch {
      return; // the problem is shown at the prime
    }
    const plain = charlstmSampler.distribution(next.logits, { temperature: 1 });
    const order = Array.from(found.keys()).sort((a, b) => found[b] - found[a] || plain[b] - plain[a]);
    const most = Math.max(found[order[0]], 0.01);
    positions.forEach((position, k) => {
      const id = order[k];
      const label = charlstmText.printable(model.symbols[id]);
      position.id = id;
      position.symbol.textContent = label;
      position.bar.style.width = `${(100 * found[id]) / most}%`;
      position.mark.style.left = `${Math.min(100, (100 * plain[id]) / most)}%`;
      position.share.textContent = found[id] > 0 ? percent(found[id]) : "0 %";
      position.button.classList.toggle("excluded", found[id] === 0);
      position.button.setAttribute("aria-label",
        `${label}: ${percent(found[id])}, of the model ${percent(plain[id])}. Continue the text with it.`);
    });
    const kept = found.reduce((count, share) => count + (share > 0), 0);
    const rest = order.slice(positions.length).reduce((sum, id) => sum + found[id], 0);
    const others = kept > positions.length ? `, those without a bar with ${percent(rest)} together` : "";
    element("rest").textContent =
      `${kept.toLocaleString("en")} of ${found.length.toLocaleString("en")} symbols can follow${others}.`;
  }

  /** Read the prime, and show what can follow. */
  function readPrime() {
    stop();
    run = null;
    try {
      const ids = model.text.encodeBegun(element("prime").value);
      next = { logits: charlstmSampler.logitsAfter(model, element("prime").value), ids };
      element("command").textContent = command(options());
      showProblem(null);
    } catch (error) {
      next = null;
      showProblem(error);
    }
    showBars();
  }

  function changeSettings() {
    try {
      element("command").textContent = command(options());
      showProblem(null);
      if (!next) readPrime();
    } catch (error) {
      showProblem(error);
    }
    showBars();
  }

  /** Continue the text of the page with a symbol: all of it becomes the prime. */
  function continueWith(id) {
    const text = element("prime").value + (run ? element("generated").textContent : "") + model.symbols[id];
    element("prime").value = model.decode(model.encode(text)); // joins the bytes of a character
    clearOutput();
    readPrime();
  }

  // ---- the generated text ----

  function clearOutput() {
    for (const id of ["read", "generated", "status"]) element(id).textContent = "";
    element("empty").hidden = false;
    element("copy").disabled = true;
  }

  function begin() {
    const chosen = options();
    chosen.seed ??= BigInt(charlstmSampler.randomSeed());
    const symbols = charlstmSampler.generate(model, chosen);
    const ids = model.text.encodeBegun(chosen.prime);
    run = { options: chosen, symbols, ids, count: 0, ms: 0, running: false, last: null };
    clearOutput();
    element("empty").hidden = true;
    element("read").textContent = chosen.prime;
    element("generated").append(document.createTextNode(""));
    element("command").textContent = command(chosen);
    element("output").scrollTop = 0;
  }

  /** Generate one symbol; returns whether there was one. */
  function advance() {
    const { value, done } = run.symbols.next();
    if (done) return false;
    run.last = value;
    run.ids.push(value.id);
    run.count++;
    return true;
  }

  /** Generate symbols for the time of a slice, or `most` of them. */
  function slice(most) {
    const began = performance.now();
    let text = "";
    let hasMore = true;
    for (let n = 0; n < most && (n === 0 || performance.now() - began < SLICE_MS); n++) {
      hasMore = advance();
      if (!hasMore) break;
      text += run.last.text;
    }
    run.ms += performance.now() - began;
    const output = element("output");
    const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 60;
    element("generated").firstChild.appendData(text);
    if (atEnd) output.scrollTop = output.scrollHeight;
    if (run.last) next = { logits: run.last.logits, ids: run.ids.slice(0, -1) };
    showBars();
    return hasMore;
  }

  /** Show the probabilities after the last symbol, and how long a symbol took. */
  function finish(ended) {
    run.running = false;
    if (run.last) next = { logits: model.step(run.last.id, model.copyState(run.last.state)), ids: run.ids };
    showBars();
    element("caret").hidden = true;
    element("stop").disabled = true;
    element("copy").disabled = run.count === 0;
    element("output").removeAttribute("aria-busy");
    const speed = run.count ? `${(run.ms / run.count).toFixed(2)} ms a symbol, ` : "";
    const count = `${ended ? "" : "Stopped after "}${run.count.toLocaleString("en")} symbols`;
    element("status").textContent = `${count}, ${speed}seed ${run.options.seed}.`;
  }

  function stop() {
    if (run && run.running) finish(false);
  }

  function generate() {
    stop();
    guarded(() => {
      begin();
      const own = run;
      own.running = true;
      element("stop").disabled = false;
      element("caret").hidden = false;
      element("output").setAttribute("aria-busy", "true");
      const continueRun = () =>
        guarded(() => {
          if (run !== own || !own.running) return;
          if (slice(Infinity)) requestAnimationFrame(continueRun);
          else finish(true);
        });
      requestAnimationFrame(continueRun);
    });
  }

  function one() {
    stop();
    guarded(() => {
      if (!run) begin();
      finish(!slice(1));
    });
  }

  /** Call a function, and show its error, such as logits that are not finite. */
  function guarded(call) {
    try {
      call();
    } catch (error) {
      if (run) run.running = false;
      element("stop").disabled = true;
      element("caret").hidden = true;
      showProblem(error);
    }
  }

  async function copy() {
    const text = element("read").textContent + element("generated").textContent;
    try {
      await navigator.clipboard.writeText(text);
      element("status").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(element("output"));
      element("status").textContent = "The text is selected: copy it with Ctrl+C.";
    }
  }

  // ---- the page ----

  function describe() {
    const { cell, layers, hidden, precision } = model.config;
    const kB = about.weightBytes / 1e3;
    const size = kB >= 1000 ? `${(kB / 1e3).toFixed(1)} MB` : `${Math.ceil(kB)} kB`;
    element("name").textContent = document.title = charlstmText.printable(about.name);
    element("description").textContent = `${cell}, ${layers} × ${hidden}, ` +
      `${model.symbols.length.toLocaleString("en")} symbols; ${size} of weights in ${precision}.`;
    element("about").textContent = `Made by charlstm ${about.version}.`;
    element("length-hint").textContent = hasDocuments ? "empty: one document" : "in symbols";
  }

  for (const name of SETTINGS) {
    const range = document.getElementById(`${name}-range`);
    element(name).addEventListener("input", () => {
      if (range) range.value = element(name).value;
      changeSettings();
    });
    if (range)
      range.addEventListener("input", () => {
        element(name).value = range.value;
        changeSettings();
      });
  }
  element("seed").addEventListener("input", changeSettings);
  element("prime").addEventListener("input", readPrime);
  element("generate").addEventListener("click", generate);
  element("stop").addEventListener("click", stop);
  element("one").addEventListener("click", one);
  element("copy").addEventListener("click", copy);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !element("generate").disabled) generate();
    if (event.key === "Escape") stop();
  });
  describe();
  makeBars();
  if (hasDocuments) element("length").value = "";
  readPrime();
})();

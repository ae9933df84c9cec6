"""Plot the figures of docs/why-lstm.md, and print the numbers that the page quotes.

    python bench/why_lstm.py --runs runs/five --recall results.jsonl

The five cells are trained on python:docs with the same options, unless their run directories exist. The results of
recall are those of `bench/recall.py --results`; without the option, that figure is left out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import recall
from matplotlib import pyplot

import charlstm
from charlstm import Model
from charlstm.cells import GATES
from charlstm.explain.explanation import Explanation

OPTIONS = ("--hidden", "128", "--steps", "1500", "--seed", "1", "--threads", "1", "--sample-chars", "0")
COLOURS = dict(zip(recall.CELLS, ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00"), strict=True))
SHOWN = 76  # characters of the figure of gates


def trained(runs: Path, cell: str) -> Model:
    """Return the model of a cell; train it if there is no run."""
    run = runs / cell
    if not run.exists():
        words = [sys.executable, "-m", "charlstm", "train", "python:docs", "-o", str(run), "--cell", cell, *OPTIONS]
        subprocess.run(words, check=True)
    return charlstm.load(run, precision="fp32", threads=1)


def plot_gates(found: Explanation, file: Path) -> None:
    """Plot the gates and the cell state of the unit with the best name, over a part of the text where it changes."""
    assert found.units is not None
    assert found.trace.c is not None
    [(layer, unit)] = found.units.best(1)
    name = found.units.features[found.units.name[layer, unit]]
    score, chance = found.units.score[layer, unit], found.units.chance_of_any
    print(f"unit {unit} of layer {layer}: {name}, score {score:.2f}, best of shuffled features {chance:.2f}")
    gates = dict(zip(GATES["lstm"], np.moveaxis(found.trace.gates[:, layer, :, unit], 1, 0), strict=True))
    rows = {
        "input gate i": gates["i"],
        "forget gate f": gates["f"],
        "output gate o": gates["o"],
        "tanh(cell state c)": np.tanh(found.trace.c[:, layer, unit]),
    }
    print_letters_of_words(found, layer, unit)
    moving = np.abs(np.diff(rows["tanh(cell state c)"]))
    begin = int(np.convolve(moving, np.ones(SHOWN), "valid").argmax())
    text = found.vocabulary.decode(found.trace.ids[begin : begin + SHOWN])
    print(f"text of the figure of gates: {text!r}")
    figure, axes = pyplot.subplots(len(rows), 1, figsize=(10, 4.6), sharex=True, layout="constrained")
    for axis, (label, values) in zip(axes, rows.items(), strict=True):
        low = -1 if label.startswith("tanh") else 0
        axis.step(range(SHOWN), values[begin : begin + SHOWN], where="mid", color="#0072b2")
        axis.set(ylim=(low - 0.05, 1.05), yticks=(low, 1))
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    axes[-1].set_xticks(range(SHOWN), [{"\n": "↵", " ": "·"}.get(c, c) for c in text], family="monospace", fontsize=8)
    axes[-1].margins(x=0.005)
    figure.suptitle(f"Unit {unit} follows: {name}", fontsize=11)
    save(figure, file)


def print_letters_of_words(found: Explanation, layer: int, unit: int) -> None:
    """Print the mean of each gate and of tanh(c) between words and at the first letters of words."""
    assert found.trace.c is not None
    letter, counts = 0, []
    for character in found.text:
        letter = letter + 1 if character.isalnum() else 0
        counts.append(letter)
    values = np.c_[found.trace.gates[:, layer, :, unit], np.tanh(found.trace.c[:, layer, unit])]
    for letter in range(8):
        means = values[np.array(counts) == letter].mean(axis=0)
        print(f"letter {letter} of a word:", *(f"{name} {mean:.2f}" for name, mean in zip("ifgoc", means, strict=True)))


def plot_gradients(found: Explanation, file: Path) -> None:
    """Plot the norm of the gradient with respect to earlier states, for all cells."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for cell, curve in zip(recall.CELLS, found.gradients, strict=True):
        median = curve.h[:, -1, 1] / curve.h[0, -1, 1]
        axes.semilogy(curve.lags, median, label=cell, color=COLOURS[cell])
        print(f"{cell}: median norm at k = 20, 100, 200 relative to k = 0:", *(f"{median[k]:.1e}" for k in KS))
    axes.set(xlabel="steps back, k", ylabel="norm of ∂loss/∂h at k steps back, relative to k = 0", xlim=(0, 300))
    axes.set_ylim(bottom=1e-12)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, file)


KS = (20, 100, 200)


def plot_product(found: Explanation, file: Path) -> None:
    """Plot, for the LSTM, the whole gradient along c and the part that the forget gates alone give."""
    curve = found.gradients[0]
    assert curve.c is not None
    assert curve.path is not None
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    whole, path = curve.c[:, -1], curve.path[:, -1]
    for values, label, colour in ((whole, "all paths", "#0072b2"), (path, "forget gates alone", "#d55e00")):
        axes.semilogy(curve.lags, values[:, 1], label=label, color=colour)
        axes.fill_between(curve.lags, values[:, 0], values[:, 2], color=colour, alpha=0.15, lw=0)
        print(f"gradient along c, {label}: k = 0, 20, 100, 200:", *(f"{values[k, 1]:.1e}" for k in (0, *KS)))
    axes.set(xlabel="steps back, k", ylabel="norm of ∂loss/∂c at k steps back", xlim=(0, 300), ylim=(1e-9, None))
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, file)


def plot_recall(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot the accuracy of recall against the lag: the mean over the seeds and each single run."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.axhline(1 / 8, color="#777777", ls=":", label="chance")
    for place, cell in enumerate(recall.CELLS):
        shift = 1.02 ** (place - 2)  # so that equal values of several cells are all visible
        runs = [(shift * result["lag"], result["accuracy"]) for result in results if result["cell"] == cell]
        lags = sorted({lag for lag, _ in runs})
        means = [statistics.mean(right for known, right in runs if known == lag) for lag in lags]
        axes.plot(lags, means, label=cell, color=COLOURS[cell], alpha=0.7)
        axes.scatter([lag for lag, _ in runs], [right for _, right in runs], color=COLOURS[cell], s=12)
    axes.set(xlabel="lag N, in characters", ylabel="accuracy of the asked symbol", xscale="log", ylim=(0, 1.05))
    axes.set_xticks(recall.LAGS, [f"{lag:,}" for lag in recall.LAGS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, file)


def print_cost_of_a_symbol(model: Model) -> None:
    """Print the median time of a step and the size of the state after texts of several lengths."""
    engine = model.engine
    state, times = engine.zero_state(), []
    for step in range(1, 10_001):
        began = time.perf_counter()
        _, state = engine.step([step % len(model.vocabulary)], state)
        times.append(time.perf_counter() - began)
        if step in (100, 1000, 10_000):
            microseconds = statistics.median(times[-100:]) * 1e6
            print(f"step {step:,}: {microseconds:.0f} µs, state of {state.nbytes:,} bytes")


def save(figure: Any, file: Path) -> None:
    """Write an SVG that is the same for the same data."""
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/five"))
    parser.add_argument("--recall", type=Path, metavar="FILE", help="results of bench/recall.py")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "why-lstm")
    given = parser.parse_args()
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "charlstm", "svg.fonttype": "none", "font.size": 10})
    given.output.mkdir(exist_ok=True)
    models = {cell: trained(given.runs, cell) for cell in recall.CELLS}
    found = models["lstm"].explain(beside=[models[cell] for cell in recall.CELLS if cell != "lstm"])
    for cell, curve in zip(recall.CELLS, found.context, strict=True):
        print(f"{cell}: {curve.full_bits_per_char:.3f} bits per character")
    assert found.saturation.memory is not None
    print("memory length of the units, quartiles:", np.quantile(found.saturation.memory, (0.25, 0.5, 0.75)).round(1))
    print("longest memory length:", found.saturation.memory.max().round(1))
    closed, opened = found.saturation.closed.mean(axis=(0, 2)), found.saturation.open.mean(axis=(0, 2))
    for gate, low, high in zip(found.saturation.gates, closed, opened, strict=True):
        print(f"gate {gate}: below 0.1 at {low:.0%} of the steps, above 0.9 at {high:.0%}")
    print_cost_of_a_symbol(models["lstm"])
    plot_gates(found, given.output / "gates.svg")
    plot_gradients(found, given.output / "gradients.svg")
    plot_product(found, given.output / "forget-product.svg")
    if given.recall is not None:
        plot_recall(
            [result for result in recall.known(given.recall) if not result["others"]], given.output / "recall.svg"
        )


if __name__ == "__main__":
    main()

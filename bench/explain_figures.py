"""Print what docs/explain.md reports: the best named units, and the norms of gradients.

python bench/explain_figures.py RUN [RUN ...]
python bench/explain_figures.py --at CHARACTER RUN

All runs read the first 5,000 held-out characters of the first. Its units are listed; gradients are those of every run.
With --at, the gradients of one run are those of the predictions after this character, in 20,000 held-out characters.
"""

from __future__ import annotations

import argparse

import numpy as np

import charlstm
from charlstm.explain import trace
from charlstm.explain.gradients import norms
from charlstm.explain.units import STRONG


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--at")
    options = parser.parse_args()
    models = [charlstm.load(run) for run in options.runs]
    if options.at is not None:
        after(models[0], options.at)
        return
    found = models[0].explain(beside=models[1:])
    print(f"{found.name}: {found.bits_per_char:.3f} bits per character on {len(found.trace.ids):,} characters")
    if found.units is not None:
        named = found.units
        print(f"{len(named.best())} of {named.name.size} units are named; chance {named.chance_of_any:.2f};")
        print(
            f"score above {STRONG}: {named.strong_share:.1%}\n\n| unit | feature | of | score | chance of this unit |"
        )
        print("|---|---|---|---|---|")
        for layer, unit in named.best(5):
            feature = named.features[named.name[layer, unit]]
            quantity = {"h": "h", "c": "tanh(c)"}[str(named.quantity[layer, unit])]
            score, chance = named.correlation[layer, unit], named.chance[layer, unit]
            print(f"| {layer}.{unit} | {feature} | {quantity} | {score:+.2f} | {chance:.2f} |")
    print("\n| run | k = 1 | 10 | 50 | 100 | 200 | 300 |\n|---|---|---|---|---|---|---|")
    for gradient in found.gradients:
        for name, values in (("h", gradient.h), ("c", gradient.c), ("direct path", gradient.path)):
            if values is not None:
                medians = values[[1, 10, 50, 100, 200, 300], -1, 1] / values[0, -1, 1]
                print(f"| {gradient.name}, {name} | " + " | ".join(f"{median:.1e}" for median in medians) + " |")
    if found.gradients[0].c is not None and found.gradients[0].path is not None:
        share = found.gradients[0].path / found.gradients[0].c
        print("\nshare of the direct path:", {k: f"{share[k, -1, 1]:.2g}" for k in (1, 5, 10, 20, 50, 100, 200)})
    print("\n| run | " + " | ".join(str(n) for n in found.context[0].context) + " | all |")
    for curve in found.context:
        bits = [*curve.bits_per_char, curve.full_bits_per_char]
        print(f"| {curve.name} | " + " | ".join(f"{value:.2f}" for value in bits) + " |")
    if found.ngrams is not None:
        print("\nn-gram models, then the model:", np.round(found.ngrams.bits_per_char, 3).tolist())
    for sample in found.copies or ():
        print(f"temperature {sample.temperature}: longest copy {sample.copy.length} characters: {sample.copied!r}")


def after(model: charlstm.Model, character: str) -> None:
    """Print the gradients of the predictions after a character, and the share of the direct path."""
    ids = np.asarray(model.encode(None)[0][:20_000])
    found = trace.trace(model.config, model.weights, ids, model.scorer)
    positions = np.flatnonzero(ids[:-1] == model.vocabulary.symbols.index(character))[:60]
    bits = trace.predictions(model.weights, found).bits[positions + 1].mean()
    print(f"{len(positions)} predictions after {character!r}, {bits:.3f} bits each")
    gradient = norms(model.config, model.weights, found, positions, 300)
    print("\n| k | positions | h | c | direct path | product of the gates |\n|---|---|---|---|---|---|")
    for k in (0, 1, 10, 50, 100, 200):
        parts = (gradient.h, gradient.c, gradient.path, gradient.product)
        values = ["" if part is None else f"{part[k, -1, 1]:.2g}" for part in parts]
        print(f"| {k} | {gradient.positions[k]} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()

"""Bits per character of a model in fp32, in the engine's int8, and as exported C, on its held-out part.

    python bench/export_loss.py runs/small runs/large

The exported C is computed by `charlstm.export.integer_model`, whose integers the tests compare with the C.
"""

from __future__ import annotations

import argparse

import charlstm
from charlstm.export.c import rounding_loss
from charlstm.export.integer_model import IntegerModel
from charlstm.inference.engine import Engine
from charlstm.inference.evaluation import evaluate

SYMBOLS = 20_000


def main() -> None:
    """Print a row for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="+")
    for path in parser.parse_args().checkpoint:
        model = charlstm.load(path)
        ids = model.validation_part()[:SYMBOLS]
        int8 = evaluate(Engine(model.config, model.weights, precision="int8"), ids).bits_per_char
        loss = rounding_loss(model, IntegerModel(model.config, model.weights), ids)
        exact, exported = loss.exact_bits_per_char, loss.rounded_bits_per_char
        shape = f"{model.config.cell} {model.config.layers} × {model.config.hidden}"
        print(f"{path}, {shape}: fp32 {exact:.4f}, int8 {int8:.4f}, exported {exported:.4f} ({exported - exact:+.4f})")


if __name__ == "__main__":
    main()

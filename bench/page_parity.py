"""Measure the greatest difference between the logits of a page in Chromium and those of the C engine.

    python bench/page_parity.py CKPT [--chars 5000]

The text is the held-out part of the model's corpus. Each line is one precision and one instruction set of the C engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import charlstm
from charlstm.inference import native
from charlstm.inference.engine import Engine
from tests.helpers.browser import engine_page, launched, visit

LOGITS = """(ids) => {
    const state = model.zeroState();
    return ids.map((id) => Array.from(model.step(id, state)));
}"""


def main() -> None:
    """Print one line per precision and instruction set."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--chars", type=int, default=5000)
    given = arguments.parse_args()
    model = charlstm.load(given.checkpoint)
    ids = model.validation_part()[: given.chars].astype(np.int64)
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        for precision in ("fp32", "int8"):
            file = Path(folder) / "page.html"
            engine_page(file, model.config, model.vocabulary, dict(model.weights), precision)
            with visit(browser, file) as page:
                found = np.array(page.run(LOGITS, ids.tolist()))
            for isa in native.isas():
                engine = Engine(model.config, model.weights, precision=precision, isa=isa, threads=1)
                state, expected = engine.zero_state(), np.empty_like(found)
                for t, symbol in enumerate(ids):
                    logits, state = engine.step([symbol], state)
                    expected[t] = logits[0]
                difference = np.abs(found - expected)
                different = int((difference > 0).any(axis=1).sum())
                print(
                    f"{precision} {isa:12} greatest difference {difference.max():.1e}, "
                    f"{different:,} of {len(ids):,} positions differ"
                )


if __name__ == "__main__":
    main()

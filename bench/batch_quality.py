"""Train with larger and larger batches on equally many characters, to see up to which batch quality holds.

    python bench/batch_quality.py [TEXT] [--epochs 4] [--hidden 128]

A group of N workers trains the same model as one process with the same batch, so that this shows on one machine how
many workers a text can use. TEXT is python:docs if none is given.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import charlstm
from charlstm.training.events import Event, Validated

BATCHES = (16, 32, 64, 128, 256, 512, 1024)


def main() -> None:
    """Print the best validation of each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("text", nargs="?", default="python:docs")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=32)
    arguments = parser.parse_args()
    corpus = charlstm.read([arguments.text])
    print(f"{arguments.text}, 1 x {arguments.hidden}, windows of {arguments.seq_len}, {arguments.epochs:g} epochs")
    print("streams    steps   bits per character, with the rate of 32 streams and with a rate in proportion to √B")
    for batch in BATCHES:
        found = []
        for rate in (0.01, 0.01 * (batch / 32) ** 0.5):
            best: list[Validated] = []

            def note(event: Event, best: list[Validated] = best) -> None:
                if isinstance(event, Validated):
                    best.append(event)

            with tempfile.TemporaryDirectory() as folder:
                charlstm.train(
                    corpus, Path(folder) / "run", on_event=note, epochs=arguments.epochs, hidden=arguments.hidden,
                    batch_size=batch, seq_len=arguments.seq_len, lr=rate, validations=4, sample_chars=0, seed=1,
                )  # fmt: skip
            found.append(min(best, key=lambda event: event.valid_bits_per_char))
        print(
            f"{batch:7}{best[-1].step:9}{found[0].valid_bits_per_char:12.3f}{found[1].valid_bits_per_char:12.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

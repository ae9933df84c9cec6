"""Compare models that were trained in bf16 and in fp32, at an equal number of steps.

    python bench/precision_quality.py TEXT... --hidden 256 512 --steps 1500 --seeds 1 2 3 --results precision.jsonl

For every text, hidden size and seed, two models are trained that differ in --precision alone. Each result is one line
of JSON in the results file: a run that the file already holds is not repeated. The table shows the best validation of
both in nats per character, and the medians of the differences; above 0 bf16 is worse.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

import charlstm
from charlstm.training.events import Event, Stopped, Validated

PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")


def train(text: str, hidden: int, seed: int, steps: int, precision: Literal["fp32", "bf16"]) -> dict[str, Any]:
    """Train one model, and return its best validation."""
    nats: list[float] = []
    stopped: list[Stopped] = []

    def watch(event: Event) -> None:
        if isinstance(event, Validated):
            nats.append(event.valid_nats_per_char)
        elif isinstance(event, Stopped):
            stopped.append(event)

    corpus = charlstm.read([text])
    with tempfile.TemporaryDirectory() as folder:
        charlstm.train(
            corpus,
            Path(folder, "run"),
            on_event=watch,
            hidden=hidden,
            seed=seed,
            steps=steps,
            precision=precision,
            validations=2,
            sample_chars=0,
        )
    if stopped[0].reason != "finished":
        raise SystemExit("interrupted; the command continues with this run")
    return {"nats": min(nats), "seconds": stopped[0].step_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--results", type=Path, default=Path("precision.jsonl"))
    arguments = parser.parse_args()
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    if arguments.results.exists():
        for line in arguments.results.read_text().splitlines():
            row = json.loads(line)
            known[row["text"], row["hidden"], row["seed"], row["steps"], row["precision"]] = row
    for hidden in arguments.hidden:
        for text in arguments.texts:
            differences = []
            for seed in arguments.seeds:
                for precision in PRECISIONS:
                    key = (Path(text).name, hidden, seed, arguments.steps, precision)
                    if key not in known:
                        names = ("text", "hidden", "seed", "steps", "precision")
                        result = train(text, hidden, seed, arguments.steps, precision)
                        known[key] = {**dict(zip(names, key, strict=True)), **result}
                        with arguments.results.open("a") as file:
                            file.write(json.dumps(known[key]) + "\n")
                            os.fsync(file.fileno())
                fp32, bf16 = (known[(*key[:-1], precision)]["nats"] for precision in PRECISIONS)
                differences.append(bf16 - fp32)
                print(f"{key[0]:24} 1 x {hidden}  seed {seed}  fp32 {fp32:.4f}  bf16 {bf16:.4f}  {bf16 - fp32:+.4f}")
            print(f"{key[0]:24} 1 x {hidden}  median {statistics.median(differences):+.4f}", flush=True)
    chosen = [key[:-1] for key in known if key[-1] == "bf16" and key[3] == arguments.steps]
    all_of_them = [known[(*key, "bf16")]["nats"] - known[(*key, "fp32")]["nats"] for key in chosen]
    print(f"median of all {len(all_of_them)} differences: {statistics.median(all_of_them):+.4f} nats")


if __name__ == "__main__":
    main()

"""Measure how often `charlstm eval --rank` names the corpus of a line, by the length of the line.

    python bench/rank_accuracy.py english=war_and_peace.txt russian=… log=access.log --steps 300

For each text a small model is trained on its first nine tenths (at most --chars characters). Then the lines of the last
tenth of every text, at most --lines of each, are ranked with all models. The accuracy is that of the choice among all
models; the share of the largest class is that of always naming one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

LENGTHS = ((1, 4), (5, 9), (10, 19), (20, 39), (40, 79), (80, 10**9))


def parts(path: str, chars: int) -> tuple[str, list[str]]:
    """Return the training text and the lines to rank, which are the last tenth of the text."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    cut = text.rfind("\n", 0, len(text) * 9 // 10) + 1
    return text[:cut][-chars:], [line.strip() for line in text[cut:].splitlines() if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("texts", metavar="NAME=FILE", nargs="+")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--chars", type=int, default=500_000)
    parser.add_argument("--lines", type=int, default=400)
    options = parser.parse_args()
    charlstm = [sys.executable, "-m", "charlstm"]
    with tempfile.TemporaryDirectory() as folder:
        names, lines = [], []
        for text in options.texts:
            name, _, path = text.partition("=")
            training, held_out = parts(path, options.chars)
            (Path(folder) / "text").write_text(training, encoding="utf-8")
            shape = ["--hidden", str(options.hidden), "--steps", str(options.steps), "--seed", "1", "-q"]
            subprocess.run([*charlstm, "train", "text", "-o", name, *shape], cwd=folder, check=True)
            step = max(1, len(held_out) // options.lines)
            names.append(name)
            lines += [(name, line) for line in held_out[::step][: options.lines]]
            print(f"{name}: trained on {len(training):,} characters", flush=True)
        (Path(folder) / "lines").write_text("".join(line + "\n" for _, line in lines), encoding="utf-8")
        command = [*charlstm, "eval", *(word for name in names for word in ("--rank", name))]
        output = subprocess.run(
            [*command, "--per-line", "--json", "lines"], cwd=folder, check=True, capture_output=True, text=True
        ).stdout
    rows = [json.loads(row) for row in output.splitlines()]
    assert len(rows) == len(lines)
    print("length of the line      lines  accuracy  largest class")
    for low, high in (*LENGTHS, (1, 10**9)):
        chosen = [
            (name, row["best"]) for (name, _), row in zip(lines, rows, strict=True) if low <= row["chars"] <= high
        ]
        if not chosen:
            continue
        right = sum(name == best for name, best in chosen)
        largest = max(Counter(name for name, _ in chosen).values())
        label = f"{low} to {high}" if high < 10**9 else f"{low} or more"
        print(f"{label:20} {len(chosen):8,}  {right / len(chosen):8.3f}  {largest / len(chosen):8.3f}")
    wrong = Counter((name, row["best"]) for (name, _), row in zip(lines, rows, strict=True) if name != row["best"])
    for (name, best), count in wrong.most_common(8):
        print(f"{count:4} lines of {name} were taken for {best}")


if __name__ == "__main__":
    main()

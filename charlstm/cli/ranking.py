"""Output of `charlstm eval --rank`: which of several models explains each text or line best."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from charlstm.cli.console import writing_stdout
from charlstm.cli.options import ModelOptions
from charlstm.terminal import TextOut

if TYPE_CHECKING:
    from charlstm.inference.ranking import Ranking
    from charlstm.text.reading import TextFormat


def show_ranking(
    names: Sequence[str],
    options: ModelOptions,
    sources: Sequence[str],
    how_read: TextFormat,
    *,
    per_line: bool,
    as_json: bool,
) -> None:
    """Write the best model of each file or line, with the bits under each model.

    Args:
        names: the checkpoints, as the user named them.
        options: how the models are computed.
        sources: the files.
        how_read: how they are read.
        per_line: rank each line of all files instead of each file.
        as_json: write JSON lines instead of TSV.
    """
    from pathlib import Path

    from charlstm.inference.ranking import rank
    from charlstm.text.reading import iter_lines, iter_text, read_text

    loaded = {name: options.load(Path(name), warn=not as_json) for name in names}
    models = {name: (model.scorer, model.vocabulary) for name, model in loaded.items()}
    out = TextOut(1, buffering="line")
    with writing_stdout():
        if per_line:
            numbers = itertools.count(1)
            for lines in iter_lines(iter_text(list(sources), how_read)):
                texts = [line.removesuffix("\n") for line in lines]
                rankings = zip(texts, rank(models, texts), strict=True)
                _write(out, [(next(numbers), text, found) for text, found in rankings], as_json)
        else:
            for source in sources:
                (found,) = rank(models, [read_text([source], how_read)])
                _write(out, [(source, None, found)], as_json)
        out.close()


def _write(out: TextOut, rows: Iterable[tuple[int | str, str | None, Ranking]], as_json: bool) -> None:
    """Write one row for each (file or number of a line, text of the line, ranking)."""
    for source, text, found in rows:
        if as_json:
            where = {"file": source} if text is None else {"line": source, "text": text}
            record = {"best": found.best, "margin": found.margin, "chars": found.chars, "bits": found.bits, **where}
            out.write(json.dumps(record) + "\n")
        else:
            bits = [f"{bits:.2f}" for bits in found.bits.values()]
            columns = [found.best or "-", f"{found.margin:.2f}", *bits, str(source), *([] if text is None else [text])]
            out.write("\t".join(columns) + "\n")

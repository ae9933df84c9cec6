"""`charlstm info`: describe a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlstm.cli.console import print_table, write_stdout
from charlstm.cli.options import CheckpointArgument, CheckpointOption, Json, checkpoint_of
from charlstm.cli.verify import raise_problems
from charlstm.config import UNITS, to_json

if TYPE_CHECKING:
    from charlstm.provenance import TextRecord
    from charlstm.text.vocabulary import Vocabulary

EXAMPLES = """\
charlstm info                       the newest run
charlstm info model.safetensors
charlstm info --json | python3 -m json.tool"""

SHOWN_SYMBOLS = 200


def info(
    path: CheckpointArgument = None,
    checkpoint: CheckpointOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the numbers of the training state, too.")] = False,
    as_json: Json = False,
) -> None:
    """Describe a checkpoint: architecture, vocabulary, text, training and versions."""
    from charlstm import checkpoint as files
    from charlstm import runs

    file = runs.resolve(checkpoint_of(path, checkpoint))
    found = files.load(file, allow_nonfinite=True)
    if verify:
        raise_problems(files.verify(file))
    if as_json:
        known = {"path": str(file), "bytes": file.stat().st_size, "model": to_json(found.model)}
        known |= {"parameters": found.model.parameters(), "vocabulary": _symbols(found.vocabulary)}
        known |= {
            "unit": found.vocabulary.unit,
            "boundary": found.vocabulary.boundary,
            "step": found.step,
            "facts": found.facts,
            "resumable": found.training is not None,
        }
        write_stdout(json.dumps(known) + "\n")
        return
    model, symbols, unit = found.model, _symbols(found.vocabulary), UNITS[found.vocabulary.unit]
    best = _number(found.facts, "best_valid_nats_per_char")
    rows = [
        ("checkpoint", f"{file}, {file.stat().st_size:,} bytes{', valid' if verify else ''}"),
        ("model", f"{model.cell} {model.layers} × {model.hidden}, embedding {model.embedding}"),
        ("parameters", f"{model.parameters():,}"),
        ("vocabulary", "all 256 bytes" if symbols is None else f"{model.vocab_size:,}: {_first(symbols)}"),
        *_documents(found.vocabulary),
        ("text", _text(found.corpus, unit)),
        ("steps", f"{found.step:,}"),
        *([] if found.corpus.validation is None else [("validation text", _text(found.corpus.validation, unit))]),
        *([] if found.base is None else [("fine-tuned from", found.base.checkpoint or "not known")]),
        ("validation", "not known" if best is None else f"{best / math.log(2):.4f} bits per {unit} at the best"),
        ("training state", "in this file" if found.training is not None else "not in this file: weights only"),
        ("versions", _versions(found.facts)),
        ("kernels", _kernels()),
    ]
    print_table(rows)


def _symbols(vocabulary: Vocabulary) -> str | None:
    """Return the characters of a vocabulary; None if its symbols are bytes."""
    return vocabulary.symbols if vocabulary.kind == "chars" else None


def _documents(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return a row with the boundary between documents, if the text has several documents."""
    from charlstm.text.documents import quote_boundary

    return [] if vocabulary.boundary is None else [("documents", f"separated by {quote_boundary(vocabulary.boundary)}")]


def _first(symbols: str) -> str:
    return symbols[:SHOWN_SYMBOLS] + ("…" if symbols[SHOWN_SYMBOLS:] else "")


def _kernels() -> str:
    """Return which kernels are used on this machine."""
    from charlstm import native_library

    return {
        "loaded": "native C, for training, sampling and scoring",
        "missing": "none: no C compiler was found at install; torch and numpy compute instead",
        "broken": "none: the compiled library could not be loaded; to compile it again, install charlstm again",
        "stale": "none: the compiled library is of another version; to compile it again, install charlstm again",
    }[native_library.load().status]


def _number(known: Mapping[str, Any], name: str) -> float | None:
    """Return a recorded number, or None if it is missing or not a number."""
    value = known.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(record: TextRecord, unit: str) -> str:
    names = ", ".join(record.names) or "not known"
    return names if record.chars is None else f"{names}: {record.chars:,} {unit}s"


def _versions(known: Mapping[str, Any]) -> str:
    versions = known.get("versions")
    if not isinstance(versions, Mapping):
        return "not known"
    return ", ".join(f"{name} {version}" for name, version in versions.items())

"""`charlstm info` and `charlstm verify`: what a checkpoint is, and whether it is whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlstm.cli.console import facts, put
from charlstm.cli.options import CheckpointArgument, CheckpointToo, Json, one_checkpoint
from charlstm.config import UNITS, to_json
from charlstm.errors import CheckpointError
from charlstm.terminal import escape

if TYPE_CHECKING:
    from charlstm.provenance import TextRecord
    from charlstm.text.vocabulary import Vocabulary

INFO_EXAMPLES = """\
charlstm info                       of the newest run
charlstm info model.safetensors
charlstm info --json | python3 -m json.tool"""

VERIFY_EXAMPLES = """\
charlstm verify checkpoints/book && charlstm sample -c checkpoints/book"""

SHOWN_SYMBOLS = 200


def info(
    checkpoint: CheckpointArgument = None,
    named: CheckpointToo = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the numbers of the training state, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint is: cell, sizes, vocabulary, text, steps, bits per character, versions."""
    from charlstm import checkpoint as files

    path = files.resolve(one_checkpoint(checkpoint, named))
    found = files.load(path, allow_nonfinite=True)
    if verify:
        _refuse(files.verify(path))
    if as_json:
        known = {"path": str(path), "bytes": path.stat().st_size, "model": to_json(found.model)}
        known |= {"parameters": found.model.parameters(), "vocabulary": _symbols(found.vocabulary)}
        known |= {
            "unit": found.vocabulary.unit,
            "boundary": found.vocabulary.boundary,
            "step": found.step,
            "facts": found.facts,
            "resumable": found.training is not None,
        }
        put(json.dumps(known) + "\n")
        return
    model, symbols, unit = found.model, _symbols(found.vocabulary), UNITS[found.vocabulary.unit]
    best = _number(found.facts, "best_valid_nats_per_char")
    rows = [
        ("checkpoint", f"{path}, {path.stat().st_size:,} bytes{', whole' if verify else ''}"),
        ("model", f"{model.cell} {model.layers} × {model.hidden}, embedding {model.embedding}"),
        ("parameters", f"{model.parameters():,}"),
        ("vocabulary", "all 256 bytes" if symbols is None else f"{model.vocab_size:,}: {_first(symbols)}"),
        *_documents(found.vocabulary),
        ("text", _text(found.corpus, unit)),
        ("steps", f"{found.step:,}"),
        *([] if found.corpus.validation is None else [("validated on", _text(found.corpus.validation, unit))]),
        *([] if found.base is None else [("fine-tuned from", found.base.checkpoint or "not known")]),
        ("validation", "not known" if best is None else f"{best / math.log(2):.4f} bits per {unit} at the best"),
        ("training state", "in this file" if found.training is not None else "not in this file: weights only"),
        ("made by", _versions(found.facts)),
        ("kernels", _kernels()),
    ]
    facts(rows)


def _symbols(vocabulary: Vocabulary) -> str | None:
    """The characters of a vocabulary; None where its symbols are bytes."""
    return vocabulary.symbols if vocabulary.kind == "chars" else None


def _documents(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """A row on what stands between the documents of its text, where it has several."""
    from charlstm.text.documents import shown

    return [] if vocabulary.boundary is None else [("documents", f"with {shown(vocabulary.boundary)} between them")]


def _first(symbols: str) -> str:
    return symbols[:SHOWN_SYMBOLS] + ("…" if symbols[SHOWN_SYMBOLS:] else "")


def _kernels() -> str:
    """Say what computes on this machine."""
    from charlstm import native_library

    return {
        "loaded": "native C, for training, sampling and scoring",
        "missing": "none: no C compiler was found at install; torch and numpy compute instead",
        "broken": "none: the compiled library could not be loaded; to compile it again, install charlstm again",
        "stale": "none: the compiled library is of another version; to compile it again, install charlstm again",
    }[native_library.load().status]


def verify(checkpoint: CheckpointArgument = None, named: CheckpointToo = None) -> None:
    """Tell whether a checkpoint, or each of a run's, is whole; exit with 1 if not."""
    from charlstm import checkpoint as files
    from charlstm.training import run_dir

    checkpoint = one_checkpoint(checkpoint, named)
    path = files.resolve(checkpoint)
    whole = [path]
    if checkpoint is None or checkpoint.is_dir():
        run = path.parent
        whole = [file for file in (run / files.BEST, run / files.LAST, *run_dir.kept_files(run)) if file.exists()]
    _refuse([problem for file in whole for problem in files.verify(file)])
    for file in whole:
        put(f"{escape(str(file))}: whole\n")


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if problems[1:] else ""
        raise CheckpointError(problems[0] + more)


def _number(known: Mapping[str, Any], name: str) -> float | None:
    """A fact of a foreign file: there, and a number, or None."""
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

"""Output of `charlstm eval --jsonl`: one JSON line for each of many files, in a file that a later command completes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlstm.cli.console import print_warning
from charlstm.errors import CharlstmError, Field
from charlstm.terminal import escape

if TYPE_CHECKING:
    from charlstm.config import Unknown
    from charlstm.model import Model
    from charlstm.text.reading import TextFormat


def score_files(
    model: Model, sources: Sequence[str], how_read: TextFormat, unknown: Unknown, output: Path, *, skip_done: bool
) -> bool:
    """Score each file by itself, and append its line to the output as soon as it is scored.

    A file that cannot be scored gets a line with the entry `error`; a later command with `skip_done` tries it again.

    Args:
        model: the model that scores.
        sources: files, and directories whose files are scored.
        how_read: how they are read.
        unknown: what to do with characters outside the vocabulary.
        output: the file of JSON lines.
        skip_done: keep the lines of the output, and skip the files that this model has scored there.

    Returns:
        Whether all files were scored.

    Raises:
        CharlstmError: the output exists and `skip_done` is false, or it is not such a file.
        OSError: the output cannot be written.
    """
    from charlstm.text.reading import files_of, read_text

    digest = model.digest.hex()
    done = _scored(output, digest, skip_done)
    complete = True
    with output.open("ab") as file:
        for path in (path for source in sources for path in files_of(source)):
            if path in done:
                continue
            record: dict[str, Any] = {"file": path, "checkpoint": str(model.path), "model": digest}
            try:
                record |= asdict(model.evaluate(read_text([path], how_read), unknown=unknown))
            except (CharlstmError, OSError) as error:
                record["error"] = str(error)
                complete = False
                print_warning(f"{escape(path)}: {error}")
            file.write((json.dumps(record) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    return complete


def _scored(output: Path, digest: str, skip_done: bool) -> set[str]:
    """Return the files that the output has scores of, after removing a line that was not written to its end.

    Raises:
        CharlstmError: see `score_files`.
    """
    if not output.exists() or not output.stat().st_size:
        return set()
    if not skip_done:
        name = escape(str(output))
        raise CharlstmError(f"{name} exists: add ", Field("skip_done"), " to complete it, or name another file")
    content = output.read_bytes()
    end = content.rfind(b"\n") + 1
    records = list(_records(content[:end], output))
    if end < len(content):  # a kill or a full disk truncated the last line
        os.truncate(output, end)
    return {record["file"] for record in records if record.get("model") == digest and "error" not in record}


def _records(lines: bytes, output: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines."""
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("file"), str):
            raise CharlstmError(f"{escape(str(output))} is not a file of scores: line {number} has no entry 'file'")
        yield record

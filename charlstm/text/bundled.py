"""Named corpora that every Python brings along."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType

from charlstm.errors import CorpusError, UsageError
from charlstm.terminal import escape

NAMES = MappingProxyType(
    {
        "python:docs": "the documentation topics of your Python: about half a megabyte of English prose",
        "python:source": "the source of your Python's standard library: some ten megabytes of code",
    }
)
"""Name → what it is, in a line."""

_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def text(name: str) -> str:
    """A named corpus; always the same for the same Python.

    Raises:
        UsageError: a name that is not in `NAMES`.
        CorpusError: a Python that came without it.
    """
    if name == "python:docs":
        return _docs()
    if name == "python:source":
        return _source(Path(sysconfig.get_path("stdlib")))
    raise unknown(name, NAMES)


def unknown(name: str, names: Iterable[str]) -> UsageError:
    """What is to be raised for a name that is not among those of corpora."""
    return UsageError(f"no corpus is called {escape(ascii(name))[:60]}; there are {', '.join(names)}")


def _docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError("this Python has no pydoc_data, which python:docs is made from; try python:source") from error
    return "".join(f"{title}\n\n{topics[title].strip()}\n\n\n" for title in sorted(topics))


def _source(library: Path) -> str:
    paths: list[Path] = []
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    parts = []
    for path in sorted(paths, key=lambda path: path.relative_to(library).parts):
        try:
            parts.append(path.read_bytes().decode())
        except (OSError, UnicodeDecodeError):  # not ours to read, or written in another encoding
            continue
    if not parts:
        raise CorpusError(f"{escape(str(library))} holds no source of the standard library; try python:docs")
    return "".join(parts)

"""The corpora that come with Python: there, large, strict UTF-8, and the same each time."""

from __future__ import annotations

import ast
import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from charlstm.errors import CorpusError, UsageError
from charlstm.text import bundled


def test_the_documentation_is_half_a_megabyte_of_prose() -> None:
    text = bundled.text("python:docs")
    assert 300_000 < len(text) < 2_000_000
    words = text.split()
    assert words.count("the") / len(words) > 0.03  # English
    assert text == bundled.text("python:docs")
    assert text.isascii() or text.encode().decode() == text


def test_every_topic_is_in_the_documentation_under_its_title() -> None:
    from pydoc_data.topics import topics

    text = bundled.text("python:docs")
    for title, body in topics.items():
        assert f"{title}\n\n{body.strip()}\n" in text


def test_the_source_is_the_standard_librarys_and_no_tests() -> None:
    text = bundled.text("python:source")
    assert 5_000_000 < len(text) < 40_000_000
    assert Path(json.__file__).read_bytes().decode() in text
    assert Path(ast.__file__).read_bytes().decode() in text
    assert Path(pytest.__file__).read_bytes().decode() not in text


def test_sources_are_sorted_and_what_is_no_library_or_no_utf_8_is_left_out(tmp_path: Path) -> None:
    files = {
        "b.py": b"B\r\n",
        "a/z.py": b"Z",
        "a/b.py": "é".encode(),
        "a.txt": b"no",
        "latin.py": b"\xe9",
        "test/x.py": b"no",
        "a/tests/x.py": b"no",
        "site-packages/x.py": b"no",
        "a/__pycache__/x.py": b"no",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert bundled._source(tmp_path) == "éZB\r\n"


def test_each_name_has_a_line_about_it() -> None:
    for line in bundled.NAMES.values():
        assert line
        assert "\n" not in line


def test_a_python_that_came_without_is_told_from_a_name_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="python:docs, python:source"):
        bundled.text("python:\x1b[31m")
    monkeypatch.delitem(sys.modules, "pydoc_data.topics", raising=False)
    find = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name.startswith("pydoc_data"):
            raise ModuleNotFoundError(name)
        return find(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(CorpusError, match="python:source"):
        bundled.text("python:docs")
    with pytest.raises(CorpusError, match="python:docs"):
        bundled._source(tmp_path)

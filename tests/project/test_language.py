"""Help, messages, docstrings, comments, documents and names of tests avoid the words that language.py lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import language

FILES = [file.relative_to(language.ROOT).as_posix() for file in language.files()]


@pytest.mark.parametrize("name", FILES)
def test_a_file_uses_plain_english(name: str) -> None:
    found = list(language.hits(name, language.texts(language.ROOT / name)))
    assert not found, "\n".join(f"{hit.file}:{hit.line}: {hit.found!r} in …{hit.text}…" for hit in found)


@pytest.mark.parametrize(
    ("suffix", "source", "found"),
    [
        (".py", '"""Characters are drawn."""', ["drawn"]),
        (".py", "x = 1  # it goes on", ["goes on"]),
        (".py", 'print(f"nobody knows {x}")', ["nobody"]),
        (".py", '"""A loss that\n    is no\n    number."""', ["is no number"]),
        (".py", "draw = tally = 1", []),
        (".py", '"""Sample a character; a TensorBoard log."""', []),
        (".c", "int draw; /* what stands\n for it */ // so many", ["stands for", "so many"]),
        (".md", "It is learnt by\nheart. `draw`\n\n```sh\ndraw\n```\n", ["by heart"]),
    ],
)
def test_avoided_words_are_found_in_texts_and_not_in_identifiers(suffix: str, source: str, found: list[str]) -> None:
    parts = {
        ".py": lambda: language.texts_of_python(source, strings=True),
        ".c": lambda: language.texts_of_c(source),
        ".md": lambda: language.texts_of_markdown(source),
    }[suffix]()
    assert sorted(hit.found for hit in language.hits("x" + suffix, parts)) == sorted(found)


def test_every_expression_can_be_found() -> None:
    for expression in language.INSTEAD:
        assert language.AVOIDED.pattern.count(expression) == 1


def test_the_examined_files_are_those_of_the_whole_project() -> None:
    assert {Path(name).parts[0] for name in FILES} == {"README.md", "bench", "charlstm", "docs", "examples", "tests"}

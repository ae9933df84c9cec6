"""Find words in the project's texts that docs and code avoid: `python -m tests.project.language` counts them per file.

Plain technical English uses the standard word of the field. Each expression below is a word or a phrase that this
project avoids, with what it writes instead. Identifiers are not examined, nor the texts that tests use as data.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

INSTEAD = {  # expression -> what to write
    r"draws?|drawn|drew|drawing": "sample, generate, display",
    r"foresee\w*|foresaw": "predict",
    r"by heart": "overfit",
    r"surprises?|surprising(?:ly)?": "loss, surprisal",
    r"(?:is|are|be|was|were) no numbers?|no number": "NaN or infinite",
    r"go(?:es|ing)? on|went on|take up again": "continue, resume",
    r"stands? (?:in|for|at|behind|beside|there|alone)|stood (?:in|for|at)|standing (?:in|for|at)": "is in, means",
    r"lies? in|lying in": "is in, is stored in",
    r"so many|so much|no more than so": "N, at most N",
    r"as good as none": "invalid",
    r"nobody": "no one, no process",
    r"who(?:so)?ever|who wants|who has|who bans": "a user who",
    r"what is (?:there|known|wrong with)": "the noun",
    r"where there (?:is|are) (?:one|none|any)": "if available",
    r"rooms?|houses?|seats?|going home|tally|tallies|tallied": "module, package, count",
    r"boards?": "TensorBoard, log",
    r"talks?|talking": "message",
    r"run folders?|runs? folder": "run directory",
    r"as (?:it )?ever did": "as before",
    r"(?-i:(?:is|are) none)": "there is no",
}
AVOIDED = re.compile(r"(?<![\w-])(?:" + "|".join(INSTEAD) + r")(?![\w-])", re.IGNORECASE)

ALLOWED = (  # places where an expression has its usual meaning: part of the file's path, and of the text around the hit
    ("charlstm/cli", "draws a line"),
    ("", "heat map is drawn"),
    ("charlstm/training/resume.py", "tally"),  # a key of the file format
    ("charlstm/training/counters.py", '"tally"'),
)


class Hit(NamedTuple):
    """One avoided expression in a file."""

    file: str
    line: int
    found: str
    text: str


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, text


def texts_of_python(source: str, strings: bool) -> Iterator[tuple[int, str]]:
    """Yield line and text of the comments, the docstrings and, if `strings`, of the other string literals."""
    tree = ast.parse(source)
    yield from docstrings(tree)
    documented = {line for line, _ in docstrings(tree)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    if strings:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.lineno not in documented:
                yield node.lineno, node.value
    else:  # a test's name is a sentence
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.lineno, node.name.replace("_", " ")


def texts_of_c(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the comments."""
    for match in re.finditer(r"/\*.*?\*/|//[^\n]*", source, re.DOTALL):
        yield source.count("\n", 0, match.start()) + 1, match[0]


def texts_of_markdown(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the paragraphs outside code and addresses."""
    prose = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", prose)
    line = 1
    for paragraph in re.split(r"(\n\n+)", prose):
        yield line, paragraph
        line += paragraph.count("\n")


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of everything in a file that is written for people."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield from texts_of_python(source, strings="tests" not in file.relative_to(ROOT).parts)
    elif file.suffix == ".md":
        yield from texts_of_markdown(source)
    else:
        yield from texts_of_c(source)


def hits(name: str, parts: Iterator[tuple[int, str]]) -> Iterator[Hit]:
    """Yield the avoided expressions in the texts of one file."""
    for line, text in parts:
        flat = re.sub(r"[\s#]+", " ", text)
        for match in AVOIDED.finditer(flat):
            around = flat[max(0, match.start() - 40) : match.end() + 40]
            if not any(part in name and phrase in around for part, phrase in ALLOWED):
                yield Hit(name, line, match[0], around)


def files() -> list[Path]:
    """Return the files that are examined."""
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for folder, pattern in (
        ("charlstm", "*.py"),
        ("charlstm", "*.[ch]"),
        ("tests", "*.py"),
        ("bench", "*.py"),
        ("docs", "*.py"),
        ("examples", "*.py"),
    ):
        found += (ROOT / folder).rglob(pattern)
    return sorted(file for file in found if file != Path(__file__) and file.name != "test_language.py")


def main() -> None:
    """Print the number of hits in each file; with file names as arguments, print their hits."""
    named = [Path(argument).resolve() for argument in sys.argv[1:]]
    total = 0
    for file in named or files():
        name = file.relative_to(ROOT).as_posix()
        found = list(hits(name, texts(file)))
        total += len(found)
        if named:
            for hit in found:
                print(f"{hit.file}:{hit.line}: {hit.found}: …{hit.text}…")
        elif found:
            print(f"{len(found):4} {name}")
    print(f"{total:4} in all")


if __name__ == "__main__":
    main()

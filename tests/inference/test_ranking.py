"""Which model explains a text best."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.inference.ranking import UNKNOWN_BITS, rank, text_bits
from tests.helpers.commands import ROOT, here
from tests.helpers.models import fixed, random_model

Capture = pytest.CaptureFixture[str]


def test_bits_are_those_of_the_hand_worked_distributions() -> None:
    model = fixed("\nab", [0.25, 0.5, 0.25])
    bits = text_bits(model.scorer, model.vocabulary, ["aab", "", "b"])
    assert bits.tolist() == pytest.approx([4, 0, 2])
    assert text_bits(model.scorer, model.vocabulary, ["aé"])[0] == pytest.approx(1 + 2 + UNKNOWN_BITS)
    assert math.log2(0x110000) == UNKNOWN_BITS


def test_bits_do_not_depend_on_the_texts_that_are_scored_together() -> None:
    model = random_model("\nabc", 2)
    texts = ["abc" * 3, "a", "cab" * 2000, "abca"]
    together = text_bits(model.scorer, model.vocabulary, texts)
    alone = [text_bits(model.scorer, model.vocabulary, [text])[0] for text in texts]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)
    lines = list(model.score_lines("abca"))
    assert together[3] == pytest.approx(lines[0].bits)


def test_the_best_model_has_the_fewest_bits_and_the_margin_is_to_the_second() -> None:
    models = {name: fixed("\nab", shares) for name, shares in {"A": [0.25, 0.5, 0.25], "B": [0.25, 0.25, 0.5]}.items()}
    pairs = {name: (model.scorer, model.vocabulary) for name, model in models.items()}
    first, second, empty = rank(pairs, ["aab", "bb", ""])
    assert (first.best, first.chars, second.best) == ("A", 3, "B")
    assert [first.margin, second.margin] == pytest.approx([1, 2])
    assert (empty.best, empty.margin) == (None, 0)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, shares in {"A": [0.25, 0.5, 0.25], "B": [0.25, 0.25, 0.5]}.items():
        model = fixed("\nab", shares)
        checkpoint.save(name, Checkpoint(model.config, model.vocabulary, model.weights))
    Path("one").write_text("aab\nbb\n\nx\n")
    Path("two").write_text("b")
    return tmp_path


def test_the_command_ranks_lines_and_files(runs: Path, capfd: Capture) -> None:
    done = here(capfd, "eval", "--rank", "A", "--rank", "B", "--per-line", "one")
    unknown = f"{UNKNOWN_BITS + 2:.2f}"
    expected = [
        ["A", "1.00", "4.00", "5.00", "1", "aab"],
        ["B", "2.00", "4.00", "2.00", "2", "bb"],
        ["-", "0.00", "0.00", "0.00", "3", ""],
        ["A", "0.00", unknown, unknown, "4", "x"],
    ]
    assert [row.split("\t") for row in done.text.splitlines()] == expected
    assert done.status == 0
    done = here(capfd, "eval", "--rank", "B", "--rank", "A", "one", "two", "--json")
    one, two = (json.loads(row) for row in done.text.splitlines())
    assert {name: two[name] for name in ("best", "chars", "file")} == {"best": "B", "chars": 1, "file": "two"}
    assert (two["margin"], two["bits"]) == (pytest.approx(1), {"B": pytest.approx(1), "A": pytest.approx(2)})
    assert (one["file"], list(one["bits"])) == ("one", ["B", "A"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--rank A one", "--rank needs two or more different checkpoints"),
        ("--rank A --rank A one", "--rank needs two or more different checkpoints"),
        ("--rank A --rank B", "--rank needs a text"),
        ("--rank A --rank B one -c A", "--rank and --checkpoint are mutually exclusive"),
        ("--rank A --rank B one --unknown skip", "--rank and --unknown are mutually exclusive"),
        ("--rank A --rank B one --per-char", "--rank and --per-char are mutually exclusive"),
        ("--rank A --rank none one", "none"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    options: str, problem: str, runs: Path, capfd: Capture
) -> None:
    done = here(capfd, "eval", *options.split())
    assert (done.status != 0, done.out, len(done.err.splitlines())) == (True, b"", 1)
    assert problem in done.err


def test_the_example_of_the_documentation_finds_the_nearest_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n([^`]*model\.embed[^`]*)```", page)
    model = random_model("".join(sorted(set(example))), 9)
    monkeypatch.setattr("charlstm.load", lambda: model)
    exec(example, {})
    assert capsys.readouterr().out == "He said so\n"


def test_the_nearest_neighbour_of_an_embedding_ends_in_the_same_way() -> None:
    model = random_model("\nabc", 6)
    names = ["abcab", "ccbab", "abccc", "bbccc"]
    vectors = {name: model.embed(name) for name in names}
    assert vectors["abcab"].shape == (11,)

    def nearest(name: str) -> str:
        return min(
            (other for other in names if other != name), key=lambda o: float(abs(vectors[o] - vectors[name]).sum())
        )

    assert [nearest(name) for name in names] == ["ccbab", "abcab", "bbccc", "abccc"]
    context = model.advance("abc")
    assert model.embed("ab", context=context).tolist() == pytest.approx(model.embed("abcab").tolist(), abs=1e-6)

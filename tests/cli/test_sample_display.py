"""The options of `charlstm sample` that show probabilities, constrain a text or mix models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import charlstm
from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import GREEDY_LENGTH, ModelConfig
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.commands import here, model_file
from tests.helpers.models import fixed, random_model

Capture = pytest.CaptureFixture[str]
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path / "model.safetensors")


def test_a_coloured_text_is_the_text_with_the_colours_of_eval(model: Path, capfd: Capture) -> None:
    options = ("-c", model, "--seed", "3", "-n", "40")
    plain = here(capfd, "sample", *options).text
    done = here(capfd, "sample", *options, "--heat")
    assert COLOURS.sub("", done.text).replace("↵", "") == plain
    assert "\x1b[38;5;16;48;5;" in done.text
    several = here(capfd, "sample", *options, "--heat", "--count", "3").text
    assert COLOURS.sub("", several).replace("↵", "").startswith(plain)
    first = coloured(done.text)
    assert coloured(several)[: len(first)] == first
    assert len({colour for _, colour in first}) == 2


def coloured(text: str) -> list[tuple[str, str]]:
    """Return each character of a text with the escape sequence of its colour."""
    found, colour = [], "\x1b[0m"
    for piece in re.split(r"(\x1b\[[0-9;]*m)", text.replace("↵", "")):
        if piece.startswith("\x1b"):
            colour = piece
        else:
            found += [(char, colour) for char in piece if char != "\n"]
    return found


def test_the_json_has_the_probability_of_each_character(model: Path, capfd: Capture) -> None:
    exact = ("-c", model, "--precision", "fp32")
    done = here(capfd, "sample", *exact, "--seed", 3, "-n", 30, "--prime", "ab", "--json", "--heat", "--top", 2)
    row = json.loads(done.out)
    assert "".join(found["char"] for found in row["characters"]) == row["text"]
    loaded, text = charlstm.load(model), "ab"
    for found in row["characters"]:
        expected = loaded.next(text)
        assert found["probability"] == pytest.approx(dict(expected)[found["char"]], rel=1e-4)
        assert [char for char, _ in found["likeliest"]] == [char for char, _ in expected[:2]]
        assert [share for _, share in found["likeliest"]] == pytest.approx([s for _, s in expected[:2]], rel=1e-4)
        text += found["char"]
    assert "characters" not in json.loads(here(capfd, "sample", "-c", model, "-n", 3, "--json").out)


def test_rows_show_the_alternatives_of_each_character(model: Path, capfd: Capture) -> None:
    options = ("sample", "-c", model, "--seed", 3, "-n", 20)
    rows = [COLOURS.sub("", row).split("\t") for row in here(capfd, *options, "--heat", "--top", 3).text.splitlines()]
    chars = json.loads(here(capfd, *options, "--heat", "--top", 3, "--json").out)["characters"]
    assert [float(row[1]) for row in rows] == pytest.approx([found["probability"] for found in chars], abs=1e-4)
    assert [len(row) for row in rows] == [5] * 20


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--top 3", "--top requires --heat"),
        ("--match a --stop b", "--match and --stop are mutually exclusive"),
        ("--match a --lines 1", "--match and --lines are mutually exclusive"),
        ("--match a --match-file f", "--match and --match-file are mutually exclusive"),
        ("--match (a)\\1", "--match has a back-reference, which is not supported"),
        ("--match (a{1,500}){1,500}", "--match is too long"),
        ("--match a{9} -n 8", "the shortest text that matches has 9 symbols, more than the maximum of 8: set --length"),
        ("--mix a -c b", "--checkpoint and --mix are mutually exclusive"),
        ("--mix-by product", "--mix-by requires --mix"),
        ("--mix nothing=2", "nothing"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: str, problem: str, model: Path, capfd: Capture) -> None:
    where = [] if "-c" in options or "--mix" in options else ["-c", model]
    done = here(capfd, "sample", *where, *options.split())
    assert (done.status != 0, done.out, len(done.err.splitlines())) == (True, b"", 1)
    assert problem in done.err


def test_no_color_refuses_the_colours_but_not_the_json(
    model: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    done = here(capfd, "sample", "-c", model, "--heat")
    assert "--heat needs colours, which NO_COLOR or TERM=dumb disables: use --json" in done.err
    assert here(capfd, "sample", "-c", model, "-n", 2, "--heat", "--json").status == 0


def test_texts_of_the_command_match_and_an_expression_is_read_from_a_file(
    model: Path, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "expression").write_text("[abc]{3} (?:head|bad)\n")
    texts = [
        here(capfd, "sample", "-c", model, "--seed", 1, "--count", 20, "--match", "[abc]{3} (?:head|bad)").text,
        here(capfd, "sample", "-c", model, "--seed", 1, "--count", 20, "--match-file", tmp_path / "expression").text,
    ]
    assert texts[0] == texts[1]
    assert all(re.fullmatch("[abc]{3} (?:head|bad)", text) for text in texts[0].splitlines())
    (tmp_path / "primes").write_text("ab\nfeed\n")
    done = here(capfd, "sample", "-c", model, "--prime-lines", tmp_path / "primes", "--match", "[a-f]{4}", "--json")
    rows = [json.loads(row) for row in done.text.splitlines()]
    assert [(row["prime"], len(row["text"]), row["ended"]) for row in rows] == [
        ("ab", 4, "match"),
        ("feed", 4, "match"),
    ]
    assert all(row["log_weight"] < 0 for row in rows)


def test_models_are_mixed_by_the_command(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("A", 1), ("B=x", 2)):
        one = random_model("\nabc", seed)
        checkpoint.save(name, Checkpoint(one.config, one.vocabulary, one.weights))
    options = ("--seed", 4, "-n", 50)
    models = [charlstm.load("A"), charlstm.load("B=x")]
    assert here(capfd, "sample", "--mix", "A=1", "--mix", "B=x=0", *options).text == models[0].sample("", 50, seed=4)
    expected = charlstm.mix(models, [0.5, 2], by="product").sample("", 50, seed=4)
    assert here(capfd, "sample", "--mix", "A=.5", "--mix", "B=x=2", "--mix-by", "product", *options).text == expected
    row = json.loads(here(capfd, "sample", "--mix", "A", "--mix", "B=x", "--json", *options).out)
    assert (row["checkpoint"], row["text"]) == (["A", "B=x"], charlstm.mix(models).sample("", 50, seed=4))


def test_a_greedy_text_without_end_is_limited_and_noted(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, boundary in (("plain", None), ("documents", "\n")):
        one = fixed("\nab", [0.2, 0.5, 0.3])
        vocabulary = Vocabulary("\nab", boundary)
        config = ModelConfig(3, 1, 1, 1, boundary=vocabulary.boundary_id)
        checkpoint.save(name, Checkpoint(config, vocabulary, one.weights))
    for options in ("-c documents --temp 0", "-c plain --temp 0 --lines 2", "-c plain --top-k 1 --stop b --count 2"):
        done = here(capfd, "sample", *options.split())
        assert done.text.splitlines()[0] == "a" * GREEDY_LENGTH
        assert "a text was ended after 10,000 characters" in done.err
    done = here(capfd, "sample", "-c", "documents", "--temp", "0", "--length", "20000")
    assert (len(done.text), done.err) == (20000, "")

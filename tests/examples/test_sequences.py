"""The scripts of docs/sequences.md encode, decode and score as they say. Each score is low for a wrong output."""

from __future__ import annotations

import datetime
import itertools
import json
import random
import string
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.helpers.commands import ROOT, model_file


def example(name: str) -> ModuleType:
    """Import a script of the examples, and leave the search path as it was."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


@pytest.fixture
def dates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    return example("dates")


@pytest.fixture
def forecast() -> ModuleType:
    pytest.importorskip("statsmodels")
    return example("forecast")


@pytest.fixture(scope="module")
def handwriting() -> ModuleType:
    pytest.importorskip("HersheyFonts")
    return example("handwriting")


@pytest.fixture(scope="module")
def anomalies() -> ModuleType:
    return example("anomalies")


@pytest.mark.parametrize(
    ("day", "words"),
    [
        ((1994, 3, 3), "the third of march nineteen ninety-four"),
        ((1905, 12, 21), "december twenty-first, nineteen oh five"),
        ((2000, 1, 30), "thirtieth january two thousand"),
        ((2020, 8, 12), "august the twelfth, twenty twenty"),
        ((2099, 11, 8), "eighth november two thousand and ninety-nine"),
        ((1900, 2, 19), "nineteenth february nineteen hundred"),
    ],
)
def test_a_date_is_written_in_its_usual_wordings(dates: ModuleType, day: tuple[int, int, int], words: str) -> None:
    found = {dates.phrase(datetime.date(*day), random.Random(seed)) for seed in range(100)}
    assert words in found
    assert 4 <= len(found) <= 8


def test_no_held_out_date_is_in_the_training_text(dates: ModuleType, tmp_path: Path) -> None:
    dates.generate()
    train = (tmp_path / "train.txt").read_text().splitlines()
    answers = (tmp_path / "answers.txt").read_text().splitlines()
    assert (len(train), len(answers)) == (dates.TRAINING, dates.QUESTIONS)
    assert not {line.split(" = ")[1] for line in train} & set(answers)
    assert all(line.endswith(" = ") for line in (tmp_path / "questions.txt").read_text().splitlines())


def test_the_score_of_translations_counts_exact_dates(
    dates: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text("may first, nineteen ten = 1910-05-01\njune second, twenty ten = 2010-06-02\n")
    (tmp_path / "questions.txt").write_text("may second, nineteen ten = \nfirst june twenty ten = \n")
    (tmp_path / "answers.txt").write_text("1910-05-02\n2010-06-01\n")
    dates.score(["1910-05-02", "2010-06-01"])
    perfect = capsys.readouterr().out.splitlines()
    assert "100.0% exact" in perfect[0]
    assert "0.0% exact; year 100.0%, month 100.0%, day 0.0%" in perfect[1]  # by hand: the nearest have another day
    dates.score(["1910-05-02", "nonsense"])
    assert "50.0% exact; year 50.0%" in capsys.readouterr().out


def test_a_series_is_decoded_to_the_values_that_were_encoded(forecast: ModuleType) -> None:
    season, random_numbers = forecast.SEASON, np.random.default_rng(1)
    values = np.cumsum(random_numbers.uniform(-0.2, 0.25, 4 * season)) + 300
    text = forecast.encode(values)
    assert len(text) == len(values) - season
    decoded = forecast.decode(text[:season], values[:season])
    assert np.abs(decoded - values[season : 2 * season]).max() <= forecast.STEP / 2 + 1e-9
    reversed_text = forecast.decode(text[:season][::-1], values[:season])
    assert np.abs(reversed_text - values[season : 2 * season]).max() > forecast.STEP


def test_the_scaled_error_is_that_of_its_definition(forecast: ModuleType) -> None:
    series, season = forecast.read_series(), forecast.SEASON
    starts = [forecast.cut(series, year) for year in range(1, forecast.YEARS + 1)]
    assert starts[-1] + season == len(series)
    truth = [series[start : start + season] for start in starts]
    errors = forecast.scaled_errors(truth)
    assert errors["model"] == [0] * 5
    unit = np.mean([abs(series[k] - series[k - season]) for k in range(season, starts[0])])
    shifted = forecast.scaled_errors([values + 2 for values in truth])
    assert shifted["model"] == pytest.approx([2 / unit] * 5)
    naive = forecast.scaled_errors([series[start - season : start] for start in starts])
    assert naive["model"] == naive["seasonal naive"]
    flat = forecast.forecast(1, ["H" * season] * 3)  # H is no difference
    assert flat == pytest.approx(np.repeat(series[starts[0] - season : starts[0], None], 5, axis=1))


def test_the_pen_stays_near_the_strokes_of_the_font(handwriting: ModuleType) -> None:
    for letter, (strokes, width) in handwriting.font().items():
        line = handwriting.write(strokes, width, 0, random.Random(1))
        choose = random.Random(1)
        size, proportion = choose.uniform(0.8, 1.2), choose.uniform(0.85, 1.15)
        points = np.concatenate(strokes)
        points = size * (points.real * proportion + 1j * points.imag)
        for symbols, is_near in ((line, True), (line[::-1], False)):
            written = np.array([point for writes, point in handwriting.read(symbols) if writes])
            distance = np.abs(written[:, None] - points).min(axis=0).max()
            assert (distance < 2 * handwriting.STEP) == is_near, letter


def test_letters_are_recognised_and_a_random_walk_is_not(handwriting: ModuleType) -> None:
    known, lines, choose = handwriting.letters(10, 2), handwriting.letters(3, 4), random.Random(1)
    assert handwriting.recognised(lines, known) > 0.9
    walks = [line[:3] + "".join(choose.choices(string.ascii_lowercase[:16], k=len(line) - 3)) for line in lines]
    assert handwriting.recognised(walks, known) < 0.2
    exchanged = [line[:1] + other[1:] for line, other in itertools.pairwise(lines) if line[0] != other[0]]
    assert handwriting.recognised(exchanged, known) < 0.1


def test_an_n_gram_model_with_a_long_context_copies(handwriting: ModuleType) -> None:
    train = handwriting.letters(20, 1)
    lines = handwriting.n_gram(train, [line[:3] for line in train], 16, random.Random(1))
    assert handwriting.copied(lines, train) > 0.9
    assert handwriting.copied([line[:3] + line[:2:-1] for line in lines], train) < 0.1


def test_a_picture_has_a_line_for_each_step_on_the_paper(handwriting: ModuleType) -> None:
    picture = ElementTree.fromstring(handwriting.svg(["a0 aaA", "b0 e", "", "c0 pP"]))
    path = picture[0].attrib["d"]
    assert path.count("L") == 4
    assert path.startswith("M0.0 -0.0L5.0 -0.0L10.0 -0.0M15.0 -0.0")
    assert "L15.0 -5.0" in path  # e is upwards, and the y axis of SVG points downwards


def lines_of(anomalies: ModuleType, number: int) -> list[str]:
    return [f"00:00:00 {event}\n" for event, _ in zip(anomalies.events(random.Random(5)), range(number), strict=False)]


def test_the_state_of_the_detector_is_kept_between_calls(anomalies: ModuleType, tmp_path: Path) -> None:
    lines = lines_of(anomalies, 700)
    model = str(model_file(tmp_path / "model.safetensors", symbols="".join(sorted(set("".join(lines))))))
    whole = list(anomalies.watch(model, tmp_path / "one", lines))
    parts = [found for k in (0, 250, 500) for found in anomalies.watch(model, tmp_path / "two", lines[k : k + 250])]
    assert parts == whole
    assert len(json.loads((tmp_path / "one.json").read_text())) == 700
    files = [(tmp_path / name).read_bytes() for name in ("one.context", "two.context", "one.json", "two.json")]
    assert files[0] == files[1]
    assert files[2] == files[3]
    list(anomalies.watch(model, tmp_path / "three", lines[:500]))
    (tmp_path / "three.context").unlink()
    list(anomalies.watch(model, tmp_path / "three", lines[500:]))
    assert (tmp_path / "three.json").read_bytes() != files[2]  # the state matters


def test_a_line_is_unusual_only_after_enough_lines(anomalies: ModuleType, tmp_path: Path) -> None:
    model = str(model_file(tmp_path / "model.safetensors", symbols="\nabcdxyz"))
    usual = ["0 ab\n"] * (anomalies.ENOUGH + 5)
    assert list(anomalies.watch(model, tmp_path / "few", [*usual[:100], "0 xyzxyz\n", *usual[:50]])) == []
    found = [line for _, line in anomalies.watch(model, tmp_path / "many", [*usual, "0 xyzxyz\n", *usual[:50]])]
    assert "0 xyzxyz\n" in found


def test_precision_and_recall_are_those_of_the_printed_lines(
    anomalies: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "normal.log").write_text("1 a b\n2 b a\n")
    (tmp_path / "today.log").write_text("3 a b\n4 c b\n5 b b\n6 a a a\n")
    (tmp_path / "unusual.txt").write_text("4 c b\n6 a a a\n")
    anomalies.score(["9.0\t4 c b", "8.0\t3 a b", "7.0\t5 b b", "7.0\t6 a a a"])
    model, rule = capsys.readouterr().out.splitlines()
    assert model.split() == ["model", "4", "lines,", "precision", "50%,", "recall", "100%"]
    assert rule.split() == ["rule", "2", "lines,", "precision", "100%,", "recall", "100%"]
    anomalies.score([])
    assert "recall   0%" in capsys.readouterr().out.splitlines()[0]

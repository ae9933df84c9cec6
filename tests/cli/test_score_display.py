"""The outputs of `charlstm eval` that show which parts of a text are hard to predict."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import charlstm
from charlstm import checkpoint
from tests.helpers.commands import COMMAND, environment, here, in_terminal, model_file, spawn

Capture = pytest.CaptureFixture[str]
TEXT = "abc def\nhead\tbad\nfeed".replace("\t", " ")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path / "model.safetensors")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT)
    return tmp_path / "text"


def test_each_line_has_a_row_with_bits_characters_number_and_text(model: Path, text: Path, capfd: Capture) -> None:
    done = here(capfd, "eval", "-c", model, "--per-line", text)
    rows = [row.split("\t") for row in done.text.splitlines()]
    scores = list(charlstm.load(model).score_lines(TEXT))
    assert rows == [[f"{s.bits_per_char:.4f}", str(s.chars), str(s.number), s.text.strip("\n")] for s in scores]
    assert (done.status, done.err) == (0, "")
    carried = here(capfd, "eval", "-c", model, "--per-line", "--carry", text).text
    assert [row.split("\t")[1] for row in carried.splitlines()] == ["7", "9", "4"]


def test_the_text_of_a_line_is_written_byte_for_byte(tmp_path: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "m", "\n\t\r\x1bab")
    (tmp_path / "text").write_bytes(b"a\tb\r\n\x1b\n")
    done = here(capfd, "eval", "-c", model, "--per-line", tmp_path / "text")
    assert [row.split(b"\t", 3)[3] for row in done.out.split(b"\n")[:2]] == [b"a\tb\r", b"\x1b"]


def test_line_scores_as_json(model: Path, text: Path, capfd: Capture) -> None:
    rows = [json.loads(row) for row in here(capfd, "eval", "-c", model, "--per-line", "--json", text).text.splitlines()]
    scores = list(charlstm.load(model).score_lines(TEXT))
    assert [(r["bits_per_char"], r["bits"], r["chars"], r["line"], r["text"], r["unknown"]) for r in rows] == [
        (s.bits_per_char, s.bits, s.chars, s.number, s.text.removesuffix("\n"), 0) for s in scores
    ]


def waiting_for_lines(model: Path) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "eval", "-c", model, "--per-line", "-"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, command)], stdin=pipe, stdout=pipe, stderr=pipe, env=environment())


def test_each_line_is_scored_before_the_next_one_is_sent(model: Path) -> None:
    with waiting_for_lines(model) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        for number, line in enumerate((b"abc\n", b"\n", b"feed a bad head\n"), 1):
            child.stdin.write(line)
            child.stdin.flush()
            row = child.stdout.readline().split(b"\t")  # blocks if the row is not flushed
            assert (row[2], row[3]) == (str(number).encode(), line)
        child.stdin.write(b"bed")
        child.stdin.close()
        assert child.stdout.read().endswith(b"\t3\t4\tbed\n")
        assert (child.wait(), child.stderr.read()) == (0, b"")


@pytest.mark.fault("R48")
def test_a_closed_pipe_ends_the_scoring_of_lines_without_a_message(model: Path) -> None:
    line = f"while :; do echo abc; done | {' '.join(map(str, COMMAND))} eval -c {model} --per-line - | head -n 2"
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment(), timeout=60, check=False)
    assert (
        len(done.stdout.splitlines()),
        done.stderr.replace(b"bash: line 1: echo: write error: Broken pipe\n", b""),
    ) == (2, b"")


@pytest.mark.fault("R46")
def test_ctrl_c_ends_the_wait_for_lines(model: Path) -> None:
    with waiting_for_lines(model) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(b"abc\n")
        child.stdin.flush()
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert (child.wait(), child.stderr.read()) == (130, b"")


@pytest.mark.parametrize("many", [40_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_lines(model: Path, many: int) -> None:
    peaks = []
    for lines in (1_000, many):
        code = (
            "import sys; from charlstm.text import reading; from charlstm.cli.main import run;"
            "reading.BLOCK_BYTES = 4096;"  # all lines of a block are scored together
            f"status = run(['eval', '-c', {str(model)!r}, '--per-line', '-']);"
            "peak, = (line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'));"
            "print(peak, file=sys.stderr); sys.exit(status)"  # getrusage also counts the parent
        )
        data = b"abc def\n" * lines
        done = subprocess.run(
            [COMMAND[0], "-c", code], input=data, capture_output=True, env=environment(), timeout=120, check=True
        )
        assert done.stdout.count(b"\n") == lines
        peaks.append(int(done.stderr))
    assert peaks[1] < 1.1 * peaks[0], peaks


def test_each_character_has_a_row_in_which_control_characters_are_escaped(tmp_path: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "m", "\n\t\r\x1b\\a")
    (tmp_path / "text").write_bytes(b"a\n\t\r\x1b\\a")
    rows = here(capfd, "eval", "-c", model, "--per-char", tmp_path / "text").text.splitlines()
    assert [row.split("\t")[1:] for row in rows] == [
        ["2", "\\n"], ["3", "\\t"], ["4", "\\r"], ["5", "\\x1b"], ["6", "\\\\"], ["7", "a"]
    ]  # fmt: skip


def test_each_row_of_a_character_lists_the_most_probable_characters(model: Path, text: Path, capfd: Capture) -> None:
    scores = list(charlstm.load(model).score_chars(TEXT, top=2))
    rows = [
        row.split("\t") for row in here(capfd, "eval", "-c", model, "--per-char", "--top", 2, text).text.splitlines()
    ]
    assert [len(row) for row in rows] == [5] * (len(TEXT) - 1)
    assert [float(row[0]) for row in rows] == pytest.approx([score.bits for score in scores], abs=1e-4)
    assert float(rows[0][3].split(" ")[-1]) == pytest.approx(scores[0].likeliest[0][1], abs=1e-4)
    as_json = here(capfd, "eval", "-c", model, "--per-char", "--top", 2, "--json", text).text.splitlines()
    row = json.loads(as_json[3])
    assert [char for char, _ in row["likeliest"]] == [char for char, _ in scores[3].likeliest]
    expected = [probability for _, probability in scores[3].likeliest]
    assert [probability for _, probability in row.pop("likeliest")] == pytest.approx(expected, rel=1e-8)
    assert row == {"bits": scores[3].bits, "place": 5, "char": "d"}
    assert set(json.loads(here(capfd, "eval", "-c", model, "--per-char", "--json", text).text.splitlines()[0])) == {
        "bits", "place", "char"
    }  # fmt: skip


def test_heat_is_the_text_with_colours(
    model: Path, text: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    done = here(capfd, "eval", "-c", model, "--heat", text).text
    assert re.sub(r"\x1b\[[0-9;]*m", "", done).replace("↵", "") == TEXT
    assert done.endswith("\x1b[0m")
    colours = [0, 230, 222, 215, 209, 203]
    shown = list(re.finditer(r"\x1b\[(?:0|38;5;16;48;5;(\d+))m|(\n|[^\x1b])", done))
    colour, levels = 0, []
    for match in shown:
        if match[2] is None:
            colour = int(match[1] or 0)
        elif match[2] != "\n":
            levels.append(colours.index(colour))
    bits = [
        0.0,
        *(score.bits for score in charlstm.load(model).score_chars(TEXT) if score.char != "\n" or score.bits >= 2),
    ]
    assert levels == [sum(value >= least for least in (2.0, 3.5, 5.0, 7.0, 10.0)) for value in bits]
    assert len(set(levels)) > 2


@pytest.mark.fault("R84")
def test_heat_escapes_control_characters_of_the_text(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m", "\n\x1b\x07\u202eab[2J")
    (tmp_path / "text").write_text("\x1b[2Ja\x07\u202eb\x1b[2J")
    done = in_terminal([*COMMAND, "eval", "-c", model, "--heat", tmp_path / "text"], NO_COLOR=None)
    plain = re.sub(rb"\x1b\[(0|38;5;16;48;5;\d+)m", b"", done.out)
    assert plain.decode() == "\\x1b[2Ja\\x07\\u202eb\\x1b[2J"


@pytest.mark.fault("R89")
@pytest.mark.parametrize("forbidden", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_heat_without_colours_names_the_alternative(
    model: Path, text: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, forbidden: dict[str, str]
) -> None:
    for name, value in forbidden.items():
        monkeypatch.setenv(name, value)
    done = here(capfd, "eval", "-c", model, "--heat", text)
    assert (done.status, done.out) == (2, b"")
    assert "--per-char" in done.err


@pytest.mark.fault("R71")
def test_the_result_has_the_number_of_skipped_or_replaced_characters(
    model: Path, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "text").write_text("abéc dxé\n")
    refused = here(capfd, "eval", "-c", model, tmp_path / "text")
    assert (refused.status, refused.out) == (1, b"")
    assert "'é' × 2, 'x' × 1" in refused.err
    assert "--unknown" in refused.err
    for policy, said, chars in (("skip", "3, skipped", 6), ("replace", "3, replaced by ' '", 9)):
        assert said in here(capfd, "eval", "-c", model, tmp_path / "text", "--unknown", policy).text
        result = json.loads(here(capfd, "eval", "-c", model, tmp_path / "text", "--unknown", policy, "--json").out)
        assert (result["unknown"], result["chars"]) == (3, chars)
    (tmp_path / "known").write_text("abc")
    assert "unknown" not in here(capfd, "eval", "-c", model, tmp_path / "known", "--unknown", "skip").text


def test_two_models_are_compared(model: Path, text: Path, tmp_path: Path, capfd: Capture) -> None:
    other = model_file(tmp_path / "other", "\n abcdefghi")
    found = charlstm.load(model).compare(charlstm.load(other), TEXT)
    result = json.loads(here(capfd, "eval", "-c", model, "--against", other, text, "--json").out)
    assert result["ours"]["bits_per_char"] == found.ours.bits_per_char
    assert result["theirs"]["bits_per_char"] == found.theirs.bits_per_char
    assert result["difference"] == {
        "bits_per_char": found.difference.bits_per_char, "standard_error": None, "blocks": 1
    }  # fmt: skip
    (tmp_path / "long").write_text(TEXT * 200)
    shown = here(capfd, "eval", "-c", model, "--against", other, tmp_path / "long").text
    assert re.search(r"^difference +[+-]\d\.\d{4} ± \d\.\d{4}$", shown, re.MULTILINE)
    assert "4 blocks" in shown


def test_dynamic_evaluation_learns_and_saves_only_with_the_option(model: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "text").write_text("abcdefgh" * 40)
    before, plain = model.read_bytes(), here(capfd, "eval", "-c", model, tmp_path / "text").out
    arguments: list[Any] = ["eval", "-c", model, tmp_path / "text", "--dynamic", "--dynamic-rate", 0.01]
    learnt = json.loads(here(capfd, *arguments, "--json").out)
    assert learnt["bits_per_char"] < float(plain.split()[3]) - 0.2
    assert learnt["transitions"] == 319
    assert learnt["protocol"].startswith("dynamic: one stream, learning every")
    assert model.read_bytes() == before
    assert here(capfd, "eval", "-c", model, tmp_path / "text").out == plain
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "text"]
    assert here(capfd, *arguments, "--dynamic-save", tmp_path / "new").status == 0
    assert charlstm.load(tmp_path / "new").evaluate("abcdefgh" * 40).bits_per_char < learnt["bits_per_char"]
    assert checkpoint.verify(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--per-line --per-char", "--per-line and --per-char are mutually exclusive: give one"),
        ("--dynamic --exact", "--exact and --dynamic are mutually exclusive: give one"),
        ("--carry", "--carry requires --per-line"),
        ("--top 3", "--top requires --per-char"),
        ("--heat --json", "--per-char"),
        ("--dynamic-rate 1", "--dynamic-rate requires --dynamic"),
        ("--dynamic-save x", "--dynamic-save requires --dynamic"),
        ("--dynamic --dynamic-decay 2", "--dynamic-decay must be"),
        ("--unknown perhaps", "--unknown"),
    ],
)
def test_mutually_exclusive_options_are_wrong_usage(model: Path, capfd: Capture, options: str, said: str) -> None:
    done = here(capfd, "eval", "-c", model, "text", *options.split())
    assert (done.status, done.out) == (2, b"")
    assert said in done.err


def test_without_text_the_held_out_part_is_scored_line_by_line(model: Path, tmp_path: Path, text: Path) -> None:
    done = spawn(["eval", "-c", model, "--per-line"], cwd=tmp_path)
    assert done.status == 1
    assert "does not name a corpus" in done.err


def test_a_slow_text_shows_the_progress_of_reading(model: Path) -> None:
    slow = """(head -c 300000 /dev/zero; sleep 1.1; head -c 300000 /dev/zero) | tr '\\0' a | "$@" """
    shown = in_terminal(["bash", "-c", slow, "-", *COMMAND, "eval", "-c", model, "-", "--exact"])
    assert shown.status == 0
    assert re.search(rb"\rreading: [0-9.]+kchar ", shown.out)


@pytest.mark.parametrize("way", [[], ["--dynamic"]])
def test_a_long_evaluation_shows_the_progress_of_scoring(model: Path, tmp_path: Path, way: list[str]) -> None:
    (tmp_path / "text").write_text("abc" * 2000)
    at_once = (
        "import sys; from charlstm.cli import main, progress_bar as bar; bar.DELAY_SECONDS = 0; main.run(sys.argv[1:])"
    )
    shown = in_terminal([sys.executable, "-c", at_once, "eval", "-c", model, tmp_path / "text", *way])
    assert shown.status == 0
    assert re.search(rb"\rscoring: +[0-9]+%\|.*/6.00k", shown.out)
    assert b"reading" in shown.out


@pytest.mark.parametrize("way", [[], ["--per-line"], ["--per-char"], ["--against", "{model}"]])
def test_a_text_longer_than_the_limit_is_refused(model: Path, text: Path, capfd: Capture, way: list[str]) -> None:
    words = ["eval", "-c", model, text, *(word.format(model=model) for word in way), "--max-chars"]
    assert here(capfd, *words, len(TEXT)).status == 0
    refused = here(capfd, *words, len(TEXT) - 1)
    assert (refused.status, refused.out) == (1, b"")
    assert f"longer than {len(TEXT) - 1} characters; raise --max-chars" in refused.err

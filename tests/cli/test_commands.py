"""Each command: its exact stdout, its lines on stderr and its exit status."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

import charlstm
from charlstm import checkpoint, native_library
from charlstm.cli.app import app
from charlstm.cli.options import flags_of, unescaped
from charlstm.config import SamplingConfig, TrainingOptions
from charlstm.inference import evaluation, native
from charlstm.text import datasets
from tests.helpers.command_line import OPTIONS
from tests.helpers.commands import here, model_file

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_file(tmp_path / "model.safetensors")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def help_of(command: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    done = here(capfd, *([command] if command else []), "--help")
    assert (done.status, done.err) == (0, "")
    return done.text


# The command line itself


@pytest.mark.fault("R91")
def test_the_commands_and_options_are_exactly_the_documented_ones() -> None:
    group: Any = typer.main.get_command(app)
    commands = {"": group, **group.commands}
    context = typer.Context(group)
    found = {
        name: {o for p in c.get_params(context) if p.param_type_name == "option" for o in p.opts}
        for name, c in commands.items()
    }
    assert found == OPTIONS


@pytest.mark.fault("R91")
def test_every_training_option_has_a_flag_and_its_help_shows_the_default(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = " ".join(help_of("train", capfd, monkeypatch).split())
    for field in fields(TrainingOptions):
        name = flags_of(field.name)[0]
        entry = page.split(f" {name} ")[1].split(" --")[0]
        assert "[default: " in entry, name
        if field.default is not None:
            assert f"[default: {field.default}]" in entry


@pytest.mark.parametrize("command", OPTIONS)
def test_help_fits_80_columns_and_has_examples(command: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    page = help_of(command, capfd, monkeypatch)
    assert "Examples:\n  " in page
    assert max(map(len, page.splitlines())) <= 80
    assert "\x1b" not in page


def test_without_arguments_the_help_is_shown(capfd: Capture) -> None:
    done = here(capfd)
    assert done.status == 0
    assert done.text.startswith("Usage: charlstm")


def test_version_is_that_of_the_package(capfd: Capture) -> None:
    assert here(capfd, "--version") == (0, f"charlstm {charlstm.__version__}\n".encode(), "")


@pytest.mark.fault("R73", "R90")
@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense",
        "--nonsense",
        "train",
        "train x --cell transformer",
        "train x --hidden 0",
        "train x --hidden 1.5",
        "train x --time 3parsecs",
        "train x --time 3m --steps 4",
        "train x --allow-new-corpus",
        "train x --dropout nan",
        "train {text} --encoding klingon",
        "sample --temp -1",
        "sample --temp nan",
        "sample --temp inf",
        "sample -n -1",
        "sample --seed -1",
        "sample --count 0",
        "sample --threads 0",
        "sample --prime a --prime-file b",
        "sample --line-buffered --unbuffered",
        "sample --count 2 --save-state s",
        "sample -c {model} --count 2 -n 0",
        "sample -c {model} --json -n 0",
        "sample -c {model} --best-of 2 -n 0",
        "sample --prime a --prime-lines b",
        "sample --prime-lines b --save-state s",
        "sample --json --null",
        "sample --top-k -1",
        "sample --top-p 1.1",
        "sample --min-p nan",
        "sample --typical -0.1",
        "sample --repeat-penalty 0",
        "sample --repeat-window 1025",
        "sample --lines 0",
        "sample --stop=",
        "sample --keep-stop",
        "sample --best-of 0",
        "sample -e --prime a\\q",
        "sample -e --ban \\x4",
        "sample -e --stop \\ud800",
        "sample -c {model} --only=",
        "sample -c {model} --stop abc --ban b",
        "next a b",
        "next --top -1",
        "next --temp -1",
        "next --only= -c {model}",
        "sample -c {model} --precision fp16",
        "eval -c {model} --threads none",
        "corpus latin:docs",
    ],
)
def test_wrong_usage_prints_one_line_and_exits_with_status_2(
    arguments: str, model: Path, in_folder: Path, capfd: Capture
) -> None:
    (in_folder / "text").write_text("abc" * 9)
    done = here(capfd, *(word.format(model=model, text=in_folder / "text") for word in arguments.split()))
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith("charlstm: ")
    assert done.err.count("\n") == 1


@contextlib.contextmanager
def compiled_library(found: Path, abi: int = native_library.ABI) -> Iterator[None]:
    """Let charlstm find this compiled library and require this version of its ABI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_library, "ABI", abi)
        spec = importlib.machinery.ModuleSpec("charlstm._core", None, origin=str(found))
        patch.setattr(importlib.util, "find_spec", lambda _: spec if found.exists() else None)
        native_library.load.cache_clear()
        yield
    native_library.load.cache_clear()


@pytest.mark.parametrize(
    ("library", "shown"),
    [
        ("stale", "of another version; to compile it again, install charlstm again"),
        ("truncated", "could not be loaded; to compile it again, install charlstm again"),
        ("foreign", "could not be loaded"),
        ("missing", "no C compiler was found at install"),
    ],
)
def test_an_unusable_library_is_reported_once_and_numpy_is_used(
    library: str, shown: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.find_spec("charlstm._core")
    if spec is None or spec.origin is None:
        pytest.skip("the native library was not compiled")
    model, said = model_file(tmp_path / "m"), "the compiled kernels are broken or of another version"
    words = ["sample", "-c", model, "-n", "5", "--seed", "1"]
    assert here(capfd, *words).err == ""
    assert "native C, for training, sampling and scoring" in here(capfd, "info", model).text
    path, abi = tmp_path / "_core.so", native_library.ABI
    if library == "stale":
        path, abi = Path(spec.origin), abi + 1
    elif library == "truncated":
        path.write_bytes(Path(spec.origin).read_bytes()[:100])
    elif library == "foreign":
        path.write_text("no library")
    with compiled_library(path, abi):
        done = here(capfd, *words)
        assert (done.status, len(done.out)) == (0, 5)
        assert (said in done.err, done.err.count("\n")) == ((False, 0) if library == "missing" else (True, 1))
        assert (said in here(capfd, "next", "-c", model).err) == (library != "missing")
        assert here(capfd, *words, "--json").err == ""
        assert shown in " ".join(here(capfd, "info", model).text.split())


def _damage(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "damaged").write_bytes(data)


def _nan(folder: Path) -> None:
    whole = checkpoint.load(folder / "model.safetensors")
    weights = {**whole.weights, "projection.bias": np.full(10, np.nan, np.float32)}
    checkpoint.save(folder / "nan", checkpoint.Checkpoint(whole.model, whole.vocabulary, weights))


@pytest.mark.fault("R8", "R26", "R60", "R63", "R71", "R90")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train missing", "missing: no such file"),
        ("train empty", "empty"),
        ("train latin", "0xe9"),
        ("train text --max-chars 9", "longer than 9"),
        ("train text --resume", "no run of this text"),
        ("train text -o text/run", "text/run"),
        ("train text --hidden 65536 --layers 64", "reduce --hidden"),
        ("sample", "no trained model"),
        ("sample -c missing", "missing: no such checkpoint"),
        ("sample -c damaged", "sha256"),
        ("sample -c nan", "projection.bias"),
        ("sample -c text", "not a safetensors file, or is truncated"),
        ("sample -c {model} --prime xyz", "'x' × 1"),
        ("sample -c {model} --prime-file missing", "missing"),
        ("sample -c {model} --prime-lines missing", "missing"),
        ("sample -c {model} --prime-lines text2", "prime 1: 3 different characters are not in"),
        ("sample -c {model} --only abx", "--only has characters that are not in the vocabulary of the model: 'x' × 1"),
        ("sample -c {model} --stop xa", "--stop 'xa' can never occur"),
        ("next -c {model} x", "'x' × 1"),
        ("sample -c {model} --load-state text", "not a state"),
        ("eval -c {model}", "does not name a corpus"),
        ("eval -c {model} xyz", "xyz: no such file"),
        ("eval -c {model} one", "give a text of 2 or more"),
        ("eval -c {model} text2", "not in the model's vocabulary"),
        ("info damaged", "sha256"),
        ("verify damaged", "sha256"),
        ("verify nan", "projection.bias"),
        ("verify", "no trained model"),
    ],
)
def test_an_invalid_file_prints_one_line_and_exits_with_status_1(
    arguments: str, said: str, model: Path, in_folder: Path, capfd: Capture
) -> None:
    files = {"empty": b"", "latin": b"caf\xe9", "text": b"abc" * 9, "text2": b"abcxyz", "one": b"a"}
    for name, data in files.items():
        (in_folder / name).write_bytes(data)
    _damage(in_folder)
    _nan(in_folder)
    done = here(capfd, *(word.format(model=model) for word in arguments.split()))
    assert (done.status, done.out) == (1, b"")
    assert done.err.startswith("charlstm: ")
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.fault("R87")
def test_an_error_message_escapes_control_characters_of_a_file_name(capfd: Capture, in_folder: Path) -> None:
    name = "\x1b]0;title\x07\n\u202egnp"
    for command in ("train", "sample -c", "eval -c", "info", "verify"):
        done = here(capfd, *command.split(), name)
        assert done.status == 1
        assert done.err.count("\n") == 1
        assert "\\x1b" in done.err
        assert not any(bad in done.err for bad in "\x1b\x07\u202e")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "train x --time 99999999h",
            "--time must be a duration such as 90s, 3m or 1h30m, and at most 1000000000 seconds, got '99999999h'",
        ),
        ("train x --time 3m --steps 4", "--steps and --time are mutually exclusive: give one of them"),
        ("train x --seq-len 0", "--seq-len must be a whole number from 1 to 1048576, got 0"),
        ("train x --allow-new-corpus", "--allow-new-corpus requires --resume"),
        ("train - --valid -", "stdin can be read only once: as CORPUS or as --valid"),
        ("sample --temp -1", "--temp must be a finite number of at least 0, got -1.0"),
        ("sample --length -1", "--length must be a whole number from 0 to 9007199254740992, got -1"),
        ("sample --json --null", "--json and --null are mutually exclusive: give one of them"),
        ("sample --keep-stop", "--keep-stop requires --stop"),
        ("sample -e --prime a\\q", "--prime contains the invalid escape sequence '\\q'; write a backslash as \\\\"),
        ("next -e a\\q", "TEXT contains the invalid escape sequence '\\q'; write a backslash as \\\\"),
        ("eval --dynamic --dynamic-rate -2", "--dynamic-rate must be a number from 0 to 1000, got -2.0"),
        ("eval --dynamic-segment 8", "--dynamic-segment requires --dynamic"),
        ("eval --dynamic-save f", "--dynamic-save requires --dynamic"),
        ("eval --exact --heat", "--exact and --heat are mutually exclusive: give one of them"),
        ("eval --heat --json", "--heat has no JSON output: use --per-char with --json"),
    ],
)
def test_an_error_names_the_option_and_not_the_config_field(arguments: str, message: str, capfd: Capture) -> None:
    assert here(capfd, *arguments.split()) == (2, b"", f"charlstm: {message}\n")


# sample


def test_sample_writes_exactly_the_text_that_the_library_generates(model: Path, capfd: Capture) -> None:
    done = here(capfd, "sample", "-c", model, "-n", 300, "--seed", 5, "--temp", 0.7, "--prime", "abc")
    assert (done.status, done.err) == (0, "")
    assert done.text == charlstm.load(model).sample("abc", 300, temperature=0.7, seed=5)
    assert len(done.text) == 300


@pytest.mark.fault("R76")
@pytest.mark.parametrize("length", [1, 2, 999])
def test_sample_length_is_exact(length: int, model: Path, capfd: Capture) -> None:
    assert len(here(capfd, "sample", "-c", model, "-n", length).text) == length


@pytest.mark.fault("R77")
def test_the_same_seed_gives_the_same_text_and_another_seed_another_text(model: Path, capfd: Capture) -> None:
    first, again, other = (here(capfd, "sample", "-c", model, "--seed", seed).text for seed in (1, 1, 2))
    assert first == again != other
    assert here(capfd, "sample", "-c", model).text != here(capfd, "sample", "-c", model).text


def test_each_of_several_texts_is_followed_by_a_newline_or_a_nul(model: Path, capfd: Capture) -> None:
    texts = list(charlstm.load(model).samples(3, "", 10, seed=4))
    words = ("sample", "-c", model, "-n", 10, "--seed", 4)
    assert here(capfd, *words, "--count", 3).text == "".join(f"{text}\n" for text in texts)
    assert here(capfd, *words, "--count", 3, "-0").text == "".join(f"{text}\0" for text in texts)
    assert here(capfd, *words, "--null").text == f"{texts[0]}\0"


def test_unknown_characters_of_the_prime_are_skipped_or_replaced_and_reported(
    model: Path, capfd: Capture, in_folder: Path
) -> None:
    def primed(prime: str, *policy: str) -> tuple[bytes, str]:
        """Return the saved state after the prime and a few characters, and the output on stderr."""
        words = ["sample", "-c", model, "-n", 5, "--seed", 3, "--save-state", "state", "--prime", prime, *policy]
        said = here(capfd, *words).err
        return (in_folder / "state").read_bytes(), said

    told = "charlstm: unknown characters of the prime, skipped: 'x' × 1, 'z' × 1\n"
    assert primed("abzcx", "--unknown", "skip") == (primed("abc")[0], told)
    # the vocabulary has neither U+FFFD nor '?', so a space replaces unknown characters
    assert primed("abzcx", "--unknown", "replace") == (primed("ab c ")[0], told.replace("skipped", "replaced"))
    assert primed("abc") != primed("ab c ")


def test_prime_may_come_from_a_file_or_stdin(
    model: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prime").write_text("abc\n")
    words = ("sample", "-c", model, "--seed", 1, "-n", 50)
    wanted = here(capfd, *words, "--prime", "abc\n").text
    assert here(capfd, *words, "--prime-file", tmp_path / "prime").text == wanted
    type_in(monkeypatch, b"abc\n")
    assert here(capfd, *words, "--prime-file", "-").text == wanted
    assert here(capfd, *words).text != wanted


def test_a_saved_state_continues_the_text_without_a_difference(model: Path, tmp_path: Path, capfd: Capture) -> None:
    words = ("sample", "-c", model)
    whole = here(capfd, *words, "--seed", 9, "-n", 90).text
    first = here(capfd, *words, "--seed", 9, "-n", 40, "--save-state", tmp_path / "kept").text
    rest = here(capfd, *words, "-n", 50, "--load-state", tmp_path / "kept").text
    assert first + rest == whole


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--top-k", 2], {"top_k": 2}),
        (["--top-p", 0.5], {"top_p": 0.5}),
        (["--min-p", 0.9], {"min_p": 0.9}),
        (["--typical", 0.3], {"typical": 0.3}),
        (["--repeat-penalty", 9], {"repeat_penalty": 9.0}),
        (["--repeat-penalty", 9, "--repeat-window", 2], {"repeat_penalty": 9.0, "repeat_window": 2}),
        (["--ban", "abc"], {"ban": "abc"}),
        (["--only", "abc"], {"only": "abc"}),
        (["--lines", 3], {"lines": 3}),
        (["--stop", "ab", "--stop", "cd"], {"stop": ("ab", "cd")}),
        (["--stop", "ab", "--keep-stop"], {"stop": ("ab",), "keep_stop": True}),
        (["--best-of", 5, "-n", 30], {"best_of": 5, "length": 30}),
    ],
    ids=str,
)
def test_each_sampling_option_has_the_effect_of_the_library_argument(
    words: list[object], options: dict[str, Any], model: Path, capfd: Capture
) -> None:
    done = here(capfd, "sample", "-c", model, "--seed", 6, *words)
    assert (done.status, done.err) == (0, "")
    assert done.text.removesuffix("\n" if "best_of" in options else "") == charlstm.load(model).sample(
        seed=6, **options
    )
    assert done.text != here(capfd, "sample", "-c", model, "--seed", 6).text


def test_escape_sequences_are_decoded_in_every_text_only_with_the_option(model: Path, capfd: Capture) -> None:
    words = ("sample", "-c", model, "--seed", 1, "-n", 50)
    plain = here(capfd, *words, "--prime", "a\nb", "--ban", "c\n").text
    assert here(capfd, *words, "-e", "--prime", r"\x61\n\u0062", "--ban", r"c\n").text == plain
    assert "'\\' × 1" in here(capfd, *words, "--prime", r"a\nb").err
    stopped = here(capfd, "sample", "-c", model, "-e", "--seed", 1, "--stop", r"\n").text
    assert "\n" not in stopped
    assert here(capfd, "sample", "-c", model, "--seed", 1, "--lines", 1).text == stopped + "\n"


@pytest.mark.parametrize(
    ("written", "meant"),
    [(r"a\tb\\n\0", "a\tb\\n\0"), (r"\x41\u00e9\U0001f600\r", "Aé😀\r"), ("plain", "plain"), ("", "")],
)
def test_escape_sequences_are_those_of_python(written: str, meant: str) -> None:
    assert unescaped(written, "prime") == meant


@pytest.mark.parametrize("written", ["\\", "a\\q", r"\x4", r"\xg0", r"\u12", r"\ud800", r"\U00110000", "\\\n"])
def test_an_invalid_escape_sequence_is_rejected(written: str) -> None:
    with pytest.raises(charlstm.UsageError, match=r"prime contains the invalid escape sequence"):
        unescaped(written, "prime")


def test_texts_that_end_with_a_line_break_get_no_second_one(model: Path, capfd: Capture) -> None:
    words = ("sample", "-c", model, "--seed", 4, "--count", 6)
    lines = here(capfd, *words, "--lines", 1).text
    assert lines.count("\n") == 6
    assert lines == "".join(charlstm.load(model).samples(6, seed=4, lines=1))
    assert here(capfd, *words, "--lines", 1, "-n", 1, "--ban", "\n").status == 2
    short = here(capfd, *words, "--lines", 1, "-n", 2).text  # a line break is added to a text that the length ends
    assert short.count("\n") == 6
    assert here(capfd, *words, "--lines", 1, "-0").text == lines.replace("\n", "\n\0")


def test_each_prime_line_is_continued_to_the_end_of_its_line(
    model: Path, in_folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_folder / "primes").write_text("abc\n\nha ha")
    words = ("sample", "-c", model, "--seed", 4)
    done = here(capfd, *words, "--prime-lines", "primes")
    assert (done.status, done.err, done.text.count("\n")) == (0, "", 3)
    loaded = charlstm.load(model)
    config = SamplingConfig(seed=4, lines=1)
    assert done.text == "".join(t.text for t in loaded.generate(config, [["abc", "", "ha ha"]], scored=False))
    assert done.text.startswith(loaded.sample("abc", seed=4, lines=1))
    type_in(monkeypatch, b"abc\n\nha ha")
    assert here(capfd, *words, "--prime-lines", "-").text == done.text
    assert len(here(capfd, *words, "--prime-lines", "primes", "--count", 2).text.splitlines()) == 6
    stopped = here(capfd, *words, "--prime-lines", "primes", "--stop", "a", "-0").text.split("\0")
    assert stopped == [
        *(t.text for t in loaded.generate(replace(config, lines=None, stop=("a",)), [["abc", "", "ha ha"]])),
        "",
    ]
    told = here(capfd, *words, "--prime-lines", "primes", "--unknown", "skip").err
    assert told == ""
    (in_folder / "primes").write_text("abc\naxb\n")
    told = here(capfd, *words, "--prime-lines", "primes", "--unknown", "skip").err
    assert told == "charlstm: unknown characters of prime 2, skipped: 'x' × 1\n"


def test_json_has_the_text_its_log_probability_and_the_settings(model: Path, capfd: Capture) -> None:
    words = ("sample", "-c", model, "--prime", "abc", "--precision", "fp32", "--lines", 2, "--top-p", 0.9, "--count", 3)
    done = here(capfd, *words, "--json", "--seed", 8)
    rows = [json.loads(line) for line in done.text.splitlines()]
    loaded = charlstm.load(model, precision="fp32")
    assert [row["text"] for row in rows] == list(loaded.samples(3, "abc", seed=8, lines=2, top_p=0.9))
    for number, row in enumerate(rows, 1):
        whole, prime = loaded.evaluate("abc" + row["text"]), loaded.evaluate("abc")
        nats = whole.nats_per_char * whole.transitions - prime.nats_per_char * prime.transitions
        assert row["log_probability"] == pytest.approx(-nats, abs=1e-4)
        assert row["bits_per_char"] == pytest.approx(nats / math.log(2) / len(row["text"]), abs=1e-4)
        assert (row["number"], row["chars"], row["ended"], row["prime"]) == (number, len(row["text"]), "lines", "abc")
        assert row["settings"]["top_p"] == 0.9
        assert row["settings"]["seed"] == 8
    fresh = json.loads(here(capfd, "sample", "-c", model, "--json").out)
    again = here(capfd, "sample", "-c", model, "--seed", fresh["settings"]["seed"]).text
    assert fresh["text"] == again  # the output has the random seed that was used
    assert (fresh["ended"], fresh["settings"]["length"]) == ("length", 1000)


@pytest.mark.parametrize("more", [[], ["--json"], ["--best-of", 3]], ids=str)
def test_the_state_saved_at_a_stop_string_is_that_of_the_last_printed_character(
    more: list[object], model: Path, in_folder: Path, capfd: Capture
) -> None:
    words = ("sample", "-c", model, "--seed", 9)
    first = here(capfd, *words, "--stop", "ab", "--stop", "gh", "--save-state", "kept", *more).text
    printed = json.loads(first)["text"] if "--json" in more else first.removesuffix("\n") if more else first
    kept = charlstm.load(model).load_state("kept")
    assert kept.position == len(printed)
    here(capfd, *words, "--prime", "\n" + printed, "-n", 1, "--save-state", "read")
    here(capfd, *words, "-n", 1, "--load-state", "kept", "--save-state", "kept")
    read, continued = (charlstm.load(model).load_state(name) for name in ("read", "kept"))
    assert np.array_equal(read.state, continued.state)


# next


def test_next_lists_the_most_probable_characters(model: Path, capfd: Capture) -> None:
    done = here(capfd, "next", "-c", model, "abc", "--top", 3)
    assert (done.status, done.err) == (0, "")
    likeliest = charlstm.load(model).next("abc", 3)
    rows = [re.fullmatch(r"'(.+?)' +([\d.]+)", line) for line in done.text.splitlines()]
    assert [row and row[1].replace("\\n", "\n") for row in rows] == [char for char, _ in likeliest]
    assert [row and float(row[2]) for row in rows] == pytest.approx([share for _, share in likeliest], abs=1e-4)


def test_next_as_json_has_all_probabilities_or_those_that_the_filters_keep(model: Path, capfd: Capture) -> None:
    whole = json.loads(here(capfd, "next", "-c", model, "ab", "--top", 0, "--json").out)
    shares = {row["char"]: row["probability"] for row in whole["next"]}
    assert len(shares) == 10
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert [row["bits"] for row in whole["next"]] == [pytest.approx(-math.log2(share)) for share in shares.values()]
    char = next(iter(shares))
    nats = (
        charlstm.load(model).evaluate("ab" + char).nats_per_char * 2 - charlstm.load(model).evaluate("ab").nats_per_char
    )
    assert shares[char] == pytest.approx(math.exp(-nats), abs=1e-5)
    left = json.loads(here(capfd, "next", "-c", model, "ab", "--ban", char, "--top-k", 2, "--json").out)["next"]
    second, third = list(shares)[1:3]
    assert [row["char"] for row in left] == [second, third]
    assert left[0]["probability"] == pytest.approx(shares[second] / (shares[second] + shares[third]))


def test_next_continues_from_a_saved_state_and_decodes_escape_sequences(
    model: Path, in_folder: Path, capfd: Capture
) -> None:
    words = ("next", "-c", model)
    here(
        capfd,
        "sample",
        "-c",
        model,
        "--prime",
        "ab",
        "-n",
        1,
        "--only",
        "c",
        "--save-state",
        "kept",
        "--precision",
        "fp32",
    )
    assert here(capfd, *words, "--load-state", "kept").text == here(capfd, *words, "abc").text
    assert here(capfd, *words, "-e", r"a\n").text == here(capfd, *words, "a\n").text != here(capfd, *words, "a").text
    assert here(capfd, *words).text == here(capfd, *words, "\n").text  # a text begins after a line break


# eval


def known_corpus(folder: Path, **changes: object) -> tuple[Path, str]:
    """Return a model whose checkpoint says that it was trained on the file `book`, and the text of that file."""
    text = "abcd efgh\n" * 40
    (folder / "book").write_text(text)
    corpus = {"names": ["book"], "chars": 400, "sha256": hashlib.sha256(text.encode()).hexdigest(), "valid_share": 0.1}
    return model_file(folder / "run" / "best.safetensors", facts={"corpus": {**corpus, **changes}}), text


def test_eval_of_a_text_is_the_score_of_the_library(model: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "text").write_text("abc def\n" * 50)
    done = here(capfd, "eval", "-c", model, tmp_path / "text", "--json")
    result = json.loads(done.out)
    score = charlstm.load(model).evaluate("abc def\n" * 50)
    assert (done.status, done.err) == (0, "")
    assert result["bits_per_char"] == score.bits_per_char
    assert (result["chars"], result["transitions"]) == (400, 399)
    assert result["perplexity"] == pytest.approx(2 ** result["bits_per_char"])
    assert result["nats_per_char"] == pytest.approx(result["bits_per_char"] * math.log(2))


def test_eval_joins_several_texts_and_stdin(
    model: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("abc")
    (tmp_path / "b").write_text("def")
    type_in(monkeypatch, b"gh")
    done = here(capfd, "eval", "-c", model, tmp_path / "a", tmp_path / "b", "-", "--json")
    assert json.loads(done.out)["bits_per_char"] == charlstm.load(model).evaluate("abcdefgh").bits_per_char


def test_eval_without_text_scores_the_validation_part_of_the_training(in_folder: Path, capfd: Capture) -> None:
    model, text = known_corpus(in_folder)
    done = here(capfd, "eval", "-c", "run", "--json")
    assert json.loads(done.out)["bits_per_char"] == charlstm.load(model).evaluate(text[360:]).bits_per_char


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": ["gone"]}, "gone: no such file; give the text"),
        ({"names": ["-"]}, "give the text"),
        ({"names": []}, "give the text"),
        ({"sha256": "0" * 64}, "give the text"),
    ],
)
def test_eval_reports_a_corpus_that_is_missing_or_has_changed(
    changes: dict[str, object], said: str, in_folder: Path, capfd: Capture
) -> None:
    known_corpus(in_folder, **changes)
    done = here(capfd, "eval", "-c", "run")
    assert (done.status, done.out, done.err.count("\n")) == (1, b"", 1)
    assert said in done.err


def test_eval_names_its_protocol_and_exact_is_one_stream(in_folder: Path, capfd: Capture) -> None:
    known_corpus(in_folder)
    (in_folder / "long").write_text("abc defgh\n" * 1000)
    streams, exact = (here(capfd, "eval", "-c", "run", "long", *more).text for more in ([], ["--exact"]))
    assert f"streams, each warmed up on {evaluation.WARM_UP} characters" in streams
    assert "exact: one stream" in exact


@pytest.mark.skipif(not native.isas(), reason="int8 needs the native engine")
def test_eval_in_int8_reports_its_cost(in_folder: Path, capfd: Capture) -> None:
    known_corpus(in_folder)
    result = json.loads(here(capfd, "eval", "-c", "run", "--precision", "int8", "--json").out)
    assert result["int8_cost_bits_per_char"] == charlstm.load("run").int8_cost()
    assert "cost of int8" in here(capfd, "eval", "-c", "run", "--precision", "int8").text


def test_eval_writes_aligned_plain_lines_to_a_pipe(in_folder: Path, capfd: Capture) -> None:
    known_corpus(in_folder)
    lines = here(capfd, "eval", "-c", "run").text.splitlines()
    assert lines[0].startswith("bits per character  ")
    assert float(lines[0].split()[-1]) == pytest.approx(charlstm.load("run").evaluate().bits_per_char, abs=5e-5)
    assert {line[18:20] for line in lines} == {"  "}


def test_without_a_checkpoint_the_newest_run_is_used(in_folder: Path, capfd: Capture) -> None:
    for name, symbols, age in (("old", "ab", 50), ("new", "yz", 0)):
        file = model_file(in_folder / "checkpoints" / name / "best.safetensors", symbols)
        os.utime(file, (time.time() - age,) * 2)
    assert set(here(capfd, "sample", "-n", 99).text) <= set("yz")


# info, verify, corpus


@pytest.mark.fault("R27")
def test_info_describes_a_checkpoint(in_folder: Path, capfd: Capture) -> None:
    facts = {
        "corpus": {"names": ["b\x1b[31mook"], "chars": 12_345},
        "best_valid_nats_per_char": math.log(2) * 1.5,
        "versions": {"torch": "2.13", "charlstm": "0.1.0"},
    }
    model_file(in_folder / "m", "a\nb\u202e", facts=facts)
    page = here(capfd, "info", "m").text
    for part in ("lstm 1 × 12", "4: \\x0aab\\u202e", "b\\x1b[31mook: 12,345 characters", "1.5000 bits", "torch 2.13"):
        assert part in page
    known = json.loads(here(capfd, "info", "m", "--json").out)
    assert known["facts"] == facts
    assert known["vocabulary"] == "\nab\u202e"
    assert known["parameters"] == checkpoint.load("m").model.parameters()


@pytest.mark.parametrize("facts", [{}, {"corpus": 3, "versions": [1], "best_valid_nats_per_char": "x"}, {"corpus": {}}])
def test_info_accepts_facts_of_any_type(facts: dict[str, object], in_folder: Path, capfd: Capture) -> None:
    model_file(in_folder / "m", facts=facts)
    done = here(capfd, "info", "m")
    assert (done.status, done.err) == (0, "")
    assert done.text.count("not known") >= 2


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_checkpoint_is_accepted_as_an_argument_or_as_an_option(command: str, in_folder: Path, capfd: Capture) -> None:
    shown = here(capfd, command, model_file(in_folder / "m")).out
    model_file(in_folder / "other", "ab")
    assert here(capfd, command, "-c", in_folder / "m").out == here(capfd, command, "--checkpoint", in_folder / "m").out
    assert here(capfd, command, "-c", in_folder / "m").out == shown != here(capfd, command, "-c", "other").out
    refused = here(capfd, command, "m", "-c", "other")
    assert (refused.status, refused.out) == (2, b"")
    assert refused.err == "charlstm: CKPT and --checkpoint are mutually exclusive: give one of them\n"


def test_verify_lists_each_valid_file_of_a_run(in_folder: Path, capfd: Capture) -> None:
    for name in ("best", "last"):
        model_file(in_folder / "run" / f"{name}.safetensors")
    assert here(capfd, "verify", "run").text == "run/best.safetensors: valid\nrun/last.safetensors: valid\n"
    assert ", valid" in here(capfd, "info", "run", "--verify").text
    with (in_folder / "run" / "last.safetensors").open("ab") as file:
        file.write(b"x")
    done = here(capfd, "verify", "run")
    assert (done.status, done.out) == (1, b"")
    assert "run/last.safetensors" in done.err


def test_corpus_writes_the_named_text_and_lists_the_names(capfd: Capture) -> None:
    assert here(capfd, "corpus", "python:docs").text == datasets.generate("python:docs")
    assert here(capfd, "corpus", "recall:9").text == datasets.generate("recall:9")
    refused = here(capfd, "corpus", "recall:0")
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, b"", 1)
    listed = here(capfd, "corpus").text
    assert [line.split()[0] for line in listed.splitlines()] == [*datasets.names()]

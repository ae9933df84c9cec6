"""On a computer without torch, with numpy and typer alone, all commands but `train` work.

The environment holds the files that a wheel would hold (without the compiled library, as on a device without a C
compiler), numpy, and typer with the two packages that it cannot be imported without.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import charlstm
from charlstm.cli.app import FUNCTIONS
from tests.helpers.commands import ROOT, in_terminal, model_file

INSTALLED = ("numpy", "numpy.libs", "typer", "annotated_doc", "shellingham")
ABSENT = ("torch", "rich", "tqdm", "requests", "pooch", "platformdirs", "filelock", "onnx", "safetensors")


def install_charlstm(folder: Path) -> None:
    """Copy the files of the packages that pyproject.toml lists, and their data."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for package in tools["packages"]:
        source = ROOT.joinpath(*package.split("."))
        target = folder.joinpath(*package.split("."))
        for pattern in ["*.py", *tools["package-data"].get(package, [])]:
            for file in source.glob(pattern):
                copy = target / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)


class Device(NamedTuple):
    python: Path
    model: Path
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}

    def python_output(self, code: str) -> str:
        """What Python writes to stdout and stderr when it runs some code."""
        command, merged = [str(self.python), "-c", code], subprocess.STDOUT
        done = subprocess.run(
            command, cwd=self.folder, env=self.variables, stdout=subprocess.PIPE, stderr=merged, text=True, check=False
        )
        return done.stdout

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-W", "error", "-m", "charlstm", *map(str, words)]
        return subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=120, check=False
        )

    def output(self, *words: object) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
        return done.stdout


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        pytest.skip("virtual environments of Windows have another layout")
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for name in INSTALLED:
        spec = importlib.util.find_spec(name.split(".")[0])
        assert spec is not None
        assert spec.origin is not None
        found = Path(spec.origin).parents[1] / name
        if found.exists():  # numpy.libs is not on every platform
            (packages / name).symlink_to(found)
    install_charlstm(packages)
    (folder / "text").write_text("abc abc gag had a bad cab\n" * 20)
    return Device(python, model_file(folder / "model"), folder)


def test_the_environment_has_neither_torch_nor_what_training_needs(device: Device) -> None:
    for name in ABSENT:
        assert "ModuleNotFoundError" in device.python_output(f"import {name}"), name
    assert str(device.folder) in device.python_output("import charlstm; print(charlstm.__file__)")


COMMANDS = {
    "sample": ["-n", "30", "--seed", "1", "-c", "{model}"],
    "next": ["a", "-c", "{model}"],
    "eval": ["text", "-c", "{model}"],
    "info": ["{model}"],
    "verify": ["{model}"],
    "corpus": [],
    "export": ["html", "-o", "play.html", "-c", "{model}"],
    "explain": ["text", "-o", "page.html", "--chars", "200", "-c", "{model}"],
}


def test_every_command_but_train_is_tested() -> None:
    assert {*COMMANDS, "train"} == set(FUNCTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works(command: str, device: Device) -> None:
    assert device.output(command, *(word.format(model=device.model) for word in COMMANDS[command])) != ""


def test_the_text_and_the_score_are_those_of_a_full_installation(device: Device) -> None:
    model = charlstm.load(device.model, precision="fp32")
    assert device.output("sample", "-n", 200, "--seed", 3, "-c", device.model) == model.sample(length=200, seed=3)
    score = json.loads(device.output("eval", "text", "--json", "-c", device.model))
    expected = model.evaluate((device.folder / "text").read_text())
    assert score["bits_per_char"] == pytest.approx(expected.bits_per_char, abs=1e-4)


def test_a_program_is_exported(device: Device) -> None:
    device.output("export", "c", "-o", "poet.c", "-c", device.model)
    assert "charlstm_next" in (device.folder / "poet.c").read_text()


def test_a_corpus_is_generated_without_a_network(device: Device) -> None:
    assert len(device.output("corpus", "python:docs")) > 100_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train text -o run", "pip install torch filelock rich tqdm"),
        ("eval text --dynamic -c {model}", "pip install torch filelock rich tqdm"),
        ("corpus tinyshakespeare", "pip install filelock pooch requests"),
        ("export onnx -o model.onnx -c {model}", "pip install 'charlstm[onnx]'"),
    ],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(words: str, expected: str, device: Device) -> None:
    done = device.run(*words.format(model=device.model).split())
    assert (done.returncode, done.stdout) == (1, "")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("downloading ")]
    assert len(errors) == 1
    assert errors[0].endswith(expected)


def test_a_terminal_needs_no_further_package(device: Device) -> None:
    command = [device.python, "-W", "error", "-m", "charlstm"]
    home, cache = device.variables["HOME"], device.variables["XDG_CACHE_HOME"]
    for words in (["eval", device.folder / "text", "-c", device.model], ["info", device.model], ["corpus"]):
        done = in_terminal([*command, *words], HOME=home, XDG_CACHE_HOME=cache, PYTHONPATH=None)
        assert (done.status, b"Traceback" in done.out) == (0, False), done.out
        assert done.out.count(b"\n") > 2

"""The examples that no other test runs: C on the host, the Arduino sketch and the loader for torch."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig
from charlstm.export.c import c_source
from charlstm.export.integer_model import IntegerModel
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.commands import environment, model_file
from tests.helpers.models import equations, random_weights
from tests.helpers.tools import EXAMPLES, needs, output


def test_every_example_is_listed_and_tested() -> None:
    found = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert found == {"arduino", "avr", "c", "cortex-m", "service", "torch", "web"}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in found if f"`{name}" not in readme] == []


def test_the_program_for_the_host_continues_a_text(tmp_path: Path) -> None:
    needs("make", "cc")
    shutil.copytree(EXAMPLES / "c", tmp_path / "c")
    model = model_file(tmp_path / "model")
    charlstm_command = tmp_path / "charlstm"
    charlstm_command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m charlstm "$@"\n')
    charlstm_command.chmod(0o755)
    path = f"{tmp_path}:{environment()['PATH']}"
    command = ["make", f"MODEL={model}", "CFLAGS=-std=c99 -Wall -Wextra -Werror -pedantic"]
    made = subprocess.run(command, cwd=tmp_path / "c", env=environment(PATH=path), capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
    texts = [output(tmp_path / "c" / "complete", prime).decode() for prime in ("", "abc?", "abc", "cab")]
    assert {len(text) for text in texts} == {201}
    assert texts[1] == texts[2], "an unknown character is ignored"
    assert texts[2] != texts[3], "the prime matters"


def test_the_arduino_sketch_prints_the_text_of_the_host(tmp_path: Path) -> None:
    needs("gcc", "avr-gcc", "avr-g++")
    vocabulary = Vocabulary.of("\n abcdefghijklmnopqrstuvwxyz")
    config = ModelConfig(len(vocabulary), 16, 1, 4)
    source = c_source(config, vocabulary, IntegerModel(config, random_weights(config, scale=4)))
    sketch = shutil.copytree(EXAMPLES / "arduino" / "poet", tmp_path / "poet")
    (sketch / "model.h").write_text(source)
    common = ("-mmcu=atmega328p", "-DF_CPU=16000000L", "-DLOOPS=300", "-Os", "-Wall", "-Wextra", "-Werror")
    constants = ("-DINPUT=0", "-DOUTPUT=1", "-DHIGH=1", "-DLOW=0")  # of Arduino.h
    output("avr-gcc", *common, *constants, "-std=gnu11", "-c", sketch / "poet.c", "-o", tmp_path / "poet.o")
    core = ("-std=gnu++11", "-include", Path(__file__).with_name("Arduino.h"), "-x", "c++")
    output("avr-g++", *common, *core, "-c", sketch / "poet.ino", "-o", tmp_path / "sketch.o")
    output("avr-gcc", "-mmcu=atmega328p", tmp_path / "poet.o", tmp_path / "sketch.o", "-o", tmp_path / "poet.elf")
    simulator = Path(__file__).with_name("simulate_avr.c")
    output("gcc", "-O2", simulator, "-o", tmp_path / "simulate", "-lsimavr", "-lelf")
    output(tmp_path / "simulate", tmp_path / "poet.elf", tmp_path / "text")
    output("gcc", "-std=c99", "-DCHARLSTM_MAIN", "-x", "c", sketch / "model.h", "-o", tmp_path / "host")
    expected = output(tmp_path / "host", 300, "0.8", "1")
    assert len(expected) == 300
    assert (tmp_path / "text").read_bytes() == expected


def torch_lstm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_lstm", EXAMPLES / "torch" / "torch_lstm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_computes_the_logits_of_the_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    vocabulary = Vocabulary.of("\n abcdefg")
    config = ModelConfig(len(vocabulary), 12, 2, 5)
    weights = random_weights(config, scale=2)
    checkpoint.save(tmp_path / "model", Checkpoint(config, vocabulary, weights, step=1))
    embedding, lstm, projection = torch_lstm().load(str(tmp_path / "model"))
    ids = np.random.default_rng(1).integers(0, len(vocabulary), (30, 3))
    with torch.no_grad():
        found = projection(lstm(embedding(torch.tensor(ids)))[0]).numpy()
    expected, _ = equations(config, weights, ids, np.zeros(config.state_shape(3)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.1

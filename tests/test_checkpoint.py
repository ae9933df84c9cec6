"""A save writes the whole checkpoint or leaves the old one, and any file is loaded or refused with one line.

The marks R1 … name the faults in docs/reliability.md. Crafted files are built here from the format's description,
not with the code under test.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import functools
import gc
import itertools
import json
import os
import pickle
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import charlstm
from charlstm import checkpoint, config, container
from charlstm.checkpoint import Checkpoint, load, save, verify
from charlstm.config import ModelConfig
from charlstm.errors import CheckpointError
from charlstm.runs import newest_run, resolve
from charlstm.text.vocabulary import Vocabulary
from tests.helpers import faults
from tests.helpers.checkpoint_files import (
    DAMAGED_ENTRIES,
    DAMAGED_HEADERS,
    MEGABYTE,
    crafted,
    digest,
    put_together,
    set_at,
    take_apart,
    tensor,
    time_limit,
    written,
)
from tests.helpers.faults import HANG_SECONDS, At, Disk, Forks, Recorder, example, fail, hooked, mutate_value

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    warm = Forks()
    yield warm
    warm.close()


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    """Compare two checkpoints bit for bit, including types and shapes."""
    for one, other in ((found.weights, expected.weights), (found.tensors, expected.tensors)):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype, name
            assert one[name].shape == other[name].shape, name
            assert one[name].tobytes() == other[name].tobytes(), name
    for name in ("model", "vocabulary", "step", "training", "facts"):
        assert getattr(found, name) == getattr(expected, name), name


# --- the format


def refused(path: Path, data: bytes, match: str | None = None) -> str:
    """Check that a file of these bytes is refused, also for training, which reads more; return the message."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path)
    with pytest.raises(CheckpointError):
        load(path, training=True)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 500
    assert verify(path) == [message]
    return message


@pytest.mark.parametrize("step", [0, 1, 2**53])
def test_a_saved_checkpoint_is_loaded_bit_for_bit(memory: Path, step: int) -> None:
    state = dataclasses.replace(example(), step=step)
    save(memory / "x", state)
    assert_equal(load(memory / "x", training=True), state)
    assert_equal(load(memory / "x"), dataclasses.replace(state, tensors={}))
    assert verify(memory / "x") == []


@pytest.mark.fault("R67")
def test_a_vocabulary_of_all_of_unicode_is_saved_and_loaded(memory: Path, forks: Forks) -> None:
    vocabulary = Vocabulary("".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000))
    model = ModelConfig(len(vocabulary), 1, 1, 1, "gru")
    weights = {name: np.ones(shape, dtype=np.float32) for name, shape in model.shapes().items()}
    save(memory / "x", Checkpoint(model, vocabulary, weights))
    assert_equal(load(memory / "x"), Checkpoint(model, vocabulary, weights))
    error, grown, _ = forks.call("measure_load", str(memory / "x"), True)
    assert error is None
    assert grown < 2 * (memory / "x").stat().st_size + 64 * MEGABYTE


def test_equal_checkpoints_give_equal_bytes_in_any_order_of_entries(memory: Path) -> None:
    state = example()
    turned = dataclasses.replace(
        state,
        weights=dict(reversed([*state.weights.items()])),
        tensors=dict(reversed([*state.tensors.items()])),
        facts=dict(reversed([*state.facts.items()])),
    )
    assert written(memory, state) == written(memory, turned)
    assert written(memory, state) != written(memory, example(1))


def test_arrays_in_another_memory_order_are_saved_by_value(memory: Path) -> None:
    state = example()
    turned = {name: np.asfortranarray(array) for name, array in state.weights.items()}
    assert written(memory, dataclasses.replace(state, weights=turned)) == written(memory, state)


def test_the_safetensors_library_reads_our_files(memory: Path) -> None:
    state = example()
    data = written(memory, state)
    found = safetensors.numpy.load(data)
    assert found.keys() == {*("model/" + name for name in state.weights), *state.tensors}
    for name, array in found.items():
        expected = state.weights[name[6:]] if name.startswith("model/") else state.tensors[name]
        assert array.dtype == expected.dtype
        assert array.tobytes() == np.asarray(expected).tobytes()
    with safetensors.safe_open(memory / "written.safetensors", "np") as file:
        assert file.metadata().keys() == {"charlstm", "sha256"}


def test_a_file_rewritten_by_the_safetensors_library_is_loaded(memory: Path) -> None:
    path, again = memory / "written.safetensors", memory / "again.safetensors"
    data = written(memory)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(safetensors.numpy.load(data), again, metadata)
    assert_equal(load(again, training=True), example())


def test_every_tensor_is_aligned_to_the_size_of_its_type(memory: Path) -> None:
    data = written(memory)
    header, _ = take_apart(data)
    length = struct.unpack("<Q", data[:8])[0]
    assert length % 8 == 0
    sizes = {"F64": 8, "I64": 8, "F32": 4, "U8": 1}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0, name


def test_the_digest_follows_the_documented_format(memory: Path) -> None:
    header, body = take_apart(written(memory))
    assert header["__metadata__"]["sha256"] == digest(header, body)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"facts": {"loss": float("nan")}},
        lambda state: {"training": {"best": float("inf")}},
        lambda state: {"weights": {}},
        lambda state: {"weights": {name: array[..., :1] for name, array in state.weights.items()}},
        lambda state: {"weights": {name: array.astype(np.float64) for name, array in state.weights.items()}},
        lambda state: {"tensors": {"other/x": np.ones(3)}},
        lambda state: {"tensors": {"optim/x": np.ones(0)}},
        lambda state: {"tensors": {"optim/x": np.ones(3, dtype=bool)}},
        lambda state: {"facts": {"text": "x" * (7 << 20)}},
        lambda state: {"facts": {"history": [0] * 300_000}},
    ],
)
def test_a_checkpoint_that_could_not_be_loaded_is_not_written(memory: Path, change: Callable[..., Any]) -> None:
    state = example()
    with pytest.raises(ValueError, match=r"."):
        save(memory / "x", dataclasses.replace(state, **change(state)))
    assert os.listdir(memory) == []


@pytest.mark.fault("R23")
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("v*.safetensors")), ids=lambda path: path.stem)
def test_a_golden_file_of_each_format_version_loads(path: Path) -> None:
    found = load(path, training=True)
    expected = json.loads(path.with_suffix(".json").read_text())
    assert config.to_json(found.model) == expected["model"]
    assert found.vocabulary.symbols == expected["symbols"]
    assert [found.step, found.training, found.facts] == [expected[name] for name in ("step", "training", "facts")]
    tensors = {**{"model/" + name: array for name, array in found.weights.items()}, **found.tensors}
    bits = {name: [str(array.dtype), list(array.shape), array.tobytes().hex()] for name, array in tensors.items()}
    assert bits == expected["tensors"]


def test_the_current_format_version_has_a_golden_file() -> None:
    versions = {path.stem.split("-")[0] for path in GOLDEN.glob("v*.safetensors")}
    assert versions == {f"v{n}" for n in range(1, checkpoint.FORMAT_VERSION + 1)}


def test_loading_imports_neither_torch_nor_safetensors() -> None:
    code = "import sys, charlstm.checkpoint; print([m for m in ('torch', 'safetensors', 'typer') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=Path(charlstm.__file__).parents[1]) == b"[]\n"


# --- A. writing


@pytest.mark.fault("R1")
@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("hidden", [6, 100])
def test_a_kill_at_any_time_leaves_a_checkpoint_of_the_last_acknowledged_step_or_later(
    memory: Path, forks: Forks, count: int, hidden: int
) -> None:
    path, rng = memory / "last.safetensors", random.Random(hidden)
    start = time.perf_counter()
    for step in range(5):
        save(path, example(step, hidden))
    save_seconds = (time.perf_counter() - start) / 5
    killed = between = 0
    while killed < count // 2 or not between:  # some kills must hit the middle of a save
        save(path, example(0, hidden))
        pid = forks.start("save_for_ever", str(path), hidden)
        said = forks.lines()
        acknowledged = next(said)  # the first save is complete
        time.sleep(rng.uniform(0, 2 * save_seconds))
        os.kill(pid, signal.SIGKILL)
        *more, end = said
        assert end == {"exit": -signal.SIGKILL}
        acknowledged = max([acknowledged, *more])
        found = load(path, training=True)
        assert found.step in (acknowledged, acknowledged + 1)
        assert_equal(dataclasses.replace(found, step=0), dataclasses.replace(example(found.step % 8, hidden), step=0))
        killed += 1
        between += any(name.endswith(".tmp") for name in os.listdir(memory))
    save(path, example())
    assert os.listdir(memory) == [path.name]


@pytest.mark.fault("R2")
@pytest.mark.parametrize("within_the_call", [False, True])
@pytest.mark.parametrize("exists", [True, False])
def test_a_kill_at_each_system_call_leaves_the_old_or_the_new_file(
    memory: Path, forks: Forks, exists: bool, within_the_call: bool
) -> None:
    path = memory / "last.safetensors"
    steps: list[int | None] = []
    for k in itertools.count(1):
        for name in os.listdir(memory):
            (memory / name).unlink()
        if exists:
            save(path, example(1))
        forks.start("save_and_die", str(path), 2, k, within_the_call)
        (end,) = forks.lines()
        if exists or path.exists():
            found = load(path, training=True)
            assert_equal(found, example(found.step))
            steps.append(found.step)
        else:
            steps.append(None)
        if end == {"exit": 0}:
            break
        assert end == {"exit": -signal.SIGKILL}
    old = 1 if exists else None
    changed = steps.index(2)
    assert steps == [old] * changed + [2] * (len(steps) - changed)
    assert changed > 20  # faults occurred at the write of each tensor
    assert len(steps) - changed == 3  # fsync and close of the directory, and the save without a fault


@pytest.mark.fault("R3")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_at_each_system_call_is_a_checkpoint_error_and_leaves_the_old_or_the_new_file(
    memory: Path, code: int
) -> None:
    path, failed_calls, renamed = memory / "last.safetensors", [], False
    save(path, example(1))
    old = path.read_bytes()
    for k in itertools.count(1):
        path.write_bytes(old)
        fault = At(k, fail(code))
        failed = False
        with hooked(fault):
            try:
                save(path, example(2))
            except CheckpointError as error:
                failed = os.strerror(code) in str(error)
        if not fault.name:
            break
        failed_calls.append(fault.name)
        assert failed != (fault.name == "listdir")  # the search for old temporaries may fail
        assert (path.read_bytes() == old) == (failed and not renamed), fault.name
        assert_equal(load(path, training=True), example(2 if renamed or not failed else 1))
        assert os.listdir(memory) == [path.name]
        renamed |= fault.name == "replace"
    assert len(failed_calls) > 20


@pytest.mark.fault("R5")
@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_after_a_loss_of_power_the_old_or_the_new_checkpoint_loads(memory: Path, count: int) -> None:
    path, rng, seen = memory / "last.safetensors", random.Random(2), set()
    save(path, example(1))
    old, recorder = path.read_bytes(), Recorder()
    with hooked(recorder):
        save(path, example(2))
    for n in range(count):
        made = n % (len(recorder.calls) + 1)
        disk = Disk(str(memory), {path.name: old})
        disk.replay(recorder.calls[:made])
        path.write_bytes(disk.lose_power(rng)[path.name])
        step = load(path, training=True).step
        assert step == 2 or made < len(recorder.calls)
        seen.add(step)
    assert seen == {1, 2}


@pytest.mark.fault("R7")
def test_a_full_disk_is_an_error_and_the_old_file_stays_valid(memory: Path, forks: Forks) -> None:
    path = memory / "last.safetensors"
    save(path, example(1))
    for limit in (0, 1, 1000, path.stat().st_size - 1):
        message = forks.call("save_with_limit", str(path), limit)
        assert "was not saved: File too large" in message
        assert_equal(load(path, training=True), example(1))
        assert os.listdir(memory) == [path.name]


@pytest.mark.fault("R8")
def test_an_unwritable_path_is_refused(memory: Path) -> None:
    (memory / "file").write_text("x")
    for place in (
        memory / "missing" / "x",
        memory / "file" / "x",
        memory,
        memory / "a\0b",
        memory / ("x" * 300),
    ):
        with pytest.raises(CheckpointError, match="was not saved"):
            save(place, example())
    assert os.listdir(memory) == ["file"]


@pytest.mark.fault("R8")
def test_a_folder_without_permission_is_refused(forks: Forks) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        assert forks.call("save_as_nobody", f"{folder}/x") == f"{folder}/x was not saved: Permission denied"


@pytest.mark.fault("R9")
def test_the_temporary_file_of_a_killed_process_is_not_a_model(memory: Path) -> None:
    run = memory / "run-1"
    run.mkdir()
    (run / ".best.safetensors.1.00000000.tmp").write_bytes(written(memory))
    with pytest.raises(CheckpointError, match="charlstm train"):
        newest_run(memory)


@pytest.mark.fault("R13")
def test_changes_of_the_weights_during_a_save_are_not_in_the_file(memory: Path) -> None:
    path, state = memory / "x", example()
    expected = {name: array.copy() for name, array in state.weights.items()}

    def meddle(name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        for array in state.weights.values():
            array += 1
        return call()

    with hooked(meddle):
        save(path, state)
    assert_equal(load(path, training=True), dataclasses.replace(state, weights=expected))


@pytest.mark.fault("R13")
def test_a_file_is_valid_although_a_thread_keeps_changing_the_weights(memory: Path) -> None:
    state, stop = example(hidden=60), threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            for array in state.weights.values():
                array += 1

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(20):
            save(memory / "x", state)
            load(memory / "x")
    finally:
        stop.set()
        thread.join()


@pytest.mark.fault("R14")
def test_a_thousand_saves_leak_no_descriptor_and_no_memory(memory: Path) -> None:
    state = example()
    for _ in range(50):
        save(memory / "x", state)
    held, resident = faults.descriptors(), faults.memory("VmRSS")
    for _ in range(1000):
        save(memory / "x", state)
    assert faults.descriptors() == held
    assert faults.memory("VmRSS") - resident < 5 * MEGABYTE
    tracemalloc.start()
    save(memory / "x", state)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    for _ in range(100):
        save(memory / "x", state)
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - held < 5000  # 50 bytes a save
    tracemalloc.stop()


# --- B. reading


class Payload:
    """Create a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.fault("R15")
def test_a_pickle_is_refused_and_never_executed(memory: Path) -> None:
    marker, path = memory / "marker", memory / "model.pt"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        refused(path, pickle.dumps(Payload(marker), protocol), "not a")
    with zipfile.ZipFile(path, "w") as archive:  # the form of a file of torch.save
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(marker), 2))
        archive.writestr("archive/version", "3\n")
    refused(path, path.read_bytes(), "not a")
    refused(path, crafted(written(memory), lambda h, d: d.update(training=["__import__('os').mkdir('marker')"])))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # negative control: unpickling runs the payload


@pytest.mark.fault("R16")
def test_no_code_of_the_package_unpickles_or_evaluates_text() -> None:
    modules = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
    functions = {"eval", "exec", "compile", "__import__"}
    attributes = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("np", "fromfile")}
    sources = sorted(Path(charlstm.__file__).parent.rglob("*.py"))
    assert len(sources) > 10
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert not modules & {alias.name.split(".")[0] for alias in node.names}, source
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in modules, source
                assert not any((node.module, alias.name) in attributes for alias in node.names), source
            elif isinstance(node, ast.Name):
                assert node.id not in functions, source
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in attributes, source


@pytest.mark.fault("R17")
def test_a_file_truncated_at_any_length_is_refused(memory: Path) -> None:
    data, path = written(memory), memory / "x"
    path.write_bytes(data)
    with path.open("r+b") as file:
        for length in reversed(range(len(data))):
            file.truncate(length)
            with pytest.raises(CheckpointError):
                load(path)
    assert len(data) > 5000


@pytest.mark.fault("R17")
def test_a_file_with_additional_bytes_is_refused(memory: Path) -> None:
    data = written(memory)
    for more in (b"\0", b" ", data):
        refused(memory / "x", data + more, "truncated or has extra bytes")


def flips(memory: Path, bits: Iterator[int]) -> int:
    """Flip each bit separately; return how many flips are refused. The others must not change the checkpoint."""
    data, path, detected = written(memory), memory / "x", 0
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for bit in bits:
            file.seek(bit // 8)
            file.write(bytes([data[bit // 8] ^ (1 << bit % 8)]))
            try:
                found = load(path, training=True)
            except CheckpointError:
                detected += 1
            else:
                assert_equal(found, example())
            file.seek(bit // 8)
            file.write(data[bit // 8 : bit // 8 + 1])
    assert path.read_bytes() == data
    return detected


@pytest.mark.fault("R18")
def test_any_flipped_bit_of_the_header_is_detected(memory: Path) -> None:
    bits = 8 * (8 + struct.unpack("<Q", written(memory)[:8])[0])
    detected = flips(memory, iter(range(bits)))
    assert detected > 0.98 * bits  # a few flips turn a space into other JSON whitespace


@pytest.mark.fault("R18")
@pytest.mark.parametrize("count", [1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_any_flipped_bit_of_the_tensors_is_detected(memory: Path, count: int) -> None:
    data, rng = written(memory), random.Random(3)
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    assert flips(memory, (rng.randrange(8 * begin, 8 * len(data)) for _ in range(count))) == count


@pytest.mark.fault("R18")
def test_without_the_digest_flipped_bits_are_not_detected(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = memory / "x", bytearray(written(memory))
    data[-1] ^= 1
    path.write_bytes(data)
    header, _ = take_apart(bytes(data))
    wrong = header["__metadata__"]["sha256"]
    monkeypatch.setattr(
        container, "take_metadata", lambda header: (header.pop("__metadata__")["charlstm"], AnyDigest(wrong))
    )
    load(path)  # no other check detects it
    monkeypatch.undo()
    refused(path, bytes(data), "sha256")


class AnyDigest(str):
    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


@pytest.mark.fault("R18")
def test_the_digest_covers_every_part_of_the_content(memory: Path) -> None:
    def without_a_new_digest(change: Callable[[dict[str, Any]], None]) -> bytes:
        header, body = take_apart(written(memory))
        change(header)
        return put_together(header, body)

    def in_document(old: str, new: str) -> Callable[[dict[str, Any]], None]:
        def change(header: dict[str, Any]) -> None:
            text = header["__metadata__"]["charlstm"]
            assert old in text
            header["__metadata__"]["charlstm"] = text.replace(old, new, 1)

        return change

    def rename(header: dict[str, Any]) -> None:
        header["optim/other"] = header.pop("optim/mean")

    def retype(header: dict[str, Any]) -> None:
        header["optim/mean"]["dtype"] = "U32"

    def reshape(header: dict[str, Any]) -> None:
        header["optim/mean"]["shape"].reverse()

    def swap(header: dict[str, Any]) -> None:
        one, other = "model/recurrence.bias_ih_l0", "model/recurrence.bias_hh_l0"
        header[one], header[other] = header[other], header[one]

    changes = [rename, retype, reshape, swap, in_document("abc", "abd"), in_document('"step":0', '"step":1')]
    for change in [*changes, in_document("1.25", "1.24"), in_document("naïve", "naive")]:
        refused(memory / "x", without_a_new_digest(change), "sha256")


MANY = 100 * MEGABYTE + 1


@pytest.mark.fault("R19")
@pytest.mark.parametrize("length", [0, 1, 7000, MANY, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_an_impossible_header_length_is_refused_immediately(memory: Path, forks: Forks, length: int) -> None:
    path = memory / "x"
    path.write_bytes(struct.pack("<Q", length) + written(memory)[8:])
    if length == MANY:
        os.truncate(path, 2 * MANY)
    for training in (False, True):
        error, grown, seconds = forks.call("measure_load", str(path), training)
        assert "header" in error
        assert grown < 4 * MEGABYTE
        assert seconds < HANG_SECONDS


@pytest.mark.fault("R20")
@pytest.mark.fault("R22")
@pytest.mark.parametrize("kind", DAMAGED_ENTRIES)
def test_damage_to_the_container_is_refused(memory: Path, kind: str) -> None:
    header, body = take_apart(written(memory))
    DAMAGED_ENTRIES[kind](header)
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):  # if there is a digest to correct
        if not kind.startswith("digest"):
            header["__metadata__"]["sha256"] = digest(header, body)
    refused(memory / "x", put_together(header, body))


@pytest.mark.fault("R20")
@pytest.mark.fault("R22")
@pytest.mark.fault("R31")
@pytest.mark.parametrize("kind", DAMAGED_HEADERS)
def test_a_malformed_header_is_refused_fast_and_in_little_memory(memory: Path, forks: Forks, kind: str) -> None:
    data = written(memory)
    length = struct.unpack("<Q", data[:8])[0]
    text = DAMAGED_HEADERS[kind](data[8 : 8 + length])
    assert text != data[8 : 8 + length]
    path = memory / "x"
    refused(path, put_together(text, data[8 + length :]))
    error, grown, seconds = forks.call("measure_load", str(path), True)
    assert error
    assert grown < 2 * path.stat().st_size + 64 * MEGABYTE
    assert seconds < HANG_SECONDS


IN_FACTS: dict[str, tuple[bytes, str]] = {  # in the facts, with a valid digest: text → (replacement, message)
    "NaN": (b"NaN", "not a number of JSON"),
    "Infinity": (b"-Infinity", "not a number of JSON"),
    "a number beyond double": (b"1e999", "double precision"),
    "a number of 101 digits": (b"1" * 101, "100 digits"),
    "a number of 5,000,000 digits": (b"1" * 5_000_000, "100 digits"),
    "lists 100,000 deep": (b"[" * 90_000 + b"]" * 90_000, "nested too deep"),
    "objects 90,000 deep": (b'{"a":' * 90_000 + b"1" + b"}" * 90_000, "nested too deep"),
    "two entries of one name": (b'{"a":1,"a":2}', "two entries of one name"),
    "5 MB of empty lists": (b"[" + b"[]," * 1_700_000 + b"1]", "more than 200000 values"),
    "5 MB of empty objects": (b"[" + b"{}," * 1_700_000 + b"1]", "more than 200000 values"),
}


@pytest.mark.fault("R22")
@pytest.mark.fault("R31")
@pytest.mark.parametrize("kind", IN_FACTS)
def test_malformed_metadata_with_a_valid_digest_is_refused_fast_and_in_little_memory(
    memory: Path, forks: Forks, kind: str
) -> None:
    header, body = take_apart(written(memory))
    value, says = IN_FACTS[kind]
    header["__metadata__"]["charlstm"] = header["__metadata__"]["charlstm"].replace("1.25", value.decode())
    header["__metadata__"]["sha256"] = digest(header, body)
    refused(memory / "x", put_together(header, body), says)
    error, grown, seconds = forks.call("measure_load", str(memory / "x"), True)
    assert says in error
    assert grown < 2 * (memory / "x").stat().st_size + 64 * MEGABYTE
    assert seconds < HANG_SECONDS


def set_model(key: str, value: Any, header: Any, document: Any) -> None:
    """Set an entry of the model's configuration."""
    set_at(document["model"], key, value)


def set_entry(key: str, value: Any, header: Any, document: Any) -> None:
    """Set an entry of the metadata."""
    set_at(document, key, value)


def drop_entry(key: str, header: Any, document: Any) -> None:
    """Remove an entry of the metadata."""
    del document[key]


def update_facts(change: dict[str, Any], header: Any, document: Any) -> None:
    """Change entries of the facts."""
    document["facts"].update(change)


NO_SIZE: tuple[Any, ...] = (10**9, 0, -1, 1.5, 64.0, "64", True, None, [], {}, [[[[1]]]], 2**63, 10**90, 1e300)
NO_CELL: tuple[Any, ...] = ("LSTM", "", None, 1, ["lstm"], {}, "\x1b[31m", "x" * 1000)


@pytest.mark.fault("R21")
@pytest.mark.parametrize("key", ["hidden", "layers", "embedding", "vocab_size", "cell", "heads"])
def test_an_impossible_model_is_refused_before_memory_of_its_size_is_allocated(
    memory: Path, forks: Forks, key: str
) -> None:
    path, data = memory / "x", written(memory)
    for value in NO_CELL if key == "cell" else NO_SIZE:
        refused(path, crafted(data, functools.partial(set_model, key, value)))
        error, grown, seconds = forks.call("measure_load", str(path), True)
        assert "model" in error
        assert grown < 4 * MEGABYTE
        assert seconds < HANG_SECONDS
    refused(path, crafted(data, lambda h, d: d["model"].pop(key, None) or d["model"].update(more=1)))


@pytest.mark.fault("R21")
@pytest.mark.parametrize("largest", [{"hidden": 65_536}, {"hidden": 65_536, "layers": 64}, {"embedding": 65_536}])
def test_the_largest_model_in_a_tiny_file_is_refused_before_memory_of_its_size_is_allocated(
    memory: Path, forks: Forks, largest: dict[str, int]
) -> None:
    path = memory / "x"
    refused(path, crafted(written(memory), lambda h, d: d["model"].update(largest)), "expected|missing")
    assert forks.call("measure_load", str(path), True)[1] < 4 * MEGABYTE


WRONG: dict[str, tuple[Any, ...]] = {  # entry of the metadata → invalid values
    "step": (-1, 1.5, "3", None, True, 2**54, []),
    "facts": (None, [], "x", 1),
    "training": ([], "x", 1, False),
    "model": (None, [], "x", 1),
    "vocabulary": (None, [], "x", 1, {}),
    "format_version": (None, "1", 1.0, True, []),
    "extra": (1,),
}


@pytest.mark.fault("R22")
def test_metadata_with_wrong_types_or_values_is_refused(memory: Path) -> None:
    data = written(memory)
    for key, values in WRONG.items():
        for value in values:
            refused(memory / "x", crafted(data, functools.partial(set_entry, key, value)))
        if key != "extra":
            refused(memory / "x", crafted(data, functools.partial(drop_entry, key)))


@pytest.mark.fault("R22")
@pytest.mark.parametrize("half", ["\ud800", "a\udc80b"])
def test_a_lone_surrogate_is_refused_and_a_surrogate_pair_is_a_character(memory: Path, half: str) -> None:
    data = written(memory)
    for change in ({"note": half}, {half: 1}):
        refused(memory / "x", crafted(data, functools.partial(update_facts, change)), "surrogates")
    (memory / "x").write_bytes(crafted(data, lambda h, d: d["facts"].update(note="😀")))
    assert b"\\ud83d" in (memory / "x").read_bytes()
    assert load(memory / "x").facts["note"] == "😀"


@pytest.mark.fault("R23")
@pytest.mark.parametrize(
    ("version", "says"), [(2, "pip install -U charlstm"), (10**9, "newer"), (0, "reads 1"), (-1, "reads 1")]
)
def test_another_format_version_is_refused_and_its_number_named(memory: Path, version: int, says: str) -> None:
    def only_the_version(header: dict[str, Any], document: dict[str, Any]) -> None:
        document.clear()
        document.update(format_version=version)

    data = crafted(written(memory), only_the_version)
    message = refused(memory / "x", data, says)
    assert f"format version {version}" in message


@pytest.mark.fault("R24")
def test_the_error_for_a_wrong_tensor_names_the_found_and_the_expected_shape(memory: Path) -> None:
    name = "model/recurrence.weight_hh_l1"

    def answer(change: Callable[[dict[str, Any]], Any]) -> str:
        return refused(memory / "x", crafted(written(memory), lambda header, document: change(header)))

    def rename(header: dict[str, Any]) -> None:
        header["optim/x"] = header.pop(name)

    def add_one(header: dict[str, Any]) -> None:
        header["model/extra"] = header.pop("rng/torch")

    assert f"the tensor {name} is missing" in answer(rename)
    assert "the tensor model/extra is not expected" in answer(add_one)
    transposed = answer(lambda header: header[name]["shape"].reverse())
    assert f"the tensor {name} has the shape [6, 24], expected [24, 6]" in transposed
    assert f"the tensor {name} has the type U32, expected F32" in answer(lambda h: h[name].update(dtype="U32"))


SYMBOLS: dict[str, Any] = {
    "duplicate": "\n abcc☃😀",
    "not in order": "\n abcé😀☃",
    "surrogate": "\n abcé☃\udc80",
    "too short": "\n abcé☃",
    "too long": "\n abcdé☃😀",
    "empty": "",
    "a list": list("\n abcé☃😀"),
    "entries of several characters": ["\n ", "abc", "é", "☃", "😀", "x", "y", "z"],
    "null": None,
    "a number": 8,
}


@pytest.mark.fault("R25")
@pytest.mark.parametrize("kind", SYMBOLS)
def test_an_impossible_vocabulary_is_refused(memory: Path, kind: str) -> None:
    def change(header: dict[str, Any], document: dict[str, Any]) -> None:
        document["vocabulary"]["symbols"] = SYMBOLS[kind]

    refused(memory / "x", crafted(written(memory), change), "vocabulary|surrogates")


@pytest.mark.fault("R26")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nan_or_infinite_weight_is_refused_and_its_tensor_named(memory: Path, value: float) -> None:
    state = example()
    for name, array in state.weights.items():
        before = array.flat[-1]
        array.flat[-1] = value
        save(memory / "x", state)
        with pytest.raises(CheckpointError, match=f"not finite numbers: {name}"):
            load(memory / "x")
        assert verify(memory / "x") == [f"{memory / 'x'} has numbers that are not finite: model/{name}"]
        assert_equal(load(memory / "x", training=True, allow_nonfinite=True), state)
        array.flat[-1] = before


@pytest.mark.fault("R27")
@pytest.mark.parametrize(
    "evil", ["\x1b]8;;http://x\x1b\\", "\x1b[2J", "\x9b31m", "\u202eevil", "a\r\nb", "\ud800", "\0"]
)
def test_terminal_control_characters_are_escaped_in_errors(memory: Path, evil: str) -> None:
    data, path = written(memory), memory / "x"
    changes: list[Callable[[dict[str, Any], dict[str, Any]], Any]] = [
        lambda h, d: set_at(h, evil, h.pop("optim/mean")),
        lambda h, d: set_at(tensor(h), "dtype", evil),
        lambda h, d: set_at(tensor(h), "shape", [evil]),
        lambda h, d: set_at(tensor(h), "data_offsets", [evil]),
        lambda h, d: set_at(d["model"], "cell", evil),
        lambda h, d: set_at(d["model"], evil, 1),
        lambda h, d: set_at(d["vocabulary"], "kind", evil),
        lambda h, d: set_at(d["vocabulary"], "kind", [evil]),
        lambda h, d: set_at(d, evil, 1),
        lambda h, d: set_at(d, "step", evil),
    ]
    for change in changes:
        header, body = take_apart(data)
        document = json.loads(header["__metadata__"]["charlstm"])
        change(header, document)
        header["__metadata__"]["charlstm"] = json.dumps(document)
        refused(path, put_together(json.dumps(header).encode(), body))
    if "\0" not in evil and evil.isascii():
        with pytest.raises(CheckpointError) as caught:
            load(memory / evil.replace("/", ""))
        assert str(caught.value).isprintable()


@pytest.mark.fault("R28")
def test_a_path_that_is_not_a_regular_file_is_refused_without_waiting(memory: Path, forks: Forks) -> None:
    pipe, local, sparse, empty = (memory / name for name in ("pipe", "socket", "sparse", "empty"))
    os.mkfifo(pipe)
    empty.touch()
    with socket.socket(socket.AF_UNIX) as listener, sparse.open("wb") as file:
        listener.bind(str(local))
        file.truncate(10 << 30)
    (memory / "loop").symlink_to("loop")
    devices = ["/dev/zero", "/dev/null", "/dev/full", "/dev/urandom", "/dev/tty"]
    present = [Path(device) for device in devices if os.path.exists(device)]
    for path in [memory, pipe, local, sparse, empty, memory / "loop", memory / "missing", *present]:
        with time_limit(2), pytest.raises(CheckpointError, match=str(path)):
            load(path)
    with time_limit(2), pytest.raises(CheckpointError):
        load("a\0b")
    with pytest.raises(CheckpointError, match="has 0 bytes"):
        load(empty)
    assert forks.call("measure_load", str(sparse), True)[1] < 4 * MEGABYTE


@pytest.mark.fault("R29")
@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_file_that_is_truncated_while_it_is_read_is_an_error(
    memory: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    path, data = memory / "x", written(memory)
    read_header = container.read_header
    for moment in ("opened", "header read"):
        path.write_bytes(data)

        def cut(file: Any, size: int, moment: str = moment) -> Any:
            if moment == "opened":
                os.truncate(path, kept % len(data))
            header = read_header(file, size)
            os.truncate(path, kept % len(data))
            return header

        monkeypatch.setattr(container, "read_header", cut)
        with pytest.raises(CheckpointError, match="became shorter"):
            load(path, training=True)


@pytest.mark.fault("R29")
def test_a_file_that_is_truncated_and_rewritten_all_the_time_is_valid_or_an_error(memory: Path) -> None:
    path, data, stop = memory / "x", written(memory, example(hidden=60)), threading.Event()

    def meddle() -> None:
        rng = random.Random(4)
        while not stop.is_set():
            path.write_bytes(data)
            os.truncate(path, rng.randrange(len(data)))

    path.write_bytes(data)
    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(200):
            with contextlib.suppress(CheckpointError):
                assert_equal(load(path, training=True), example(hidden=60))
    finally:
        stop.set()
        thread.join()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Mutate bytes, or values of the header with a corrected digest, so that later checks are reached."""
    if rng.random() < 0.5:
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
            place, size = rng.randrange(len(mutant) + 1), rng.choice((1, 1, 2, 8, 100))
            if rng.random() < 0.5:
                place = min(place, rng.randrange(2500))  # more often in the header than in the tensors
            mutant[place : place + rng.choice((0, size))] = rng.choice(
                (
                    b"",
                    rng.randbytes(size),
                    mutant[: rng.randrange(len(mutant) + 1)][-size:],
                    b"\xff" * size,
                    b"\0" * size,
                )
            )
            if not mutant:
                break
        return bytes(mutant)
    header, body = take_apart(data)
    document = json.loads(header["__metadata__"]["charlstm"])
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            document = mutate_value(document, rng)
        else:
            header = mutate_value(header, rng)
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        header["__metadata__"]["charlstm"] = json.dumps(document)
        header["__metadata__"]["sha256"] = digest(header, body)
    return put_together(json.dumps(header).encode(), body)


@pytest.mark.fault("R30")
@pytest.mark.parametrize("count", [2000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_random_mutation_is_loaded_or_refused(memory: Path, count: int) -> None:
    original, path, rng, loaded = written(memory), memory / "x", random.Random(5), 0
    messages = set()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            mutant = mutate(original, rng)
            file.seek(0)
            file.truncate()
            file.write(mutant)
            try:
                found = load(path, training=True)
            except CheckpointError as error:
                message = str(error)
                assert message.isprintable()
                messages.add("".join(filter(str.isalpha, message))[:40])
            else:
                loaded += 1
                assert {name: array.shape for name, array in found.weights.items()} == found.model.shapes()
                assert len(found.vocabulary) == found.model.vocab_size
    assert 0 < loaded < count / 5  # a mutant of the facts may be a valid checkpoint
    assert len(messages) > 20  # the mutants reach many different checks


@pytest.mark.fault("R31")
@pytest.mark.parametrize("training", [False, True])
def test_loading_needs_little_more_memory_than_the_file(memory: Path, forks: Forks, training: bool) -> None:
    path = memory / "large"
    state = example(hidden=600)
    tensors = {f"optim/mean{n}": np.ones((600, 6000), dtype=np.float32) for n in range(2)}
    save(path, dataclasses.replace(state, tensors=tensors))
    size = path.stat().st_size
    assert size > 40 * MEGABYTE
    error, grown, _ = forks.call("measure_load", str(path), training)
    assert error is None
    assert grown < (size if training else size / 2) * 1.2 + 2 * MEGABYTE


# --- finding a checkpoint


def run_of(root: Path, name: str, age: float, *files: str) -> Path:
    folder = root / name
    folder.mkdir()
    for file in files:
        (folder / file).touch()
        os.utime(folder / file, (2e9 - age, 2e9 - age))
    return folder


def test_the_newest_run_is_the_one_saved_last(memory: Path) -> None:
    run_of(memory, "old", 9, "best.safetensors", "last.safetensors")
    new = run_of(memory, "a-new", 5, "best.safetensors", "last.safetensors")
    run_of(memory, "empty", 0)
    run_of(memory, "others", 0, "metrics.jsonl", ".best.safetensors.1.00.tmp", "best.safetensors.bak")
    (memory / "README.md").touch()
    assert newest_run(memory) == new / "best.safetensors"
    assert newest_run(memory, prefer="last") == new / "last.safetensors"
    only_last = run_of(memory, "newer", 1, "last.safetensors")
    assert newest_run(memory) == only_last / "last.safetensors"
    only_best = run_of(memory, "newest", 0.5, "best.safetensors")
    assert newest_run(memory, prefer="last") == only_best / "best.safetensors"


def test_a_run_is_found_by_its_directory_by_its_file_or_by_default(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(memory)
    with pytest.raises(CheckpointError, match="charlstm train"):
        resolve(None)
    root = memory / "checkpoints"
    root.mkdir()
    with pytest.raises(CheckpointError, match="charlstm train"):
        resolve(None)
    run = run_of(root, "poems-1", 0, "best.safetensors", "last.safetensors")
    assert resolve(None).resolve() == run / "best.safetensors"
    assert resolve(None, prefer="last").resolve() == run / "last.safetensors"
    assert resolve(run) == run / "best.safetensors"
    assert resolve(run, prefer="last") == run / "last.safetensors"
    assert resolve(root) == run / "best.safetensors"
    assert resolve(str(run / "last.safetensors")) == run / "last.safetensors"
    with pytest.raises(CheckpointError, match="charlstm train"):
        resolve(memory / "missing")
    with pytest.raises(CheckpointError, match="charlstm train"):
        resolve(run_of(memory, "empty", 0))


def test_all_tensors_with_nan_or_infinite_values_are_reported(memory: Path) -> None:
    state = example()
    state.weights["projection.bias"][0] = np.nan
    state.tensors["optim/mean"][0] = np.inf
    save(memory / "x", state)
    assert [line.split()[-1] for line in verify(memory / "x")] == ["model/projection.bias", "optim/mean"]

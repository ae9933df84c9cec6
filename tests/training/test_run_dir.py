"""The directory of a run: its name, its lock and its files."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from charlstm import atomicfile, checkpoint
from charlstm.config import TrainingOptions
from charlstm.errors import CheckpointError, Field, RunBusy
from charlstm.training import run_dir
from charlstm.training.events import Warned
from charlstm.training.run_dir import METRICS, SETTINGS, Metrics, RunDir
from tests.helpers.faults import example


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("shake speare.txt", "shake-speare"),
        ("../a/..", "run"),
        ("-", "stdin"),
        ("war.txt.gz", "war"),
        ("дом.txt", "дом"),
    ],
)
def test_a_new_run_directory_is_named_after_its_text(name: str, folder: str, tmp_path: Path) -> None:
    assert run_dir.fresh((name,), tmp_path) == tmp_path / folder
    (tmp_path / folder).mkdir()
    assert run_dir.fresh((name,), tmp_path) == tmp_path / f"{folder}-2"


def test_a_lock_creates_the_directory_and_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "runs" / "a"), RunDir(tmp_path / "runs" / "a")
    assert not first.path.exists()
    first.lock()
    assert (first.is_locked, second.is_locked) == (True, False)
    with pytest.raises(RunBusy, match=f"locked by process {os.getpid()}"):
        second.lock()
    first.unlock()
    first.unlock()
    second.lock()
    assert (first.is_locked, second.is_locked) == (False, True)
    second.unlock()


@pytest.mark.parametrize("file", ["best.safetensors", "last.safetensors", "step-000120.safetensors"])
def test_a_directory_with_a_model_is_not_free(file: str, tmp_path: Path) -> None:
    directory = RunDir(tmp_path)
    (tmp_path / "notes.txt").touch()
    directory.check_free()
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=rf"already holds a model \({file}\)") as raised:
        directory.check_free()
    assert raised.value.fields == (Field("resume"), Field("run"))


def test_the_files_of_steps_are_listed_in_order_and_removed_one_by_one(tmp_path: Path) -> None:
    directory = RunDir(tmp_path)
    for step in (20, 3, 100):
        directory.save(directory.kept_file(step), example(step))
    directory.save(directory.best, example(20))
    assert [file.name for file in directory.kept_files()] == [f"step-{step:06d}.safetensors" for step in (3, 20, 100)]
    assert directory.model_files() == [directory.best, *directory.kept_files()]
    directory.forget(20)
    directory.forget(21)
    assert directory.kept_files() == [directory.kept_file(3), directory.kept_file(100)]


def test_a_symbolic_link_in_place_of_the_weights_of_a_step_is_not_removed(tmp_path: Path) -> None:
    directory = RunDir(tmp_path / "run")
    directory.path.mkdir()
    (tmp_path / "precious").write_text("x")
    directory.kept_file(4).symlink_to(tmp_path / "precious")
    directory.forget(4)
    assert directory.kept_file(4).is_symlink()
    assert (tmp_path / "precious").exists()


def test_a_save_creates_a_removed_directory_again_or_names_the_reason(tmp_path: Path) -> None:
    directory = RunDir(tmp_path / "removed" / "run")
    directory.save(directory.last, example(7))
    assert checkpoint.load(directory.last).step == 7
    (tmp_path / "file").touch()
    blocked = RunDir(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match=r"cannot write into .*Not a directory"):
        blocked.save(blocked.last, example())


def test_settings_that_cannot_be_written_are_a_warning(tmp_path: Path) -> None:
    directory = RunDir(tmp_path / "run")
    warning = directory.write_settings(TrainingOptions(hidden=7))
    assert warning is not None
    assert warning.endswith("No such file or directory; training continues")
    directory.path.mkdir()
    assert directory.write_settings(TrainingOptions(hidden=7), valid="dev.txt", encoding=None) is None
    written = (directory.path / SETTINGS).read_text(encoding="utf-8")
    assert "hidden = 7\n" in written
    assert 'valid = "dev.txt"\n' in written
    assert "encoding" not in written


def test_the_log_warns_once_if_it_cannot_be_written(tmp_path: Path) -> None:
    with Metrics(RunDir(tmp_path / "removed")) as metrics:
        warning = metrics.write(Warned(1, "x"))
        assert warning is not None
        assert warning.endswith("No such file or directory; training continues")
        assert metrics.write(Warned(2, "x")) is None


def test_events_of_later_steps_are_removed_from_the_log_and_all_other_lines_stay_as_they_are(tmp_path: Path) -> None:
    """Lines that are not events stay too: the log may hold what another version wrote."""
    kept = [
        b'{"event": "started"}\n',
        b'{"event": "curve", "step": 7}\n',
        b"[" * 100_000 + b"\n",
        b"\xff 8\n",
        b'{"step": "9"}\n',
        b"12\n",
        b'{"event": "trunca',
    ]
    log = tmp_path / METRICS
    log.write_bytes(b"".join([*kept[:3], b'{"event": "curve", "step": 8}\n', *kept[3:]]))
    with Metrics(RunDir(tmp_path)) as metrics:
        assert metrics.forget_after(8) is None
        assert b'"step": 8' in log.read_bytes()
        assert metrics.forget_after(7) is None
    assert log.read_bytes() == b"".join(kept)


def test_a_pipe_in_place_of_the_log_is_not_read_and_a_log_that_cannot_be_read_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Metrics(RunDir(tmp_path)) as metrics:
        assert metrics.forget_after(0) is None  # there is no log yet
        os.mkfifo(tmp_path / METRICS)
        assert metrics.forget_after(0) is None
        (tmp_path / METRICS).unlink()
        (tmp_path / METRICS).write_text('{"step": 3}\n')

        def full(path: Path, chunks: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomicfile, "replace", full)
        warning = metrics.forget_after(0)
    assert warning is not None
    assert warning.endswith("No space left on device; training continues")


def test_the_log_is_appended_to_on_a_new_line(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"event": "trunca')
    with Metrics(RunDir(tmp_path)) as metrics:
        assert metrics.write(Warned(1, "naïve")) is None
    first, second = (tmp_path / METRICS).read_text(encoding="utf-8").splitlines()
    assert first == '{"event": "trunca'
    assert json.loads(second) == {"event": "warned", "step": 1, "message": "naïve"}

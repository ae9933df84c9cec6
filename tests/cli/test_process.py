"""The command line with other programs: pipes, closed descriptors, full disks, signals, locales and terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import charlstm
from charlstm import checkpoint, runs
from charlstm.config import SamplingConfig
from charlstm.inference import native
from tests.helpers.commands import COMMAND, Done, environment, in_terminal, model_file, spawn

needs_posix = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no POSIX signals, /dev and pseudoterminals"
)
pytestmark = needs_posix

WILD = "\x1b[31m]8;\x07\x08\r\x9b\u202e\u2066\n\t:smile/\x00é😀"  # control sequences that a model could generate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("wild") / "model.safetensors", WILD)


def shell(line: str, **changes: str | None) -> Done:
    """Run a line of bash, in which $charlstm is the command; `out` ends with the exit statuses of its pipeline."""
    done = subprocess.run(
        ["bash", "-c", line + '; echo -n "${PIPESTATUS[@]}"'],
        env=environment(charlstm=" ".join(COMMAND), **changes),
        capture_output=True,
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def cpu_seconds_of_children() -> float:
    """Return the CPU time of all ended child processes, which does not depend on the load of the machine."""
    resource = pytest.importorskip("resource")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(used.ru_utime + used.ru_stime)


# Pipes


@pytest.mark.fault("R48")
@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_closed_pipe_ends_sampling_at_once_with_status_141_and_no_message(model: Path, times: int) -> None:
    seconds = []
    for _ in range(times):
        began = cpu_seconds_of_children()
        done = shell(f"$charlstm sample -c {model} -n 0 | head -c 100")
        assert (done.out[100:], done.err) == (b"141 0", "")
        seconds.append(cpu_seconds_of_children() - began)
    assert min(seconds) < 5  # usually less than one second, nearly all for the start of Python


@pytest.mark.fault("R48")
@pytest.mark.parametrize("command", ["sample -n 100000 -c {model}", "corpus python:docs", "train --help"])
def test_a_pipe_without_a_reader_is_a_closed_pipe_for_every_command(command: str, model: Path) -> None:
    done = shell(f"$charlstm {command.format(model=model)} | true")
    assert (done.out, done.err) in [(b"141 0", ""), (b"0 0", "")]  # a short text may be in the pipe before it is closed
    assert done.out == b"141 0" or "--help" in command


@pytest.mark.fault("R52")
def test_a_slow_reader_gets_every_byte(model: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "sample", "-c", model, "-n", "100", "--seed", "3"], stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    got = b""
    while byte := os.read(process.stdout.fileno(), 1):
        got += byte
        time.sleep(0.005)
    process.stdout.close()
    assert process.wait() == 0
    assert got.decode() == charlstm.load(model).sample(length=100, seed=3)


@pytest.mark.fault("R52")
@pytest.mark.parametrize("flag", ["--unbuffered", "--line-buffered", None])
def test_a_reader_receives_the_text_while_it_is_generated(model: Path, flag: str | None) -> None:
    process = subprocess.Popen(
        [*COMMAND, "sample", "-c", model, "-n", "0", *([flag] if flag else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first = os.read(process.stdout.fileno(), 1 << 20)
    process.stdout.close()
    assert first
    if flag == "--line-buffered":
        assert b"\n" in first
    assert process.wait(60) == 141
    with process.stderr as stderr:
        assert stderr.read() == b""


def test_each_prime_is_continued_before_the_next_is_written(model: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "sample", "-c", model, "--prime-lines", "-", "--seed", "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    got = []
    for prime in (b"abc\n", b"\n", b"ha\n"):
        process.stdin.write(prime)
        process.stdin.flush()
        got.append(process.stdout.readline())  # blocks if the command waits for the next prime
    process.stdin.close()
    assert process.stdout.read() == b""
    process.stdout.close()
    assert process.wait(60) == 0
    config = SamplingConfig(seed=3, lines=1)
    generated = charlstm.load(model).generate(config, [["abc", "", "ha"]], scored=False)
    assert b"".join(got).decode() == "".join(text.text for text in generated)


@pytest.mark.fault("R49")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
@pytest.mark.parametrize("command", ["sample -c {model}", "info {model}", "corpus python:docs"])
def test_a_full_disk_prints_one_line_and_exits_with_status_1(command: str, model: Path) -> None:
    done = shell(f"$charlstm {command.format(model=model)} > /dev/full")
    assert (done.out, done.err) == (b"1", "charlstm: cannot write to stdout: No space left on device\n")


@pytest.mark.fault("R50")
@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">&-", b"1", "charlstm: cannot write to stdout: Bad file descriptor\n"),
        ("<&-", b"0", ""),
        ("2>&-", b"0", ""),
        ("<&- >&- 2>&-", b"1", ""),
    ],
)
def test_closed_standard_descriptors_have_a_defined_result(
    redirection: str, status: bytes, said: str, model: Path
) -> None:
    done = shell(f"$charlstm sample -c {model} -n 30 {redirection}")
    assert (done.out[-1:], done.err) == (status, said)
    assert len(done.out) == (31 if status == b"0" else 1)


@pytest.mark.fault("R50")
def test_no_file_gets_the_number_of_a_closed_standard_descriptor() -> None:
    code = "import sys; from charlstm.cli.main import run; run(['--version']); sys.exit(open('/dev/null').fileno())"
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-').out == b"3"


@pytest.mark.fault("R50")
def test_reading_a_closed_stdin_prints_one_line(model: Path) -> None:
    done = shell(f"$charlstm eval -c {model} - <&-")
    assert done.out == b"1"
    assert done.err.startswith("charlstm: ")
    assert done.err.count("\n") == 1


@pytest.mark.fault("R76")
def test_a_long_text_needs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    model = model_file(tmp_path / "model.safetensors", "😀😁😂😃")  # four bytes each, in memory and in the file
    meter = (  # a small parent: the memory of a process before it executes another program counts for its peak
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
    )
    peaks = []
    for length in (1_000, 1_000_000 if native.library() else 200_000):  # numpy needs 0.15 ms per character
        command = [sys.executable, "-c", meter, *COMMAND, "sample", "-c", str(model), "-n", str(length)]
        done = subprocess.run(command, capture_output=True, env=environment(), check=True)
        assert len(done.stdout) == 4 * length
        peaks.append(int(done.stderr))
    assert peaks[1] - peaks[0] < (2048 if native.library() else 512), peaks  # kilobytes


# Signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_sampling_without_a_message(model: Path, number: signal.Signals, status: int) -> None:
    process = subprocess.Popen(
        [*COMMAND, "sample", "-c", model, "-n", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 10)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, b"")


@pytest.mark.fault("R46")
def test_ctrl_c_ends_an_evaluation_without_a_message(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcdefgh" * 1_000_000)
    process = subprocess.Popen(
        [*COMMAND, "eval", "-c", model, tmp_path / "text", "--exact"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130


# Locales and environments


@pytest.mark.fault("R78")
@pytest.mark.parametrize(
    "changes", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_text_is_utf_8_in_every_locale(changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_file(tmp_path / "m", "αβγδ\n ")
    done = spawn(["sample", "-c", model, "-n", 200, "--seed", 1, "--prime-file", "-"], stdin="αβ".encode(), **changes)
    assert (done.status, done.err) == (0, "")
    assert done.text == charlstm.load(model).sample("αβ", 200, seed=1)


@pytest.mark.fault("R92")
@pytest.mark.parametrize("changes", [{"HOME": None}, {"TERM": "dumb"}, {"TERM": None}, {"COLUMNS": "20"}])
def test_missing_environment_variables_do_not_change_the_output(changes: dict[str, Any], model: Path) -> None:
    done = spawn(["sample", "-c", model, "-n", 20, "--seed", 1], **changes)
    assert (done.status, len(done.text), done.err) == (0, 20, "")


@pytest.mark.fault("R92")
def test_sample_works_in_a_directory_that_was_deleted_or_is_not_writable(model: Path, tmp_path: Path) -> None:
    gone, sealed = tmp_path / "gone", tmp_path / "sealed"
    for folder in (gone, sealed):
        folder.mkdir()
    sealed.chmod(0o500)
    script = tmp_path / "charlstm"  # as installed by pip; `python -m` would look for modules in the current directory
    script.write_text("from charlstm.__main__ import main\nmain()\n")
    command = f"{sys.executable} {script} sample"
    for line in (f"cd {gone} && rmdir {gone}", f"cd {sealed}"):
        done = shell(f"{line} && {command} -c {model} -n 20 && {command}")
        assert (len(done.out), done.out[-1:]) == (21, b"1")
        assert done.err.startswith("charlstm: no trained model")
        assert done.err.count("\n") == 1
    sealed.chmod(0o700)


@pytest.mark.fault("R92")
def test_a_command_with_torch_reports_that_the_current_directory_was_deleted(model: Path, tmp_path: Path) -> None:
    text, gone, script = tmp_path / "text", tmp_path / "gone", tmp_path / "charlstm"
    text.write_text("ab" * 50)
    script.write_text("from charlstm.__main__ import main\nmain()\n")
    for words in (f"train {text} -o {tmp_path / 'run'} --steps 1", f"eval -c {model} --dynamic {text} --unknown skip"):
        gone.mkdir()
        done = shell(f"cd {gone} && rmdir {gone} && {sys.executable} {script} {words}")
        assert (done.out, done.err.count("\n")) == (b"1", 1), done.err
        assert done.err.startswith("charlstm: the current directory was deleted")


WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocker())
from charlstm.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "command", ["train {text} -o {run} --steps 1", "eval -c {model} --dynamic {text} --unknown skip"]
)
def test_without_torch_training_prints_one_line_that_says_how_to_install_it(
    command: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("ab" * 50)
    script = tmp_path / "without_torch.py"
    script.write_text(WITHOUT_TORCH)
    words = command.format(text=tmp_path / "text", run=tmp_path / "run", model=model).split()
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "charlstm: this command requires torch, which cannot be imported (No module named 'torch'): "
        "install with pip install torch\n"
    )
    assert not (tmp_path / "run").exists()


def test_without_torch_a_text_is_generated(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "without_torch.py"
    script.write_text(WITHOUT_TORCH)
    words = [sys.executable, str(script), "sample", "-c", str(model), "-n", "5"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 5, "")


# Terminals


@pytest.mark.fault("R84")
def test_control_characters_are_escaped_on_a_terminal(wild: Path) -> None:
    shown = in_terminal([*COMMAND, "sample", "-c", wild, "-n", "2000", "--seed", "1", "--temp", "2"]).out.decode()
    text = charlstm.load(wild).sample(length=2000, seed=1, temperature=2.0)
    assert set(text) == set(WILD)  # the text has all of them
    assert set(shown) & set("\x1b\x07\x08\x9b\u202e\u2066\x00") == set()
    assert shown.replace("\r\n", "").count("\r") == 0  # the terminal itself turns \n into \r\n
    for spelling in ("\\x1b", "\\x07", "\\x08", "\\x0d", "\\x9b", "\\u202e", "\\u2066", "\\x00", "é", "😀", ":"):
        assert spelling in shown


@pytest.mark.fault("R84")
def test_raw_writes_control_characters_to_a_terminal(wild: Path) -> None:
    command = [*COMMAND, "sample", "-c", wild, "-n", "2000", "--seed", "1", "--temp", "2", "--raw"]
    assert b"\x1b" in in_terminal(command).out


@pytest.mark.fault("R85")
def test_a_pipe_receives_the_exact_bytes(wild: Path) -> None:
    done = spawn(["sample", "-c", wild, "-n", 2000, "--seed", 1, "--temp", 2])
    assert done.text == charlstm.load(wild).sample(length=2000, seed=1, temperature=2.0)


@pytest.mark.fault("R86")
def test_markup_of_rich_is_plain_text(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m", "[bold]/")
    shown = in_terminal([*COMMAND, "sample", "-c", model, "-n", "500", "--seed", "1"]).out.decode()
    assert shown.replace("\r\n", "\n") == charlstm.load(model).sample(length=500, seed=1) + "\n"


@pytest.mark.fault("R84")
@pytest.mark.parametrize("columns", [80, 20])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_info_on_a_terminal_is_a_table_that_fits_it(columns: int, encoding: str, wild: Path) -> None:
    done = in_terminal([*COMMAND, "info", wild], columns=columns, PYTHONIOENCODING=encoding)
    shown = done.out.decode().replace("\x1b[36m", "").replace("\x1b[0m", "")
    assert done.status == 0
    assert shown.startswith("╭" if encoding == "utf-8" else "+")
    assert max(map(len, shown.replace("\r\n", "\n").splitlines())) <= columns
    assert set(shown) & set("\x1b\x07\x08\x9b\u202e\u2066\x00") == set()


@pytest.mark.fault("R89")
@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_is_printed_if_colours_are_disabled(changes: dict[str, str], model: Path) -> None:
    environment_line = [f"{name}={value}" for name, value in changes.items()]
    for words in (["info", model], ["--help"]):
        assert b"\x1b" not in in_terminal(["env", *environment_line, *COMMAND, *words]).out


SAMPLE = "To be\x1b[2J, [bold]or[/bold]\n\nnot" + "日本" * 60
BAR = """
import os, sys
from pathlib import Path
from charlstm.cli.training_display import watcher
from charlstm.training.events import Progress, Started, Stopped, Validated, Warned
run = Path("checkpoints/book")
with watcher(["book.txt"], False, False) as show:
    facts = ("lstm", 1, 64, 32, 0.0, 9999, 1000, 900, 100, 100, 50, 32, 32, 0.01, "cpu", 2, "torch", "9 steps", 1)
    show(Started(run, *facts))
    for step in range(1, 10):
        show(Progress(step, step / 9, 2.5, 71_234.0, step * 1024, step * 1.0, 9.0 - step, 0.01))
        if step % 3 == 0:
            show(Validated(step, step * 1.0, 2.25, 1.56, 2.5, True, os.environ["SAMPLE"]))
    show(Warned(9, "look \\x1b]0;out"))
    show(Stopped(9, 9.0, os.environ["REASON"], 2.25, run / "best", run / "last", 2))
"""


@pytest.mark.fault("R86")
@pytest.mark.parametrize("columns", [80, 20])
def test_training_on_a_terminal_shows_a_table_a_bar_and_samples(columns: int) -> None:
    done = in_terminal([sys.executable, "-c", BAR], columns=columns, SAMPLE=SAMPLE, REASON="finished")
    shown = done.out.decode()
    assert done.status == 0
    assert "\x1b[2J" not in shown
    assert "\x1b]0" not in shown
    assert "book" in shown
    bars = [piece for piece in shown.split("\r") if "%|" in piece]
    assert len(bars) >= 9
    assert max(map(len, bars)) <= columns
    if columns == 80:
        assert "To be\\x1b[2J, [bold]or[/bold]" in shown
        assert "train 2.500 valid 2.250 bits/char  71k chars/s  0:00 left" in bars[-1]
        assert "look \\x1b]0;out" in shown
        assert shown.rstrip().endswith("next: charlstm sample -c checkpoints/book")


@pytest.mark.fault("R89")
def test_training_on_a_terminal_without_colours_prints_no_colour() -> None:
    shown = in_terminal(
        ["env", "NO_COLOR=1", sys.executable, "-c", BAR], SAMPLE=SAMPLE, REASON="interrupted"
    ).out.decode()
    assert "To be" in shown
    assert "\x1b[2m" not in shown
    assert "\x1b[36m" not in shown
    assert "to resume: charlstm train book.txt -o checkpoints/book --resume" in shown


@pytest.mark.fault("R89")
def test_training_prints_plain_lines_to_a_log() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BAR],
        capture_output=True,
        env=environment(SAMPLE=SAMPLE, REASON="already-finished"),
        check=False,
    )
    assert done.stdout == b""
    log = done.stderr.decode()
    assert not set("\r\x1b█") & set(log)
    assert "run        checkpoints/book\n" in log
    assert "step 3  0:03  train 2.500  validation 2.250 bits/char (best)" in log
    assert "has used its budget" in log


def test_a_closed_log_does_not_stop_a_training() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", BAR + "print(42)"],
        stdout=subprocess.PIPE,
        stderr=writer,
        env=environment(SAMPLE=SAMPLE, REASON="finished"),
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, b"42\n")


# Training in a separate process


def begin(
    folder: Path, *more: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    (folder / "text").write_text("the cat sat on the mat. " * 200)
    words = ["train", "text", "-o", "run", "--hidden", "8", "--steps", "1000000", "--threads", "1"]
    return subprocess.Popen(
        [*COMMAND, *words, *more], cwd=folder, env=environment(), stdin=stdin, stdout=stdout, stderr=stderr
    )


@pytest.mark.fault("R43")
def test_ctrl_c_saves_the_training_and_prints_the_command_to_resume(tmp_path: Path) -> None:
    process = begin(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = ""
    while "seed" not in said:  # the last line before the first step
        block = os.read(process.stderr.fileno(), 4096).decode()
        assert block, f"the training ended early: {said}"
        said += block
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    last = err.decode().splitlines()[-1]
    assert last.startswith("interrupted at step ")
    assert last.endswith("to resume: charlstm train text -o run --resume")
    assert checkpoint.verify(tmp_path / "run" / runs.LAST) == []


@pytest.mark.fault("R46")
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="/proc shows when torch is loaded")
def test_a_signal_while_torch_is_loaded_leaves_no_files(tmp_path: Path) -> None:
    process = begin(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert not list(tmp_path.glob("run/*.safetensors"))
    assert not list(tmp_path.glob("**/*.tmp*"))

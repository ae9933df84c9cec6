"""The README and the documents are correct: their commands run, and their options and files exist."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main

import charlstm
from charlstm.cli.app import app
from charlstm.inference import evaluation
from tests.helpers.command_line import OPTIONS
from tests.helpers.commands import ROOT, Done, here

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("data", "checkpoints")

# The content of the texts that the README names, and options that make its trainings short.
BOOK = "It was the best of times, it was the worst of times.\n" * 40
TINY = ["--hidden", "8", "--batch-size", "4", "--seq-len", "8", "--steps", "3", "--threads", "1"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def marked(name: str) -> str:
    """Return the README's command between the comments `<!-- name -->` and `<!-- end -->`."""
    block: str
    (block,) = re.findall(rf"<!-- {name} -->\n```sh\n(.*?)\n```\n<!-- end -->", README, re.DOTALL)
    assert all(line.endswith("&&") for line in block.splitlines()[:-1]), "one command, which stops at the first failure"
    return block


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory with the texts that the README names, and return it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("book.txt", "other.txt", "today.log"):
        (tmp_path / name).write_text(BOOK, encoding="utf-8")
    return tmp_path


def run(line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stdin: bytes = b"") -> Done:
    """Run a command of a document in this process, with a tiny budget."""
    import io
    import sys

    words = shlex.split(line, comments=True)
    assert words[0] == "charlstm"
    words = [word for word in words[1:] if not re.fullmatch(r"--time|\d+[sm]", word)]
    if words[0] == "train":
        words += TINY
    if words[:3] == ["sample", "-n", "0"]:
        words[2] = "50"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    return here(capfd, *words)


@pytest.mark.fault("R91")
def test_the_commands_of_the_quick_start_run(
    desk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, pipes = blocks(README.split("## Quick start")[1], "sh")[:2]
    for line in first.splitlines():
        done = run(line.split("|")[0], capfd, monkeypatch)
        assert done.status == 0, (line, done.err)
    train, score, lines = pipes.splitlines()
    assert run(train.split("|")[1].strip(), capfd, monkeypatch, BOOK.encode()).status == 0
    done = run(score.split("|")[0].split("<")[0].strip(), capfd, monkeypatch, BOOK.encode())
    assert done.status == 0
    assert '"bits_per_char"' in done.text
    done = run(lines.split("|")[0].split("<")[0].strip(), capfd, monkeypatch, BOOK.encode())
    assert (done.status, len(done.text.splitlines())) == (0, BOOK.count("\n"))


@pytest.mark.fault("R91")
def test_the_commands_of_the_set_up_run(
    desk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [part.strip() for part in marked("set-up command").split("&&")]
    assert commands[:2] == ["python3 -m venv .venv", ".venv/bin/pip install ."]
    for command in commands[2:]:
        line, _, target = command.removeprefix(".venv/bin/").partition(" > ")
        done = run(line, capfd, monkeypatch)
        assert done.status == 0, (command, done.err)
        if target:
            (desk / target).write_bytes(done.out)
        elif "sample" in line:
            assert len(done.text) == 500


def test_ci_runs_the_readmes_test_command() -> None:
    command = marked("test command")
    script = (ROOT / ".ci" / "run").read_text()
    extract = next(line for line in script.splitlines() if line.startswith("command="))
    line = f'{extract}\nprintf %s "${{command//.venv/.ci\\/venv}}"'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == command.replace(".venv", ".ci/venv")
    assert command.endswith("/pytest -n 2")


def test_the_python_of_the_readme_runs(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(README, "python")
    tiny = code.replace("seconds=60", "steps=3, hidden=8, threads=1").replace(
        "model.stream()", "model.stream(length=40)"
    )
    exec(compile(tiny, "README.md", "exec"), {})
    assert len(capfd.readouterr().out) >= 340


def test_the_python_of_the_api_document_runs(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (desk / "letters").mkdir()
    (desk / "letters" / "1").write_text("Once upon a time. " * 20)
    code = "".join(blocks((ROOT / "docs" / "api.md").read_text(encoding="utf-8"), "python"))
    tiny = "steps=3, hidden=8, threads=1"
    exec(compile(code.replace("seconds=60", tiny).replace("epochs=3", tiny), "api.md", "exec"), {})
    assert float(capfd.readouterr().out.split()[-1]) > 0


def test_the_readme_lists_every_folder_of_the_package() -> None:
    (tree,) = blocks(README.split("## The source")[1].split("\n## ")[0], "text")
    folders = {path.name for path in (ROOT / "charlstm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == folders
    named = re.findall(r"\w+\.py", tree)
    assert named
    assert all((ROOT / "charlstm" / name).exists() for name in named)


@pytest.mark.fault("R91")
def test_the_document_of_the_command_line_equals_the_output_of_help() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "refresh.py"))["page"]
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page(text) == text, "python docs/refresh.py brings it up to date"
    prose = " ".join(text.split())
    assert f"at most {evaluation.STREAMS} parts" in prose
    assert f"on the {evaluation.WARM_UP} characters before it" in prose
    assert set(re.findall(r"^\$ charlstm (\w*) ?--help", text, re.MULTILINE)) == set(OPTIONS)


@pytest.mark.fault("R91")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_and_commands_in_the_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    known = {option for options in OPTIONS.values() for option in options}
    benches = " ".join(file.read_text(encoding="utf-8") for file in (ROOT / "bench").glob("*.py"))
    foreign = {
        "--check",
        "--fault",
        "--no-deps",
        *("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint", "--max-restarts"),
        *("--array", "--wrap"),
        *re.findall(r'add_argument\("(--[a-z-]+)"', benches),
    }  # of ruff, pytest, pip, torchrun, sbatch and the benchmarks
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) <= known | foreign
    commands = {*typer.main.get_command(app).commands}  # type: ignore[attr-defined]
    assert set(re.findall(r"^(?:\S+/)?charlstm ([a-z]+)", text, re.MULTILINE)) <= commands


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_the_documents_have_targets(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_api_document_names_everything_public() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    unnamed = {name for name in charlstm.__all__ if name not in text and not name.endswith("Error")}
    assert unnamed <= {"__version__", "RunBusy", "SamplingConfig", "UnknownSymbols", "Vocabulary"}
    for name in re.findall(r"(?<!/)charlstm\.([A-Za-z]+)", text):
        assert hasattr(charlstm, name) or (ROOT / "charlstm" / f"{name}.py").exists(), name

"""Imports point one way, heavy packages live in their rooms, and what must start at once loads nothing heavy."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import COMMAND, ROOT, environment, model_file, spawn

import charlstm

PACKAGE = ROOT / "charlstm"

# Each room may import those above it, and nothing else of charlstm. The README tells to read them in this order.
ORDER = [
    "errors", "cells", "config", "events", "terminal", "atomicfile", "bundled", "downloads", "utf8",
    "documents", "vocab", "stored", "corpus", "checkpoint", "kernels.drawing", "kernels.native", "engine", "sampling",
    "evaluation", "surprise", "library",
    "kernels.plain", "kernels.training", "recurrence", "model", "dynamic", "optimisation", "recipe", "signals",
    "tally", "records", "machine", "runfolder", "resuming", "training",
    "cli.talk", "cli.counter", "cli.options", "cli.page", "cli.settings", "cli.watch", "cli.board", "cli.train",
    "cli.sample", "cli.surprises", "cli.following", "cli.evaluate", "cli.inspect", "cli.corpora",
    "cli.__init__", "cli.run", "__main__",
]  # fmt: skip
BARE = {"__init__", "kernels.__init__"}  # these only hand on names

NUMPY = {"numpy"}
TORCH = {"numpy", "torch"}
FOREIGN = {
    "cells": NUMPY,  # inside a function
    "utf8": NUMPY,
    "vocab": NUMPY,
    "stored": NUMPY | {"platformdirs"},
    "corpus": NUMPY,
    "downloads": {"platformdirs", "requests"},
    "checkpoint": NUMPY | {"safetensors"},
    "kernels.drawing": NUMPY,
    "kernels.native": NUMPY,
    "engine": NUMPY,
    "sampling": NUMPY,
    "evaluation": NUMPY,
    "surprise": NUMPY,
    "library": NUMPY,
    "records": NUMPY,
    "kernels.plain": TORCH,
    "kernels.training": TORCH,
    "recurrence": TORCH,
    "model": TORCH,
    "dynamic": TORCH,
    "optimisation": TORCH,
    "machine": TORCH,
    "training": TORCH,
    "cli.talk": {"rich"},
    "cli.options": {"typer"},
    "cli.page": {"typer"},
    "cli.settings": {"typer", "tomllib", "tomli"},  # tomllib is in the library from Python 3.11 on
    "cli.counter": {"tqdm"},
    "cli.watch": {"rich", "tqdm"},
    "cli.board": {"torch"},
    "cli.train": {"typer"},
    "cli.sample": {"typer"},
    "cli.following": {"typer"},
    "cli.evaluate": {"typer"},
    "cli.inspect": {"typer"},
    "cli.corpora": {"typer"},
    "cli.__init__": {"typer"},
    "cli.run": {"typer"},
}
HEAVY = {"torch", "numpy", "safetensors", "tqdm", "rich", "pydantic", "requests", "platformdirs"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts): ast.parse(file.read_text()) for file in files}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever in it, but for what only the type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def room_of(name: str, rooms: set[str]) -> str:
    """The module of charlstm that an imported name is, or lies in."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for room in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if room in rooms:
                return room
    return "__init__"


def test_the_order_of_rooms_names_every_module() -> None:
    assert set(modules()) == set(ORDER) | BARE


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_above_it(room: str) -> None:
    trees = modules()
    names = [name for name in imported(trees[room]) if name.split(".")[0] == "charlstm"]
    found = {room_of(name, set(trees)) for name in names} - BARE
    assert found <= set(ORDER[: ORDER.index(room)]), f"{room} reaches down to {found - set(ORDER[: ORDER.index(room)])}"


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_the_packages_of_its_own(room: str) -> None:
    packages = {name.split(".")[0] for name in imported(modules()[room])} - sys.stdlib_module_names - {"charlstm"}
    assert packages <= FOREIGN.get(room, set())


def modules_loaded_by(code: str) -> set[str]:
    """What is imported once `code` has run in a fresh Python."""
    line = f"import sys\n{code}\nprint('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], env=environment(), capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def loaded_by(code: str) -> set[str]:
    """Top-level names of it."""
    return {name.split(".")[0] for name in modules_loaded_by(code)}


@pytest.mark.fault("R88")
def test_help_and_version_load_nothing_heavy() -> None:
    code = "from charlstm.cli.run import run; run(['--version']); run(['train', '--help']); run(['sample', '--help'])"
    assert loaded_by(code) & HEAVY == set()


@pytest.mark.fault("R88")
def test_completion_works_and_loads_nothing_heavy() -> None:
    variables = {"_CHARLSTM_COMPLETE": "complete_bash", "COMP_WORDS": "charlstm sample --te", "COMP_CWORD": "2"}
    done = spawn([], **variables)
    assert done.text.split() == ["--temp"]
    code = f"import os, charlstm.cli.run as r\nos.environ.update({variables})\ntry: r.run([])\nexcept SystemExit: pass"
    assert loaded_by(code) & HEAVY == set()


@pytest.mark.fault("R88")
def test_sample_eval_and_info_load_numpy_and_nothing_heavier(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m")
    (tmp_path / "text").write_text("abc" * 99)
    calls = (["sample", "-n", "5", "-c"], ["eval", str(tmp_path / "text"), "-c"], ["info"], ["verify"])
    lines = "; ".join(f"assert run({[*call, str(model)]}) == 0" for call in calls)
    assert loaded_by(f"from charlstm.cli.run import run; {lines}; print()") & HEAVY == {"numpy"}


@pytest.mark.fault("R88")
def test_a_training_does_not_load_the_compiler_of_torch(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abc" * 99)
    train = ["train", str(tmp_path / "text"), "--steps", "2", "--hidden", "4", "-o", str(tmp_path / "run"), "-q"]
    found = modules_loaded_by(f"from charlstm.cli.run import run; assert run({train}) == 0")
    assert "torch.optim" in found
    assert "torch._dynamo" not in found, "it takes longer to import than all of torch"


def test_the_package_itself_loads_nothing() -> None:
    assert loaded_by("import charlstm; charlstm.__version__") - loaded_by("pass") - sys.stdlib_module_names == {
        "charlstm"
    }


@pytest.mark.fault("R88")
@pytest.mark.skipif(sys.platform == "win32", reason="counts the processor's time, which others cannot stretch")
def test_help_takes_at_most_three_times_what_typer_does() -> None:
    def seconds(*command: str) -> float:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    pairs = [(seconds(*COMMAND, "--help"), seconds(sys.executable, "-c", "import typer")) for _ in range(5)]
    ours, typers = map(min, zip(*pairs, strict=True))
    assert ours < 3 * typers, "a bound in seconds would judge the machine"


@pytest.mark.fault("R91")
def test_every_public_name_is_there_and_is_where_the_type_checker_looks_for_it() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        declared.update({alias.name: node.module for alias in node.names})
    assert charlstm.__all__ == dir(charlstm) == sorted([*declared, "__version__"])
    for name, home in declared.items():
        assert getattr(charlstm, name) is getattr(importlib.import_module(str(home)), name)
    with pytest.raises(AttributeError, match="nonsense"):
        charlstm.nonsense  # noqa: B018
    assert (PACKAGE / "py.typed").exists()


def test_the_schema_of_these_tests_can_fail() -> None:
    tree = ast.parse("def f():\n    from charlstm.cli import talk\n    import torch.nn")
    assert json.dumps(list(imported(tree))) == '["charlstm.cli.talk", "torch.nn"]'
    assert room_of("charlstm.cli.talk", set(modules())) == "cli.talk"
    assert room_of("charlstm.checkpoint.load", set(modules())) == "checkpoint"
    assert room_of("charlstm.cli.app", set(modules())) == "cli.__init__"

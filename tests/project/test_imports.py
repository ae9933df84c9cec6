"""The commands that must start fast load no heavy package, and every public name is where the type checker finds it."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import charlstm
from charlstm.cli.app import FUNCTIONS, SUMMARIES, command_of
from tests.helpers.commands import ROOT, environment, model_file, spawn

PACKAGE = ROOT / "charlstm"
HEAVY = {"torch", "numpy", "safetensors", "tqdm", "rich", "pydantic", "requests", "platformdirs", "pooch", "filelock"}


def modules_loaded_by(code: str) -> set[str]:
    """Return the names of all modules that are loaded after `code` has run in a new Python process."""
    line = f"import sys\n{code}\nprint('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], env=environment(), capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def loaded_by(code: str) -> set[str]:
    """Return the top-level names of these modules."""
    return {name.split(".")[0] for name in modules_loaded_by(code)}


@pytest.mark.fault("R88")
def test_help_and_version_load_no_heavy_package() -> None:
    code = "from charlstm.cli.main import run; run(['--version']); run(['train', '--help']); run(['sample', '--help'])"
    assert loaded_by(code) & HEAVY == set()


@pytest.mark.fault("R88")
def test_completion_works_and_loads_no_heavy_package() -> None:
    variables: dict[str, Any] = {
        "_CHARLSTM_COMPLETE": "complete_bash",
        "COMP_WORDS": "charlstm sample --te",
        "COMP_CWORD": "2",
    }
    done = spawn([], **variables)
    assert done.text.split() == ["--temp"]
    code = f"import os, charlstm.cli.main as r\nos.environ.update({variables})\ntry: r.run([])\nexcept SystemExit: pass"
    assert loaded_by(code) & HEAVY == set()


@pytest.mark.fault("R88")
def test_sample_eval_and_info_load_numpy_and_no_heavy_package(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m")
    (tmp_path / "text").write_text("abc" * 99)
    calls = (["sample", "-n", "5", "-c"], ["eval", str(tmp_path / "text"), "-c"], ["info"], ["verify"])
    lines = "; ".join(f"assert run({[*call, str(model)]}) == 0" for call in calls)
    assert loaded_by(f"from charlstm.cli.main import run; {lines}; print()") & HEAVY == {"numpy"}


def test_a_command_loads_no_module_of_another_command(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m")
    commands = {f"charlstm.cli.{name}" for name in FUNCTIONS}
    found = modules_loaded_by(
        f"from charlstm.cli.main import run; assert run(['sample', '-n', '5', '-c', {str(model)!r}]) == 0; print()"
    )
    assert found & commands == {"charlstm.cli.sample"}
    assert not modules_loaded_by("from charlstm.cli.main import run; run(['--help'])") & commands


def test_the_list_of_commands_has_the_first_sentence_of_the_help_of_each() -> None:
    assert {name: command_of(name).get_short_help_str(100) for name in FUNCTIONS} == SUMMARIES


@pytest.mark.fault("R88")
def test_training_does_not_load_the_compiler_of_torch(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abc" * 99)
    train = ["train", str(tmp_path / "text"), "--steps", "2", "--hidden", "4", "-o", str(tmp_path / "run"), "-q"]
    found = modules_loaded_by(f"from charlstm.cli.main import run; assert run({train}) == 0")
    assert "torch.optim" in found
    assert "torch._dynamo" not in found, "it takes longer to import than all of torch"


def test_importing_the_package_loads_no_other_module() -> None:
    assert loaded_by("import charlstm; charlstm.__version__") - loaded_by("pass") - sys.stdlib_module_names == {
        "charlstm"
    }


@pytest.mark.fault("R91")
def test_every_public_name_exists_where_the_type_checker_finds_it() -> None:
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

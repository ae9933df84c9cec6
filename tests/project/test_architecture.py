"""The contracts of import-linter in pyproject.toml hold, and each of them can fail."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"


def lint(project: Path) -> subprocess.CompletedProcess[str]:
    """Run lint-imports in a folder that holds pyproject.toml and the package."""
    return subprocess.run([sys.executable, "-c", LINT], cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of pyproject.toml and of the package's Python files."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "charlstm", folder / "charlstm", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def test_the_package_keeps_its_import_contracts() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("text/reading_copy.py", "import charlstm.cli.app", "A layer imports only the layers below it"),
        ("inference/engine.py", "import charlstm.training.events", "A layer imports only the layers below it"),
        ("checkpoint.py", "import charlstm.inference.engine", "A layer imports only the layers below it"),
        ("model.py", "import charlstm.explain.units", "A layer imports only the layers below it"),
        ("explain/trace.py", "import charlstm.export.c", "A layer imports only the layers below it"),
        ("new_module.py", "", "A layer imports only the layers below it"),
        ("text/vocabulary.py", "import torch", "Only training and cli import torch"),
        ("explain/units.py", "import torch", "Only training and cli import torch"),
        ("inference/sampling.py", "def late():\n    import rich.console", "Only training and cli import torch"),
        ("training/events.py", "from tqdm import tqdm", "Training imports no package that writes to a terminal"),
    ],
)
def test_an_import_that_violates_a_contract_is_reported(project: Path, module: str, line: str, contract: str) -> None:
    file = project / "charlstm" / module
    before = file.read_text(encoding="utf-8") if file.exists() else None
    try:
        file.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
        done = lint(project)
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before, encoding="utf-8")
    assert done.returncode == 1, done.stderr
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    assert any(text.startswith(contract) for text in broken), done.stdout


def test_an_import_for_the_type_checker_alone_is_allowed(project: Path) -> None:
    file = project / "charlstm" / "inference" / "engine.py"
    before = file.read_text(encoding="utf-8")
    extra = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from charlstm.training import events\n"
    file.write_text(before + extra, encoding="utf-8")
    try:
        assert lint(project).returncode == 0
    finally:
        file.write_text(before, encoding="utf-8")


def imported_tests(source: str) -> set[str]:
    """Return the test modules that a test module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.rpartition(".")[2].startswith("test_")}


def test_no_test_module_imports_another() -> None:
    importing = {file.name: imported_tests(file.read_text(encoding="utf-8")) for file in (ROOT / "tests").rglob("*.py")}
    assert not {name: found for name, found in importing.items() if found}
    assert imported_tests("from tests.text import test_corpus") == {"tests.text.test_corpus"}
    assert imported_tests("def late():\n    import tests.test_model") == {"tests.test_model"}

"""`charlstm verify`: check that checkpoints are valid."""

from __future__ import annotations

from charlstm.cli.console import write_stdout
from charlstm.cli.options import CheckpointArgument, CheckpointOption, checkpoint_of
from charlstm.errors import CheckpointError
from charlstm.terminal import escape

EXAMPLES = """\
charlstm verify checkpoints/book && charlstm sample -c checkpoints/book"""


def verify(path: CheckpointArgument = None, checkpoint: CheckpointOption = None) -> None:
    """Check that a checkpoint, or every checkpoint of a run, is valid; exit with status 1 if not."""
    from charlstm import checkpoint as files
    from charlstm import runs
    from charlstm.training.run_dir import RunDir

    chosen = checkpoint_of(path, checkpoint)
    checked = [runs.resolve(chosen)]
    if chosen is None or chosen.is_dir():
        checked = RunDir(checked[0].parent).model_files()
    raise_problems([problem for file in checked for problem in files.verify(file)])
    for file in checked:
        write_stdout(f"{escape(str(file))}: valid\n")


def raise_problems(problems: list[str]) -> None:
    """Raise a `CheckpointError` with the first of the problems and the number of the others, if there are any."""
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if problems[1:] else ""
        raise CheckpointError(problems[0] + more)

"""Display of a training run: a table, a progress bar and samples on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence

from charlstm.cli.console import Stderr, duration, is_plain, print_status, print_table, print_warning, write_stdout
from charlstm.cli.progress_bar import progress_bar
from charlstm.config import UNITS
from charlstm.terminal import escape
from charlstm.text.documents import quote_boundary
from charlstm.training.events import CheckpointSaved, Event, Progress, Started, Stopped, Validated, Warned, to_json

LINE_SECONDS = 30.0  # the longest time between two lines of a log
SAMPLE_ROWS = 4


def watcher(arguments: Sequence[str], as_json: bool, quiet: bool) -> Watcher:
    """Return the display for the options and for stderr: a context manager that is called with each event.

    Args:
        arguments: the arguments that name the corpus, for the message that says how to resume.
        as_json: write events as JSON lines.
        quiet: print only warnings and errors.
    """
    if as_json:
        return JsonLines()
    if quiet:
        return Watcher()
    return Bar(arguments) if Stderr().isatty() else Lines(arguments)


class Watcher:
    """Base class of the displays; it prints only warnings."""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Print the message of a warning."""
        if isinstance(event, Warned):
            print_warning(event.message)


class JsonLines(Watcher):
    """Write each event as a line of JSON to stdout."""

    def __call__(self, event: Event) -> None:
        """Write an event."""
        write_stdout(json.dumps(to_json(event)) + "\n")


class Lines(Watcher):
    """Print plain lines for a log: the settings, every validation and save, and the progress at intervals."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._unit = "char"
        self._progress: Progress | None = None
        self._last_line_at = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Print the lines of an event; progress is printed every LINE_SECONDS."""
        super().__call__(event)
        if isinstance(event, Started):
            self._unit = event.unit
            print_settings(event)
        elif isinstance(event, Progress):
            self._progress = event
            if time.monotonic() - self._last_line_at >= LINE_SECONDS:
                self._print(_progress(event, self._unit))
        elif isinstance(event, Validated):
            speed = f"  {_speed(self._progress, self._unit)}" if self._progress else ""
            self._print(validation_line(event, self._unit) + speed)
        elif isinstance(event, CheckpointSaved):
            print_status(f"saved step {event.step} to {escape(str(event.path))}")
        elif isinstance(event, Stopped):
            _print_outcome(event, self._arguments, self._unit)

    def _print(self, line: str) -> None:
        print_status(line)
        self._last_line_at = time.monotonic()


class Bar(Watcher):
    """Show a progress bar, and above it one line and a short sample for each validation."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._unit = "char"
        self._validated: Validated | None = None
        self._stderr = Stderr()  # the same object for bar and lines: see `progress_bar`

    def __enter__(self) -> Bar:
        self._bar = progress_bar(
            self._stderr,
            total=1.0,
            delay=1e-9,  # shows nothing before the first report
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, event: Event) -> None:
        """Update the bar, or print the lines of an event above it."""
        if isinstance(event, Started):
            self._unit = event.unit
            print_settings(event)
        elif isinstance(event, Progress):
            self._bar.n = event.share
            self._bar.set_description_str(self._state(event), refresh=False)
            self._bar.refresh()
        elif isinstance(event, Validated):
            self._validated = event
            self._above(validation_line(event, self._unit))
            for row in _rows(event.sample, self._bar.ncols or 80):
                self._above(row if is_plain() else f"\x1b[2m{row}\x1b[22m")
        elif isinstance(event, Warned):
            self._above(f"charlstm: {escape(event.message)}")
        elif isinstance(event, Stopped):
            self._bar.close()
            _print_outcome(event, self._arguments, self._unit)

    def _above(self, line: str) -> None:
        self._bar.write(line, file=self._stderr)

    def _state(self, progress: Progress) -> str:
        known = f" valid {self._validated.valid_bits_per_char:.3f}" if self._validated else ""
        return f"train {progress.train_bits_per_char:.3f}{known} bits/{self._unit}  {_speed(progress, self._unit)}"


def print_settings(started: Started) -> None:
    """Print the settings of a run to stderr."""
    unit = UNITS[started.unit]
    model = f"{started.layers} × {started.hidden}, embedding {started.embedding}"
    streams = f"{_counted(started.batch_size, 'stream')} × {_counted(started.seq_len, unit)}"
    rows = [
        ("run", str(started.run)),
        *([] if started.base is None else [("from", started.base)]),
        ("text", f"{started.chars:,} {unit}s, {started.vocab_size:,} distinct"),
        *([] if started.boundary is None else [("documents", f"separated by {quote_boundary(started.boundary)}")]),
        ("split", _split(started)),
        ("model", f"{started.cell} {model}: {started.parameters:,} parameters"),
        ("training", f"{streams}, learning rate {started.lr:.3g}"),
        ("dropout", f"{started.dropout:g}"),
        ("device", f"{started.device}, {_counted(started.threads, 'thread')}, {started.kernels}"),
        ("precision", _precision(started)),
        ("budget", _budget(started)),
        ("seed", str(started.seed)),
    ]
    print_table(rows, to_stderr=True)


def _split(started: Started) -> str:
    names = f", {', '.join(started.valid)}" if started.valid else ""
    held_out = f"{started.train_chars:,} for training, {started.held_out_chars:,} for validation{names}"
    if started.valid_chars == started.held_out_chars:
        return held_out
    return f"{held_out}, of which the first {started.valid_chars:,} are scored"


def _precision(started: Started) -> str:
    if started.bf16_speedup is None:
        return started.precision
    return f"{started.precision}: a step in bf16 is {started.bf16_speedup:.2f} times as fast as one in fp32"


def _budget(started: Started) -> str:
    begin = f", from step {started.resumed_step:,}" if started.resumed_step else ""
    if started.patience is None:
        return started.budget + begin
    return f"{started.budget}{begin}, or {_counted(started.patience, 'validation')} without improvement"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def validation_line(event: Validated, unit: str) -> str:
    """Return the line that describes a validation.

    Args:
        event: the result of the validation.
        unit: char or byte.
    """
    return (
        f"step {event.step:,}  {duration(event.seconds)}  train {event.train_bits_per_char:.3f}"
        f"  validation {event.valid_bits_per_char:.3f} bits/{unit}{' (best)' if event.best else ''}"
    )


def _progress(event: Progress, unit: str) -> str:
    return (
        f"step {event.step:,}  {duration(event.seconds)}  train {event.train_bits_per_char:.3f} bits/{unit}"
        f"  {event.share:.0%}  {_speed(event, unit)}"
    )


def _speed(event: Progress, unit: str) -> str:
    speed = event.chars_per_second
    figure = f"{speed / 1000:.0f}k" if speed >= 10_000 else f"{speed:,.0f}"
    return f"{figure} {unit}s/s  {duration(event.seconds_left)} left"


def _print_outcome(event: Stopped, arguments: Sequence[str], unit: str) -> None:
    """Print how the run ended and the command to type next."""
    run = shlex.quote(escape(str(event.last.parent)))
    best = event.best_valid_bits_per_char
    known = "" if best is None else f", best validation {best:.3f} bits per {UNITS[unit]}"
    if event.reason == "interrupted":
        corpus = " ".join(shlex.quote(escape(word)) for word in arguments)
        print_status(
            f"interrupted at step {event.step:,} and saved; to resume: charlstm train {corpus} -o {run} --resume"
        )
    elif event.reason == "already-finished":
        print_status(
            f"{run} has used its budget: {_counted(event.step, 'step')}{known}; to continue, give a larger budget"
        )
    else:
        if event.reason == "patience":
            print_status(f"stopped by --patience: {_counted(event.no_better, 'validation')} without improvement")
        print_status(f"done: {_counted(event.step, 'step')} in {duration(event.seconds)}{known}")
        print_status(f"next: charlstm sample -c {run}")


def _rows(sample: str, columns: int) -> list[str]:
    """Return at most SAMPLE_ROWS rows of a sample that fit the width of the terminal."""
    from rich.cells import chop_cells

    rows: list[str] = []
    for line in escape(sample, keep="\n").expandtabs().splitlines():
        rows += chop_cells(line, max(columns - 4, 4)) if line else []
    return ["  " + row for row in rows[:SAMPLE_ROWS]]

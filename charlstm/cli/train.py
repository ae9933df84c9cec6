"""`charlstm train`: train a model on a text."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlstm.cli import config_file, launch, training_display
from charlstm.cli.console import require_torch, warn_of_unusable_kernels
from charlstm.cli.options import MAX_CHARS, Options, unescaped, with_options
from charlstm.cli.progress_bar import counting
from charlstm.cli.tensorboard import TensorBoardWriter
from charlstm.config import (
    BUDGETS,
    SymbolKind,
    TrainingKeywords,
    TrainingOptions,
    check,
    mutually_exclusive,
    requires,
    setting,
)
from charlstm.errors import Field, UsageError
from charlstm.text.documents import RECORD_SEPARATOR
from charlstm.training.events import Stopped

if TYPE_CHECKING:
    from charlstm.model import Model
    from charlstm.text.corpus import Corpus
    from charlstm.text.vocabulary import Vocabulary
    from charlstm.training.trainer import Trainer
    from charlstm.training.workers import Workers

EXAMPLES = """\
charlstm train book.txt                          size and time are automatic
charlstm train book.txt --time 90s -o runs/book  train for 90 s into runs/book
charlstm train notes/ diary.gz --cell gru        directories and .gz files
cat *.log | charlstm train - --epochs 3          stdin
charlstm train *.wav --symbols bytes             any file, byte by byte
charlstm train names.txt --lines-as-documents    each line is a document
charlstm train book.txt --resume                 resume after Ctrl-C
charlstm train poems.txt --from checkpoints/book fine-tune a model
charlstm train book.txt --json > events.jsonl    progress as JSON lines"""


@dataclass(frozen=True)
class RunOptions:
    """The run directory, and how the run begins."""

    output: Path | None = setting(None, "Run directory.", "RUN", unset="a new one, checkpoints/<text>")
    from_: Path | None = setting(
        None, "Fine-tune: begin with the weights and architecture of this run or checkpoint.", "CKPT"
    )
    resume: bool = setting(False, "Resume the run in -o, or the newest run of this text.")
    allow_new_corpus: bool = setting(False, "With --resume: allow a text that differs from that of the run.")
    worker_timeout: float = setting(
        300.0, "Under torchrun: seconds that a worker waits for the others.", "S", low=1, high=1e6
    )

    def __post_init__(self) -> None:
        check(self, RunOptions)
        if self.allow_new_corpus and not self.resume:
            raise requires("allow_new_corpus", "resume")


@dataclass(frozen=True)
class TextOptions:
    """How the text is read and divided."""

    valid: str | None = setting(
        None, "Validation text; all of CORPUS is then used for training.", "TEXT", unset="the end of CORPUS"
    )
    symbols: SymbolKind | None = setting(
        None, "Symbols that the text is split into; bytes accepts any file.", unset="chars, or those of the model"
    )
    lines_as_documents: bool = setting(False, "Treat each line as an independent document.")
    documents: bool = setting(False, "Treat each file as an independent document.")
    boundary: str | None = setting(
        None, r"Separator of documents within a file, such as '\n\n\n' or '<|endoftext|>'.", "TEXT"
    )
    encoding: str | None = setting(None, "Encoding of the text.", "NAME", unset="utf-8, or that of the run")
    max_chars: int | None = field(default=None, metadata=MAX_CHARS)

    def __post_init__(self) -> None:
        check(self, TextOptions)


@dataclass(frozen=True)
class DisplayOptions:
    """How the progress of the training is shown."""

    as_json: bool = setting(False, "Write events as JSON lines to stdout, and nothing to stderr.")
    quiet: bool = setting(False, "Print only warnings and errors.")
    tensorboard: Path | None = setting(None, "Write curves for TensorBoard to this directory.", "DIR")


@with_options
def train(
    context: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS...",
            help="Training text: files, directories, .gz files, or the name of a corpus; - is stdin.",
            show_default=False,
        ),
    ],
    run_options: Annotated[RunOptions, Options()],
    text_options: Annotated[TextOptions, Options()],
    display: Annotated[DisplayOptions, Options()],
    training: Annotated[TrainingKeywords, Options(TrainingOptions)],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Read options from a TOML file, such as the config.toml of a run.",
            is_eager=True,
            callback=config_file.use,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a model on a text.

    Without options, charlstm chooses the model size for the text, trains for a few minutes, shows the progress, and
    saves the best model in a new directory under checkpoints/. Ctrl-C stops the run and saves it. Defaults shown as
    auto depend on the text, the budget and the machine; they are printed before the training starts.
    """
    given: dict[str, Any] = dict(training)
    budgets = [name for name in BUDGETS if name in given]
    for name in {*budgets} - {*config_file.closest(context, budgets)}:
        del given[name]  # the command line has priority over the environment, and that over the file
    chosen = TrainingOptions(**given)
    division = _division(context, text_options)
    if text_options.valid == "-" and "-" in corpus:
        raise UsageError("stdin can be read only once: as ", Field("corpus"), " or as ", Field("valid"))
    is_shown = not (display.as_json or display.quiet)
    displays: list[training_display.Watcher] = []
    if display.tensorboard is not None:
        displays.append(TensorBoardWriter(display.tensorboard))

    def read_for(model: Vocabulary | None, encoding: str | None, *sources: str) -> Corpus:
        """Read a text in the way that the text of a model was read, except where an option says otherwise."""
        from charlstm.text.corpus import read

        symbols = text_options.symbols or ("chars" if model is None else model.kind)
        boundary = None if model is None else model.boundary
        if division is not None:
            boundary = division.boundary
        with counting("reading", symbols, is_shown) as report:
            return read(
                sources,
                report=report,
                encoding=text_options.encoding or encoding or "utf-8",
                documents=division is not None,
                max_chars=text_options.max_chars,
                symbols=symbols,
                boundary=boundary,
            )

    with launch.joined(chosen.device, run_options.worker_timeout, [*corpus, text_options.valid]) as workers:
        session = _session(corpus, run_options, text_options, division, (given, chosen), read_for, workers)
        leads = workers is None or workers.leads
        if leads and is_shown:
            warn_of_unusable_kernels()
        if leads:
            words = [*corpus, *([] if text_options.valid is None else ["--valid", text_options.valid])]
            displays.append(training_display.watcher(words, display.as_json, display.quiet))
        event = None
        with contextlib.ExitStack() as stack:
            shown = [stack.enter_context(each) for each in displays if leads]
            for event in session.events():
                for show in shown:
                    show(event)
    if isinstance(event, Stopped) and event.reason == "interrupted":
        raise typer.Exit(128 + (event.signal or signal.SIGINT))


@dataclass(frozen=True)
class Division:
    """The documents of a text: each file, or the parts of a file between boundaries."""

    boundary: str | None


def _division(context: typer.Context, options: TextOptions) -> Division | None:
    """Return how the text is divided into documents; None if the text is one document.

    Raises:
        UsageError: the options are mutually exclusive.
    """
    ways = {
        "lines_as_documents": options.lines_as_documents,
        "documents": options.documents,
        "boundary": options.boundary is not None,
    }
    given = config_file.closest(context, [name for name, is_given in ways.items() if is_given])
    if "lines_as_documents" in given:
        if len(given) > 1:
            raise mutually_exclusive(*given)
        return Division("\n")
    if options.boundary is not None and "boundary" in given:
        return Division(unescaped(options.boundary, "boundary"))
    return Division(None) if given else None


def _session(
    corpus: list[str],
    run_options: RunOptions,
    text_options: TextOptions,
    division: Division | None,
    options: tuple[dict[str, Any], TrainingOptions],
    read_for: Callable[..., Corpus],
    workers: Workers | None,
) -> Trainer:
    """Read the texts, and start or resume the run.

    Args:
        corpus: the sources of the training text.
        run_options: see `RunOptions`.
        text_options: see `TextOptions`.
        division: see `Division`.
        options: the training options that the user gave, and all of them.
        read_for: reads a text as the text of a model was read.
        workers: the workers of this launch, or None.
    """
    from charlstm.model import load

    if workers is not None and (restarted := workers.from_leader(lambda: launch.restarted_run(run_options.output))):
        output, has_saved = restarted
        run_options = replace(run_options, output=output, resume=run_options.resume or has_saved)
    base = None if run_options.from_ is None else load(run_options.from_)
    run, text = _run_and_text(corpus, run_options, text_options, division, base, read_for, workers)
    valid = text_options.valid
    held_out = None if valid is None else read_for(text.vocabulary, text.encoding, valid)

    require_torch()
    from charlstm.training import run_dir
    from charlstm.training.trainer import Trainer
    from charlstm.training.workers import launch_name

    given, chosen = options
    if run_options.resume and run is not None:
        new_corpus = run_options.allow_new_corpus
        session = Trainer.resume(
            text, run, given, valid=held_out, from_=base, allow_new_corpus=new_corpus, workers=workers
        )
    else:
        if workers is None:
            run = run or run_dir.fresh(text.names)
        else:
            run = workers.from_leader(lambda: run or run_dir.fresh(text.names))
        session = Trainer.start(text, run, chosen, valid=held_out, from_=base, workers=workers)
    if workers is not None and workers.leads and (name := launch_name()) is not None:
        session.run.directory.write_launch(name)
    return session


def _run_and_text(
    corpus: list[str],
    run_options: RunOptions,
    text_options: TextOptions,
    division: Division | None,
    base: Model | None,
    read_for: Callable[..., Corpus],
    workers: Workers | None,
) -> tuple[Path | None, Corpus]:
    """Return the run directory, or None for a new one, and the training text.

    Only worker 0 needs the files of the run that is resumed.
    """
    from charlstm import checkpoint, runs
    from charlstm.training.resume import newest_run_of

    output = run_options.output
    if not run_options.resume:
        return output, read_for(None if base is None else base.vocabulary, None, *corpus)

    def newest() -> tuple[Path, Corpus]:
        return newest_run_of(
            lambda vocabulary, encoding: read_for(vocabulary, encoding, *corpus),
            symbols=text_options.symbols,
            boundary=None if division is None else division.boundary or RECORD_SEPARATOR,
            only_once="-" in corpus,
        )

    def how_read(run: Path) -> tuple[Path, Vocabulary, str]:
        saved = checkpoint.load(runs.resolve(run, prefer="last"))
        return run, saved.vocabulary, saved.corpus.encoding

    if workers is not None:
        run, vocabulary, encoding = workers.from_leader(lambda: how_read(output or newest()[0]))
    elif output is None:
        return newest()
    else:
        run, vocabulary, encoding = how_read(output)
    return run, read_for(vocabulary, encoding, *corpus)

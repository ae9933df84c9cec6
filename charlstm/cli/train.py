"""`charlstm train`: a text in, a run out."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlstm.cli import config_file, training_display
from charlstm.cli.console import before_torch, tell_of_stale_kernels
from charlstm.cli.help import Option, options_of
from charlstm.cli.options import MaxChars, unescaped
from charlstm.cli.progress_bar import counting
from charlstm.cli.tensorboard import Board
from charlstm.config import SymbolKind, TrainingOptions, parse_duration
from charlstm.errors import UsageError
from charlstm.text.documents import RECORD_SEPARATOR
from charlstm.training.defaults import DEFAULT_CELL, DEFAULT_SECONDS
from charlstm.training.events import Stopped

if TYPE_CHECKING:
    from charlstm.text.corpus import Corpus
    from charlstm.text.vocabulary import Vocabulary

EXAMPLES = """\
charlstm train book.txt                          size and time are chosen
charlstm train book.txt --time 90s -o runs/book  a quick one, into runs/book
charlstm train notes/ diary.gz --cell gru        folders and .gz, too
cat *.log | charlstm train - --epochs 3          stdin
charlstm train *.wav --symbols bytes             anything that is a file
charlstm train names.txt --lines-as-documents    each line for itself
charlstm train book.txt --resume                 go on after Ctrl-C
charlstm train poems.txt --from checkpoints/book go on with another text
charlstm train book.txt --json > events.jsonl    for programs"""

MODEL, BUDGET, LEARNING, WATCHING, MACHINE = "Model", "Budget (one of them)", "Learning", "Watching", "Machine"
DEFAULT_TIME = f"{DEFAULT_SECONDS / 60:g}m"

HELP = {
    "cell": Option(MODEL, "The recurrent cell; lstm is the one to start with.", default=DEFAULT_CELL),
    "hidden": Option(MODEL, "Width of a layer: a wider one can learn more, and is slower.", "N"),
    "layers": Option(MODEL, "Layers, one on top of the other.", "N"),
    "embedding": Option(MODEL, "Width of the vector that stands for a character.", "N"),
    "dropout": Option(MODEL, "Share of a layer's output dropped at random, against learning by heart.", "P"),
    "forget_bias": Option(MODEL, "Bias of the forget gates at the start; above 0, the memory begins open.", "X"),
    "epochs": Option(BUDGET, "Read the training text so many times.", "X", "none"),
    "steps": Option(BUDGET, "Update the weights so many times.", "N", "none"),
    "seconds": Option(BUDGET, "Train for so long: 90s, 3m, 1h30m.", "TIME", DEFAULT_TIME, "--time", str | None),
    "batch_size": Option(LEARNING, "Places of the text that are read side by side.", "N"),
    "seq_len": Option(LEARNING, "Characters that a gradient looks back.", "N"),
    "lr": Option(LEARNING, "Learning rate at its peak: it warms up to it and falls to 0.", "X"),
    "warmup": Option(LEARNING, "Share of the budget in which the rate rises.", "P"),
    "weight_decay": Option(LEARNING, "How strongly the weights are pulled towards 0.", "X"),
    "beta1": Option(LEARNING, "AdamW's memory of the gradient.", "P"),
    "beta2": Option(LEARNING, "AdamW's memory of the gradient's square.", "P"),
    "clip": Option(LEARNING, "Gradients longer than this are shortened to it.", "X"),
    "reset": Option(LEARNING, "Chance, at each window, that a stream forgets what it has read.", "P"),
    "on_divergence": Option(
        LEARNING, "Where the loss is no number: back to the last good state at half the rate, or end."
    ),
    "valid_share": Option(WATCHING, "Share of the text, its end, held out to validate on; 0 is none.", "P"),
    "valid_chars": Option(WATCHING, "Characters of that part, from its start, to validate on; 0 is all.", "N"),
    "validations": Option(WATCHING, "Validate so many times in the run.", "N"),
    "sample_chars": Option(WATCHING, "Characters of text drawn at each validation; 0 for none.", "N"),
    "patience": Option(WATCHING, "Stop after so many validations without a better one.", "N", "none"),
    "keep": Option(WATCHING, "Keep the weights of so many validations, the latest, beside the best and the last.", "N"),
    "device": Option(MACHINE, "Where to compute."),
    "threads": Option(MACHINE, "Threads of the CPU.", "N", "one a core"),
    "seed": Option(MACHINE, "Of all that is drawn: the same seed makes the same model.", "N"),
}


@options_of(TrainingOptions, HELP)
def train(
    context: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS...",
            help="Text to learn from: files, folders (all files below), .gz of them; - is stdin. Or a named corpus.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="Folder of the run. [default: a new one, checkpoints/<text>]",
            show_default=False,
        ),
    ] = None,
    valid: Annotated[
        str | None,
        typer.Option(
            "--valid",
            metavar="TEXT",
            help="Text to validate on; all of CORPUS trains then. [default: the end of CORPUS]",
            show_default=False,
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="CKPT",
            help="Fine-tune: begin with the weights and the shape of this model, a run's folder or a checkpoint.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in -o, or else with the newest run of this text.")
    ] = False,
    allow_new_corpus: Annotated[
        bool, typer.Option("--allow-new-corpus", help="With --resume: the text may differ from the run's.")
    ] = False,
    symbols: Annotated[
        SymbolKind | None,
        typer.Option(
            "--symbols",
            help="What the text is made of: bytes takes any file, whatever is in it. "
            "[default: chars; with --resume and --from the model's]",
            show_default=False,
        ),
    ] = None,
    lines_as_documents: Annotated[
        bool,
        typer.Option("--lines-as-documents", help="Each line is a text of its own: lists of names, rows of a log."),
    ] = False,
    documents: Annotated[
        bool,
        typer.Option("--documents", help="Each file is a text of its own: nothing is carried to the next."),
    ] = False,
    boundary: Annotated[
        str | None,
        typer.Option(
            "--boundary",
            metavar="TEXT",
            help=r"Within a file, too, this stands between documents: '\n\n\n', '<|endoftext|>'.",
            show_default=False,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding",
            metavar="NAME",
            help="Encoding of the text. [default: utf-8; with --resume the run's]",
            show_default=False,
        ),
    ] = None,
    max_chars: MaxChars = None,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout; nothing on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="DIR", help="Write curves for TensorBoard there.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Options in TOML, a line each: hidden = 256. A run keeps its own in config.toml.",
            is_eager=True,
            callback=config_file.use,
            show_default=False,
        ),
    ] = None,
    **options: Any,
) -> None:
    """Train a model on a text.

    Without options it sizes the model for the text, trains for some minutes, shows how it goes, and keeps the best
    model in a new folder under checkpoints/. Ctrl-C stops it, with all saved. Where a default is auto, what suits the
    text, the budget and the machine is chosen, and shown before the start.
    """
    given = {name: value for name, value in options.items() if value is not None}
    budgets = [name for name in ("epochs", "steps", "seconds") if name in given]
    for name in {*budgets} - {*config_file.closest(context, budgets)}:
        del given[name]  # that of a file, where the command line has another
    if "seconds" in given:
        given["seconds"] = parse_duration(given["seconds"])
    chosen = TrainingOptions(**given)  # a bad option is reported before the text is read
    divided = {"lines_as_documents": lines_as_documents, "documents": documents, "boundary": boundary is not None}
    ways = config_file.closest(context, [name for name, is_given in divided.items() if is_given])
    if "lines_as_documents" in ways and len(ways) > 1:
        raise UsageError("--lines-as-documents says what a document is: leave out --documents and --boundary")
    between = "\n" if "lines_as_documents" in ways else None
    if boundary is not None and "boundary" in ways:
        between = unescaped(boundary, "--boundary")
    if allow_new_corpus and not resume:
        raise UsageError("--allow-new-corpus makes sense with --resume only")
    if valid == "-" and "-" in corpus:
        raise UsageError("stdin can be read once: as CORPUS or as --valid")

    watchers: list[training_display.Watcher] = [] if tensorboard is None else [Board(tensorboard)]

    from charlstm import checkpoint
    from charlstm.model import load
    from charlstm.text.corpus import read
    from charlstm.training.resume import newest_run_of

    def read_for(model: Vocabulary | None, in_: str | None, *sources: str) -> Corpus:
        """A text, read as that of a model was, and in the encoding that it had, but where an option says otherwise."""
        how: dict[str, Any] = {"encoding": encoding or in_ or "utf-8", "documents": bool(ways), "max_chars": max_chars}
        how["symbols"] = symbols or ("chars" if model is None else model.kind)
        how["boundary"] = between if ways or model is None else model.boundary
        with counting("reading", how["symbols"], not (as_json or quiet)) as report:
            return read(sources, report=report, **how)

    base, run = None if from_ is None else load(from_), output
    if resume and run is None:
        run, text = newest_run_of(
            lambda vocabulary, its_encoding: read_for(vocabulary, its_encoding, *corpus),
            symbols=symbols,
            boundary=(between or RECORD_SEPARATOR) if ways else None,
            only_once="-" in corpus,
        )
    elif resume:
        saved = checkpoint.load(checkpoint.resolve(run, prefer="last"))
        text = read_for(saved.vocabulary, saved.corpus.encoding, *corpus)
    else:
        text = read_for(None if base is None else base.vocabulary, None, *corpus)
    held_out = None if valid is None else read_for(text.vocabulary, text.encoding, valid)

    before_torch()
    from charlstm.training import run_dir, trainer  # last, for it takes a second: it brings torch

    if not (as_json or quiet):
        tell_of_stale_kernels()
    if resume and run is not None:
        session = trainer.Trainer.resume(
            text, run, given, valid=held_out, from_=base, allow_new_corpus=allow_new_corpus
        )
    else:
        run = run or run_dir.fresh(text.names)
        session = trainer.Trainer.start(text, run, chosen, valid=held_out, from_=base)
    words = [*corpus, *([] if valid is None else ["--valid", valid])]
    with contextlib.ExitStack() as stack:
        shows = [stack.enter_context(each) for each in (*watchers, training_display.watcher(words, as_json, quiet))]
        for event in session.events():
            for show in shows:
                show(event)
    if isinstance(event, Stopped) and event.reason == "interrupted":
        raise typer.Exit(128 + (event.signal or signal.SIGINT))

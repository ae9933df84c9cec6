"""`charlstm sample`: text on stdout, and nothing else."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlstm.cli.console import tell_of_stale_kernels, to_stdout
from charlstm.cli.options import (
    Ban,
    Checkpoint,
    Escapes,
    LoadState,
    MinP,
    Only,
    Precise,
    RepeatPenalty,
    RepeatWindow,
    Temperature,
    Threads,
    TopK,
    TopP,
    Typical,
    UnknownChars,
    known,
    unescaped,
)
from charlstm.config import LENGTH, SamplingConfig
from charlstm.errors import UsageError
from charlstm.terminal import TextOut, is_terminal

if TYPE_CHECKING:
    from charlstm.config import Unknown
    from charlstm.inference.context import Context
    from charlstm.inference.sampling import GeneratedText
    from charlstm.model import Model

EXAMPLES = """\
charlstm sample --temp 0.5 -n 300           calmer text
charlstm sample --prime "It was " --seed 7  go on from a text, always the same
charlstm sample --lines 20 --top-p 0.9      lines, without what is unlikely
charlstm sample -e --stop '\\n\\n'            a paragraph
charlstm sample -n 0 | less                 without end
charlstm sample --prime-lines - < begun.txt each of these lines to its end
charlstm sample --count 5 -0 | xargs -0 -n 1 printf '<%s>'"""

DEFAULT = SamplingConfig()
END = "Where a text ends (the first that comes)"


def sample(
    checkpoint: Checkpoint = None,
    prime: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text that the model reads first; it is not printed.")
    ] = None,
    prime_file: Annotated[str | None, typer.Option(metavar="FILE", help="The same from a file; - is stdin.")] = None,
    prime_lines: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A prime a line, and a text for each, to its line's end; - is stdin."),
    ] = None,
    escapes: Escapes = False,
    unknown: UnknownChars = "error",
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same seed gives the same text. [default: a fresh one]", show_default=False),
    ] = DEFAULT.seed,
    count: Annotated[
        int, typer.Option(metavar="N", help="So many texts; above 1, each is followed by a newline.")
    ] = DEFAULT.count,
    best_of: Annotated[
        int, typer.Option(metavar="N", help="Of N texts the one whose characters the model itself finds likeliest.")
    ] = DEFAULT.best_of,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a text: the text, its log-probability, the settings.")
    ] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="Follow each text by a NUL, for xargs -0.")] = False,
    precision: Precise = "auto",
    threads: Threads = None,
    line_buffered: Annotated[
        bool, typer.Option("--line-buffered", help="Hand each line to a pipe as soon as it is whole.")
    ] = False,
    unbuffered: Annotated[
        bool, typer.Option("--unbuffered", "-u", help="Hand each character to a pipe as soon as it is drawn.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Let control characters through to a terminal, which they can harm; let a model of bytes draw any.",
        ),
    ] = False,
    load_state: LoadState = None,
    save_state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep where the text stands at its end, to go on another day.")
    ] = None,
    ban: Ban = DEFAULT.ban,
    only: Only = DEFAULT.only,
    repeat_penalty: RepeatPenalty = DEFAULT.repeat_penalty,
    repeat_window: RepeatWindow = DEFAULT.repeat_window,
    temp: Temperature = DEFAULT.temperature,
    top_k: TopK = DEFAULT.top_k,
    top_p: TopP = DEFAULT.top_p,
    min_p: MinP = DEFAULT.min_p,
    typical: Typical = DEFAULT.typical,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            "-n",
            metavar="N",
            help=f"At N characters; 0 is without end. [default: {LENGTH}; with --lines or --stop 0; "
            "of documents the end of one]",
            rich_help_panel=END,
            show_default=False,
        ),
    ] = DEFAULT.length,
    lines: Annotated[
        int | None, typer.Option(metavar="N", help="With its N-th line.", rich_help_panel=END)
    ] = DEFAULT.lines,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Before this text; may be given again for others.", rich_help_panel=END),
    ] = None,
    keep_stop: Annotated[
        bool, typer.Option("--keep-stop", help="With --stop: behind it.", rich_help_panel=END)
    ] = DEFAULT.keep_stop,
) -> None:
    """Write text like the text a model was trained on.

    On stdout stands the text and nothing else, in UTF-8. To a terminal, control characters are shown as \\x1b and the
    like; to a pipe or a file the text goes as it is.
    """
    primes = {"--prime": prime, "--prime-file": prime_file, "--prime-lines": prime_lines}
    if len(given := [name for name, value in primes.items() if value is not None]) > 1:
        raise UsageError(f"{' and '.join(given)} both say what to begin with: give one")
    if line_buffered and unbuffered:
        raise UsageError("give one of --line-buffered and --unbuffered")
    if as_json and null:
        raise UsageError("--json is an object a line: leave out --null")
    if save_state is not None and (count > 1 or prime_lines is not None):
        raise UsageError("--save-state keeps where one text stands: leave out --count and --prime-lines")

    def spelled(text: str, flag: str) -> str:
        return unescaped(text, flag) if escapes else text

    if prime_lines is not None and not stop and lines is None:
        lines = 1
    config = SamplingConfig(  # a bad option is reported before anything is read
        temp,
        length,
        spelled(prime or "", "--prime"),
        seed,
        count,
        top_k,
        top_p,
        min_p,
        typical,
        repeat_penalty,
        repeat_window,
        spelled(ban, "--ban"),
        None if only is None else spelled(only, "--only"),
        tuple(spelled(text, "--stop") for text in stop or ()),
        keep_stop,
        lines,
        best_of,
        raw,
    )
    side_by_side = as_json or prime_lines is not None or count > 1 or best_of > 1
    if side_by_side and not config.ends:
        raise UsageError("only one plain text may be without end: give --length, --lines or --stop")

    from charlstm.model import load
    from charlstm.text import corpus

    if not as_json:
        tell_of_stale_kernels()
    model = load(checkpoint, precision=precision, threads=threads)
    context = model.load_state(load_state) if load_state is not None else None
    out = TextOut(1, raw=raw, buffering="none" if unbuffered else "line" if line_buffered else "auto")
    if prime_lines is None:
        text = corpus.read_text([prime_file], symbols=model.vocabulary.kind) if prime_file is not None else config.prime
        config = replace(config, prime=known(model.vocabulary, text, unknown))
        groups = None
    else:
        groups = _primes(model, prime_lines, unknown, out)
    with to_stdout():
        if side_by_side:
            try:
                for number, drawn in enumerate(model.generate(config, groups, context, scored=as_json), 1):
                    if as_json:
                        out.write(json.dumps({"number": number, **_facts(model, config, drawn)}) + "\n")
                    else:
                        out.write(drawn.text + _behind(drawn.text, config, null))
                    if save_state is not None:
                        model.save_state(save_state, model.context_after(drawn))
            finally:  # what was drawn before an error goes out, too
                out.close()
        else:
            _write(model, config, context, out, null, save_state)


def _write(
    model: Model, config: SamplingConfig, context: Context | None, out: TextOut, null: bool, save_state: Path | None
) -> None:
    """One text, as it is drawn."""
    from charlstm.inference.sampling import Sampler

    stream = Sampler(model.engine, model.vocabulary, config).stream(context)
    piece = ""
    try:
        for piece in stream:
            out.write(piece)
        if null or (is_terminal(1) and not piece.endswith("\n")):  # so that the shell's prompt begins a line
            out.write("\0" if null else "\n")
    finally:  # also where Ctrl-C or the reader ends a text without end
        out.close()
        if save_state is not None:
            model.save_state(save_state, stream.context)


def _behind(text: str, config: SamplingConfig, null: bool) -> str:
    """What separates a text from the next: a newline, unless it is lines, and ends with one."""
    return "\0" if null else "" if config.lines is not None and text.endswith("\n") else "\n"


def _primes(model: Model, source: str, unknown: Unknown, out: TextOut) -> Iterator[list[str]]:
    """The lines of a file in groups, as they come, each without its line break. What was drawn goes out in between."""
    from charlstm.text import corpus

    numbers = itertools.count(1)
    for lines in corpus.whole_lines(corpus.parts([source], symbols=model.vocabulary.kind)):
        primes = [line.removesuffix("\n") for line in lines]
        yield [known(model.vocabulary, prime, unknown, f"prime {next(numbers)}") for prime in primes]
        out.flush()


def _facts(model: Model, config: SamplingConfig, drawn: GeneratedText) -> dict[str, Any]:
    """All that is to be said of a text."""
    chars = len(drawn.symbols)
    assert drawn.log_probability is not None
    length = 0 if drawn.ended == "document" else config.most or 0
    settings = {**asdict(config), "seed": drawn.start.seed, "length": length}
    del settings["prime"]
    return {
        "text": drawn.text,
        "prime": drawn.prime,
        "chars": chars,
        "unit": model.vocabulary.unit,
        "ended": drawn.ended,
        "log_probability": drawn.log_probability,
        "bits_per_char": -drawn.log_probability / math.log(2) / chars if chars else None,
        "settings": settings,
        "checkpoint": str(model.path),
        "engine": model.engine.description,
    }

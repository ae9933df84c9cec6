"""`charlstm sample`: text on stdout, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charlstm.cli.options import Checkpoint, Precise, Threads, UnknownChars
from charlstm.cli.talk import complain, to_stdout
from charlstm.config import SamplingConfig
from charlstm.errors import UsageError
from charlstm.terminal import TextOut, is_terminal

EXAMPLES = """\
charlstm sample --temp 0.5 -n 300           calmer text
charlstm sample --prime "It was " --seed 7  go on from a text, always the same
charlstm sample -n 0 | less                 without end
charlstm sample --count 5 -0 | xargs -0 -n 1 printf '<%s>'"""

DEFAULT = SamplingConfig()


def sample(
    checkpoint: Checkpoint = None,
    temp: Annotated[
        float,
        typer.Option("--temp", "-t", metavar="X", help="Below 1 calmer, above 1 wilder; 0 is greedy."),
    ] = DEFAULT.temperature,
    length: Annotated[
        int, typer.Option("--length", "-n", metavar="N", help="Characters to write; 0 is without end.")
    ] = DEFAULT.length,
    prime: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text that the model reads first; it is not printed.")
    ] = None,
    prime_file: Annotated[str | None, typer.Option(metavar="FILE", help="The same from a file; - is stdin.")] = None,
    unknown: UnknownChars = "error",
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same seed gives the same text. [default: a fresh one]", show_default=False),
    ] = DEFAULT.seed,
    count: Annotated[
        int, typer.Option(metavar="N", help="So many texts; above 1, each is followed by a newline.")
    ] = DEFAULT.count,
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
        bool, typer.Option("--raw", help="Let control characters through to a terminal, too. They can do harm there.")
    ] = False,
    load_state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on where a text of the same model was kept.")
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep where the text stands at its end, to go on another day.")
    ] = None,
) -> None:
    """Write text like the text a model was trained on.

    On stdout stands the text and nothing else, in UTF-8. To a terminal, control characters are shown as \\x1b and the
    like; to a pipe or a file the text goes as it is.
    """
    if prime is not None and prime_file is not None:
        raise UsageError("give one of --prime and --prime-file")
    if line_buffered and unbuffered:
        raise UsageError("give one of --line-buffered and --unbuffered")
    if count > 1 and save_state is not None:
        raise UsageError("--save-state keeps where one text stands: leave out --count")
    SamplingConfig(temp, length, prime or "", seed, count)  # a bad option is reported before anything is read

    from charlstm import corpus, library, vocab

    model = library.load(checkpoint, precision=precision, threads=threads)
    context = model.load_state(load_state) if load_state is not None else None
    prime = corpus.read_text([prime_file]) if prime_file is not None else prime or ""
    ids, foreign = model.vocabulary.encode_known(prime, unknown)
    if foreign:
        prime = model.vocabulary.decode(ids)
        done = "skipped" if unknown == "skip" else "replaced"
        complain(f"unknown characters of the prime, {done}: {vocab.listed(foreign)}")
    out = TextOut(1, raw=raw, buffering="none" if unbuffered else "line" if line_buffered else "auto")
    end = "\0" if null else "\n"
    with to_stdout():
        if count > 1:
            for text in model.samples(count, prime, length, temperature=temp, seed=seed, context=context):
                out.write(text + end)
            out.close()
            return
        stream = model.stream(prime, length, temperature=temp, seed=seed, context=context)
        piece = ""
        try:
            for piece in stream:
                out.write(piece)
            if null or (is_terminal(1) and not piece.endswith("\n")):  # so that the shell's prompt begins a line
                out.write(end)
        finally:  # also where Ctrl-C or the reader ends a text without end
            out.close()
            if save_state is not None:
                model.save_state(save_state, stream.context)

"""`charlstm sample`: generate text on stdout."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from charlstm.cli import score_display
from charlstm.cli.console import print_warning, writing_stdout
from charlstm.cli.options import ContextOptions, ModelOptions, Options, known_prime, with_options
from charlstm.config import GREEDY_LENGTH, SamplingConfig, check, mutually_exclusive, requires, setting
from charlstm.errors import Field, UsageError
from charlstm.terminal import TextOut, is_terminal

if TYPE_CHECKING:
    from charlstm.config import Unknown
    from charlstm.inference.context import Context
    from charlstm.inference.sampling import GeneratedText
    from charlstm.inference.stopping import Ended
    from charlstm.inference.surprisal import CharBlock
    from charlstm.model import Model

EXAMPLES = """\
charlstm sample --temp 0.5 -n 300           more predictable text
charlstm sample --prime "It was " --seed 7  continue a text, reproducibly
charlstm sample --lines 20 --top-p 0.9      20 lines without rare characters
charlstm sample --match '[A-Z][a-z]+ \\d+'    a text of a given form
charlstm sample --mix novel=2 --mix letters  a mixture of two models
charlstm sample -e --stop '\\n\\n'            one paragraph
charlstm sample -n 0 | less                 text without end
charlstm sample --prime-lines - < begun.txt complete each line of a file
charlstm sample --count 5 -0 | xargs -0 -n 1 printf '<%s>'"""


@dataclass(frozen=True)
class FileOptions:
    """Files with the text that the model reads first, and with the expression that a text matches."""

    prime_file: str | None = setting(None, "Read the prime from a file; - is stdin.", "FILE")
    prime_lines: str | None = setting(None, "Read one prime per line and complete each line; - is stdin.", "FILE")
    match_file: str | None = setting(None, "Read the expression of --match from a file; - is stdin.", "FILE")


@dataclass(frozen=True)
class OutputOptions:
    """How the generated texts are written."""

    as_json: bool = setting(False, "Write one JSON object per text: the text, its log-probability and the settings.")
    null: bool = setting(False, "Write a NUL character after each text, for xargs -0.")
    line_buffered: bool = setting(False, "Flush the output after each line.")
    unbuffered: bool = setting(False, "Flush the output after each character.")
    save_state: Path | None = setting(None, "Save the state at the end of the text, to continue later.", "FILE")
    heat: bool = setting(False, "Colour each character by its surprisal; in JSON, add the probabilities.")
    top: int = setting(
        0, "With --heat: one row per character, with the N most probable characters.", "N", low=0, high=2**53
    )

    def __post_init__(self) -> None:
        check(self, OutputOptions)
        if self.top and not self.heat:
            raise requires("top", "heat")
        if self.line_buffered and self.unbuffered:
            raise mutually_exclusive("line_buffered", "unbuffered")
        if self.as_json and self.null:
            raise mutually_exclusive("as_json", "null")

    @property
    def buffering(self) -> Literal["auto", "line", "none"]:
        """When the output is flushed."""
        return "none" if self.unbuffered else "line" if self.line_buffered else "auto"


@dataclass(frozen=True)
class MixOptions:
    """The models of a mixture."""

    mix: tuple[str, ...] = setting(
        (), "Mix the distributions of several models, each with a weight (default 1); one option each.", "CKPT[=X]"
    )
    mix_by: Literal["mean", "product"] = setting(
        "mean", "Take the weighted mean of the probabilities, or their product."
    )

    def __post_init__(self) -> None:
        check(self, MixOptions)

    @property
    def weights(self) -> list[tuple[Path, float]]:
        """The checkpoints and their weights."""
        found = []
        for value in self.mix:
            path, _, weight = value.rpartition("=")
            is_weight = bool(path) and re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight) is not None
            found.append((Path(path), float(weight)) if is_weight else (Path(value), 1.0))
        return found

    def load(self, options: ModelOptions, *, warn: bool) -> Model:
        """Load the mixture, or the one model of a command without a mixture."""
        if not self.mix:
            return options.load(warn=warn)
        from charlstm.model import mix

        weights = self.weights
        models = [options.load(path, warn=warn and k == 0) for k, (path, _) in enumerate(weights)]
        return mix(models, [weight for _, weight in weights], by=self.mix_by)


@with_options
def sample(
    model_options: Annotated[ModelOptions, Options()],
    mix_options: Annotated[MixOptions, Options()],
    sampling: Annotated[SamplingConfig, Options()],
    primes: Annotated[FileOptions, Options()],
    context_options: Annotated[ContextOptions, Options()],
    output: Annotated[OutputOptions, Options()],
) -> None:
    r"""Generate text in the style of the text that a model was trained on.

    Only the text is written to stdout, in UTF-8. On a terminal, control characters are escaped, such as \x1b;
    in a pipe or a file the text is unchanged.
    """
    if mix_options.mix and model_options.checkpoint is not None:
        raise mutually_exclusive("checkpoint", "mix")
    if mix_options.mix_by != "mean" and not mix_options.mix:
        raise requires("mix_by", "mix")
    if output.heat and not output.as_json:
        score_display.require_colours("as_json")
    sampling = _checked(context_options.decoded(sampling), primes, output)

    from charlstm.text import reading

    if primes.match_file is not None:
        sampling = replace(sampling, match=reading.read_text([primes.match_file]).removesuffix("\n"))
    model = mix_options.load(model_options, warn=not output.as_json)
    state, unknown = context_options.load_state, context_options.unknown
    context = model.load_state(state) if state is not None else None
    out = TextOut(1, raw=sampling.raw or (output.heat and not output.as_json), buffering=output.buffering)
    groups = None
    if primes.prime_lines is not None:
        groups = _primes(model, primes.prime_lines, unknown, out)
    else:
        prime = sampling.prime
        if primes.prime_file is not None:
            prime = reading.read_text([primes.prime_file], reading.TextFormat(symbols=model.vocabulary.kind))
        sampling = replace(sampling, prime=known_prime(model.vocabulary, prime, unknown))
    with writing_stdout():
        if _is_batch(sampling, primes, output):
            _write_texts(model, sampling, groups, context, out, output, mix_options.mix)
        else:
            _write_stream(model, sampling, context, out, output)


def _is_batch(sampling: SamplingConfig, primes: FileOptions, output: OutputOptions) -> bool:
    """Return whether texts are generated in a batch, instead of one text as a stream."""
    return output.as_json or primes.prime_lines is not None or sampling.count > 1 or sampling.best_of > 1


def _checked(sampling: SamplingConfig, primes: FileOptions, output: OutputOptions) -> SamplingConfig:
    """Return the sampling options, with one line per text for `--prime-lines` if nothing else ends the texts.

    Raises:
        UsageError: some options do not fit together.
    """
    sources = {"prime": sampling.prime or None, "prime_file": primes.prime_file, "prime_lines": primes.prime_lines}
    if len(given := [name for name, source in sources.items() if source is not None]) > 1:
        raise mutually_exclusive(*given)
    if sampling.match is not None and primes.match_file is not None:
        raise mutually_exclusive("match", "match_file")
    if output.save_state is not None and sampling.count > 1:
        raise mutually_exclusive("save_state", "count")
    if output.save_state is not None and primes.prime_lines is not None:
        raise mutually_exclusive("save_state", "prime_lines")
    has_match = sampling.match is not None or primes.match_file is not None
    if primes.prime_lines is not None and not sampling.stop and sampling.lines is None and not has_match:
        sampling = replace(sampling, lines=1)
    if _is_batch(sampling, primes, output) and not sampling.has_end:
        length, lines, stop = map(Field, ("length", "lines", "stop"))
        raise UsageError("only a single plain text can be unlimited: give ", length, ", ", lines, " or ", stop)
    return sampling


def _write_texts(
    model: Model,
    sampling: SamplingConfig,
    groups: Iterator[list[str]] | None,
    context: Context | None,
    out: TextOut,
    output: OutputOptions,
    names: Sequence[str],
) -> None:
    """Generate texts in batches and write each as soon as its batch is complete. `names` are those of a mixture."""
    from charlstm.inference import surprisal

    try:
        for number, text in enumerate(model.generate(sampling, groups, context, scored=output.as_json), 1):
            if output.as_json:
                record = {"number": number, **_record(model, sampling, text)}
                if output.heat:
                    record["characters"] = _probabilities(model, text, output.top)
                if names:
                    record["checkpoint"] = names
                out.write(json.dumps(record) + "\n")
            elif output.heat:
                block = surprisal.chars_after(model.engine, text.start, text.symbols, output.top)[0]
                out.write(_heated(model, block, output.top) + _separator(text.text, sampling, output.null))
            else:
                out.write(text.text + _separator(text.text, sampling, output.null))
            if output.save_state is not None:
                model.save_state(output.save_state, model.context_after(text))
            _note_limit(text.ended)
    finally:  # the texts that were generated before an error are written, too
        out.close()


def _write_stream(
    model: Model, sampling: SamplingConfig, context: Context | None, out: TextOut, output: OutputOptions
) -> None:
    """Write one text while it is generated."""
    from charlstm.inference import surprisal
    from charlstm.inference.sampling import Sampler

    stream = Sampler(model.engine, model.vocabulary, sampling).stream(context)
    place = stream.context
    piece = ""
    try:
        for piece in stream:
            if output.heat:
                block, place = surprisal.chars_after(model.engine, place, stream.symbols, output.top)
                out.write(_heated(model, block, output.top))
            else:
                out.write(piece)
        if output.null or (is_terminal(1) and not piece.endswith("\n")):  # the shell's prompt begins on a new line
            out.write("\0" if output.null else "\n")
    finally:  # also if Ctrl-C or a closed pipe ends a text without end
        out.close()
        if output.save_state is not None:
            model.save_state(output.save_state, stream.context)
    _note_limit(stream.ended)


def _heated(model: Model, block: CharBlock, top: int) -> str:
    """Return a coloured text, or with `top` one row for each of its characters."""
    if top:
        return score_display.heated_rows(model.vocabulary, block)
    names = map(model.vocabulary.name, block.ids.tolist())
    chars = score_display.characters("", zip(names, block.bits.tolist(), strict=True))
    return "".join(score_display.heated(chars)) + "\x1b[0m"


def _probabilities(model: Model, text: GeneratedText, top: int) -> list[dict[str, Any]]:
    """Return the JSON object of each character of a text."""
    from charlstm.inference import surprisal

    block, _ = surprisal.chars_after(model.engine, text.start, text.symbols, top)
    name = model.vocabulary.name
    found = []
    columns = zip(block.ids.tolist(), block.bits.tolist(), block.best.tolist(), block.shares.tolist(), strict=True)
    for symbol, bits, best, shares in columns:
        row: dict[str, Any] = {"char": name(symbol), "probability": 2**-bits}
        if top:
            row["likeliest"] = [[name(k), share] for k, share in zip(best, shares, strict=True)]
        found.append(row)
    return found


def _note_limit(ended: Ended | None) -> None:
    """Print a note if a text was ended by the limit of greedy sampling."""
    if ended == "limit":
        print_warning(
            f"a text was ended after {GREEDY_LENGTH:,} characters, because a text of the most probable characters may "
            "repeat itself for ever; --length sets another limit"
        )


def _separator(text: str, sampling: SamplingConfig, null: bool) -> str:
    """Return what is written after a text: a newline, unless the text consists of lines and ends with one."""
    return "\0" if null else "" if sampling.lines is not None and text.endswith("\n") else "\n"


def _primes(model: Model, source: str, unknown: Unknown, out: TextOut) -> Iterator[list[str]]:
    """Yield the lines of a file in groups as they are read, without line breaks; flush the output between groups."""
    from charlstm.text import reading

    numbers = itertools.count(1)
    how_read = reading.TextFormat(symbols=model.vocabulary.kind)
    for lines in reading.iter_lines(reading.iter_text([source], how_read)):
        primes = [line.removesuffix("\n") for line in lines]
        yield [known_prime(model.vocabulary, prime, unknown, f"prime {next(numbers)}") for prime in primes]
        out.flush()


def _record(model: Model, sampling: SamplingConfig, text: GeneratedText) -> dict[str, Any]:
    """Return the JSON object of a text."""
    chars = len(text.symbols)
    assert text.log_probability is not None
    length = 0 if text.ended == "document" else sampling.max_length or 0
    settings = {**asdict(sampling), "seed": text.start.seed, "length": length}
    del settings["prime"]
    return {
        "text": text.text,
        "prime": text.prime,
        "chars": chars,
        "unit": model.vocabulary.unit,
        "ended": text.ended,
        "log_probability": text.log_probability,
        **({} if text.log_weight is None else {"log_weight": text.log_weight}),
        "bits_per_char": -text.log_probability / math.log(2) / chars if chars else None,
        "settings": settings,
        "checkpoint": str(model.path),
        "engine": model.engine.description,
    }

"""Options of commands, made from dataclasses, and the groups of options that several commands share.

A parameter of a command that is annotated with `Annotated[Kind, Options()]`, where `Kind` is a dataclass, becomes one
option per field. Type, default, help text, heading and placeholder come from the declaration of the field (see
`charlstm.config.setting`), and the command receives an instance of `Kind`. So each option is declared once, and all
values are checked before the command reads a file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

import typer

from charlstm.cli.console import print_warning, warn_of_unusable_kernels
from charlstm.config import (
    Precision,
    SamplingConfig,
    Setting,
    Unknown,
    check,
    mutually_exclusive,
    parse_duration,
    setting,
    setting_of,
    without_none,
)
from charlstm.errors import Field, UnknownSymbols, UsageError
from charlstm.terminal import escape

if TYPE_CHECKING:
    from charlstm.model import Model
    from charlstm.text.vocabulary import Vocabulary

FLAGS = {  # the flags of the options that have a short form, or a flag that differs from the name of the field
    "as_json": ("--json",),
    "checkpoint": ("--checkpoint", "-c"),
    "escapes": ("--escapes", "-e"),
    "from_": ("--from",),
    "length": ("--length", "-n"),
    "null": ("--null", "-0"),
    "output": ("--output", "-o"),
    "quiet": ("--quiet", "-q"),
    "run": ("--output", "-o"),  # the parameter of the library
    "seconds": ("--time",),
    "temperature": ("--temp", "-t"),
    "unbuffered": ("--unbuffered", "-u"),
}
PARSERS = {"seconds": parse_duration}  # the fields whose option takes a string that is then parsed
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


def flags_of(name: str) -> tuple[str, ...]:
    """Return the flags of the option for a field: `("--seq-len",)` for `seq_len`."""
    return FLAGS.get(name, ("--" + name.replace("_", "-"),))


class Options:
    """The annotation of a command's parameter that is to become one option per field of a dataclass.

    Args:
        kind: the dataclass; None for the annotated type itself. If the annotated type is a TypedDict, the command
            receives a dict with the values that the user gave and no defaults.
        only: the names of the fields; None for all.
        prefix: the start of each option's name, as in `dynamic_rate` for the field `rate`.
        heading: the heading of the options whose declaration has none.
        defaults: defaults that differ from those of the dataclass.
    """

    def __init__(
        self,
        kind: Any = None,
        *,
        only: Sequence[str] | None = None,
        prefix: str = "",
        heading: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind, self.only, self.prefix, self.heading = kind, only, prefix, heading
        self.defaults = dict(defaults or {})

    def parameters(self, annotated: Any) -> dict[str, inspect.Parameter]:
        """Return the parameter of each field by the name of the field."""
        kind = self.kind or annotated
        types = get_type_hints(kind)
        return {
            declared.name: self._parameter(declared, types[declared.name])
            for declared in fields(kind)
            if self.only is None or declared.name in self.only
        }

    def _parameter(self, declared: Any, annotation: Any) -> inspect.Parameter:
        meaning = setting_of(declared)
        base, _ = without_none(annotation)
        if declared.name in PARSERS:
            base = str
        elif get_origin(base) is tuple:
            base = list[get_args(base)[0]]  # type: ignore[misc]
        name = self.prefix + declared.name
        option = typer.Option(
            *flags_of(name),
            help=_help(meaning, self.defaults.get(declared.name, declared.default)),
            metavar=meaning.metavar,
            rich_help_panel=meaning.heading or self.heading,
            show_default=False,
        )
        is_switch = base is bool
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if is_switch else None,
            annotation=Annotated[bool if is_switch else base | None, option],
        )

    def value(self, annotated: Any, values: Mapping[str, Any]) -> Any:
        """Return what the command receives.

        Args:
            annotated: the annotated type.
            values: the value of each field by its name; None, False or an empty list if the user gave none.
        """
        given = {}
        for name, value in values.items():
            if value is None or value is False or value == []:
                continue
            given[name] = (
                PARSERS[name](value) if name in PARSERS else tuple(value) if isinstance(value, list) else value
            )
        return given if is_typeddict(annotated) else annotated(**{**self.defaults, **given})


def _help(meaning: Setting, default: Any) -> str:
    shown = meaning.unset if default is None or default == "" else default
    if shown is None or default is False or default == ():
        return meaning.help
    return f"{meaning.help} [default: {shown}]"


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters that are annotated with `Options` are replaced by their options.

    The attribute `option_names` of the result maps the name of each field to the name of its parameter.
    """
    groups: dict[str, tuple[Options, Any, dict[str, str]]] = {}
    parameters = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        annotated, *others = get_args(parameter.annotation) or (None,)
        group = next((other for other in others if isinstance(other, Options)), None)
        if group is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        made = group.parameters(annotated)
        groups[parameter.name] = group, annotated, {name: option.name for name, option in made.items()}
        parameters += made.values()

    def run(**values: Any) -> None:
        for name, (group, annotated, names) in groups.items():
            values[name] = group.value(
                annotated, {field_name: values.pop(option) for field_name, option in names.items()}
            )
        command(**values)

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    run.option_names = {  # type: ignore[attr-defined]
        field_name: option for _, _, names in groups.values() for field_name, option in names.items()
    }
    return run


CHECKPOINT_HELP = "Run directory or checkpoint file."


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command and how it is computed."""

    checkpoint: Path | None = setting(None, CHECKPOINT_HELP, "CKPT", unset="the newest run")
    precision: Precision = setting("auto", "Precision of the weights: fp32 is exact, int8 is smaller and faster.")
    threads: int | None = setting(None, "Number of CPU threads.", "N", low=1, high=4096, unset="auto")

    def __post_init__(self) -> None:
        check(self, ModelOptions)

    def load(self, path: Path | None = None, *, warn: bool = True) -> Model:
        """Load the model.

        Args:
            path: another checkpoint than `self.checkpoint`.
            warn: warn if the compiled kernels cannot be used.
        """
        from charlstm.model import load

        if warn:
            warn_of_unusable_kernels()
        return load(path or self.checkpoint, precision=self.precision, threads=self.threads)


MAX_CHARS = {
    "setting": Setting("Maximum length of the text, in characters.", low=1, high=2**53, metavar="N", unset="2147483648")
}
UNKNOWN = {"setting": Setting("Characters outside the vocabulary: report an error, skip them or replace them.")}


@dataclass(frozen=True)
class ContextOptions:
    """What the model reads before it generates or predicts."""

    load_state: Path | None = setting(None, "Continue from a state that was saved with the same model.", "FILE")
    escapes: bool = setting(False, r"Decode \n, \t, \\, \xNN and \uNNNN in every TEXT and CHARS.")
    unknown: Unknown = field(default="error", metadata=UNKNOWN)

    def __post_init__(self) -> None:
        check(self, ContextOptions)

    def decoded(self, sampling: SamplingConfig) -> SamplingConfig:
        """Return the sampling options with the escape sequences decoded in every string, if the user asked for that."""
        if not self.escapes:
            return sampling
        return replace(
            sampling,
            prime=unescaped(sampling.prime, "prime"),
            ban=unescaped(sampling.ban, "ban"),
            only=None if sampling.only is None else unescaped(sampling.only, "only"),
            stop=tuple(unescaped(text, "stop") for text in sampling.stop),
        )


Json = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout.")]
CheckpointArgument = Annotated[
    Path | None,
    typer.Argument(metavar="CKPT", help=f"{CHECKPOINT_HELP} [default: the newest run]", show_default=False),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-c", metavar="CKPT", help="Alternative to the argument CKPT.", show_default=False),
]


def checkpoint_of(argument: Path | None, option: Path | None) -> Path | None:
    """Return the checkpoint of a command that takes it as an argument and as an option.

    Raises:
        UsageError: both are given.
    """
    if argument is not None and option is not None:
        raise mutually_exclusive("path", "checkpoint")
    return option if argument is None else argument


def unescaped(text: str, name: str) -> str:
    r"""Return the text with \n, \t, \r, \0, \\, \xNN, \uNNNN and \UNNNNNNNN replaced by their characters.

    Args:
        text: the value of an option.
        name: the field that the option sets.

    Raises:
        UsageError: a backslash is not the start of such a sequence.
    """

    def character(match: re.Match[str]) -> str:
        code = match[1][1:]
        if match[1] in ESCAPES:
            return ESCAPES[match[1]]
        if code and int(code, 16) < 0x110000 and not 0xD800 <= int(code, 16) < 0xE000:
            return chr(int(code, 16))
        raise UsageError(
            Field(name), f" contains the invalid escape sequence '{escape(match[0])}'; write a backslash as \\\\"
        )

    hexadecimal = "x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}"
    return re.sub(rf"\\({hexadecimal}|.|$)", character, text, flags=re.DOTALL)


def known_prime(vocabulary: Vocabulary, prime: str, unknown: Unknown, name: str = "the prime") -> str:
    """Return the prime with unknown characters skipped or replaced, and print a warning if there are any.

    Raises:
        UnknownSymbols: there are unknown characters and `unknown` is 'error'.
    """
    from charlstm.text.vocabulary import format_counts

    try:
        ids, foreign = vocabulary.encode_known(prime, unknown)
    except UnknownSymbols as error:
        raise UnknownSymbols(f"{name}: ", *error.parts) from error
    if not foreign:
        return prime
    done = "skipped" if unknown == "skip" else "replaced"
    print_warning(f"unknown characters of {name}, {done}: {format_counts(foreign)}")
    return vocabulary.decode(ids)

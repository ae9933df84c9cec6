"""Every setting and every default, once. Immutable, checked where it is made, free of heavy imports.

A flag of the command line, a keyword of the Python API and a field here are one name: `--seq-len` is `seq_len`.
A field that is None in `TrainingOptions` is chosen by `recipe` from the text, the budget and the machine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypedDict, TypeVar, get_args

from charlstm.cells import GATES, STATES
from charlstm.errors import UsageError

Cell = Literal["lstm", "peephole", "coupled", "gru", "rnn"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "int8"]
Unknown = Literal["error", "skip", "replace"]  # what to do with a character that is not in the vocabulary
SymbolKind = Literal["chars", "bytes"]  # what a text is cut into
UNITS = {"char": "character", "byte": "byte"}  # one of them, as a person says it
OnDivergence = Literal["rollback", "stop"]

MAX_LAYERS = 64
MAX_HIDDEN = 65_536
MAX_VOCABULARY = 1_114_112  # all code points of Unicode
MAX_REPEAT_WINDOW = 1024  # symbols that a context keeps
MAX_BEST_OF = 4096
LENGTH = 1000  # characters of a text that nothing else ends

_T = TypeVar("_T")


def later(default: _T, *, left_out: bool = False) -> _T:
    """A field that came after the first checkpoints: where a saved config lacks it, `from_json` takes the default.

    Args:
        left_out: where it has the default, `to_json` leaves it out: what does not use it is described as ever.
    """
    return field(default=default, metadata={"later": True, "left_out": left_out})


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model: all that is needed to know the names and shapes of its weights, and when its state begins.

    A model of documents has a symbol that stands between them, `boundary`. Wherever it is read, the state of all layers
    is zero before the step: what comes behind it depends on nothing before it. In a text it is predicted as any other.

    Raises:
        UsageError: a size out of its range, naming the field, what was given and what is allowed.
    """

    vocab_size: int
    hidden: int
    layers: int = 1
    embedding: int = 128
    cell: Cell = "lstm"
    boundary: int | None = later(
        None, left_out=True
    )  # the id of that symbol; None: the state is carried over everything

    def __post_init__(self) -> None:
        _whole("vocab_size", self.vocab_size, 1, MAX_VOCABULARY)
        _whole("hidden", self.hidden, 1, MAX_HIDDEN)
        _whole("layers", self.layers, 1, MAX_LAYERS)
        _whole("embedding", self.embedding, 1, MAX_HIDDEN)
        _one_of("cell", self.cell, get_args(Cell))
        _whole("boundary", self.boundary, 0, self.vocab_size - 1, optional=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight; names as in `torch.nn.LSTM` below `recurrence.`."""
        gates = len(GATES[self.cell]) * self.hidden
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, self.embedding)}
        for layer in range(self.layers):
            inputs = self.embedding if layer == 0 else self.hidden
            shapes[f"recurrence.weight_ih_l{layer}"] = (gates, inputs)
            shapes[f"recurrence.weight_hh_l{layer}"] = (gates, self.hidden)
            shapes[f"recurrence.bias_ih_l{layer}"] = (gates,)
            shapes[f"recurrence.bias_hh_l{layer}"] = (gates,)
            if self.cell == "peephole":
                shapes[f"recurrence.peephole_l{layer}"] = (3, self.hidden)
        shapes["projection.weight"] = (self.vocab_size, self.hidden)
        shapes["projection.bias"] = (self.vocab_size,)
        return shapes

    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def state_shape(self, batch: int) -> tuple[int, int, int, int]:
        """(L, S, B, H): S = 2 for the cells with h and c, in that order, else 1."""
        return self.layers, len(STATES[self.cell]), batch, self.hidden


@dataclass(frozen=True)
class TrainingOptions:
    """What a user may say about a training; None leaves the choice to `recipe.choose`."""

    cell: Cell | None = None
    hidden: int | None = None
    layers: int | None = None
    embedding: int | None = None
    dropout: float | None = None  # on the output of every layer
    forget_bias: float = 1.0
    epochs: float | None = None  # at most one of the three budgets
    steps: int | None = None
    seconds: float | None = None
    batch_size: int | None = None  # parallel streams over the text
    seq_len: int | None = None  # truncated backpropagation through so many characters
    lr: float | None = None  # at its peak; warms up to it, then falls to zero
    warmup: float = 0.02  # share of the budget
    weight_decay: float | None = None
    beta1: float = 0.0  # no momentum: docs/experiments.md says what it cost
    beta2: float = 0.99
    clip: float = 1.0  # global norm of the gradient
    reset: float = 0.01  # chance that a stream's carried state is dropped at a window
    on_divergence: OnDivergence = "rollback"  # to the last good state, with half the rate; or stop with an error
    valid_share: float = 0.1  # the last part of the text, held out; 0 holds out nothing
    valid_chars: int = later(1_000_000)  # of that part, from its start, that a validation scores; 0 is all of it
    validations: int = 20  # how many times in a run the validation part is scored
    sample_chars: int = 160  # shown at each validation; 0 shows none
    patience: int | None = later(None)  # stop after so many validations without a better one
    keep: int = later(0)  # the weights of so many validations, the latest, beside the best and the last
    device: Device = "auto"
    threads: int | None = None  # None: what torch takes, one a core
    seed: int = 1

    def __post_init__(self) -> None:
        if self.cell is not None:
            _one_of("cell", self.cell, get_args(Cell))
        _one_of("device", self.device, get_args(Device))
        _one_of("on_divergence", self.on_divergence, get_args(OnDivergence))
        _whole("hidden", self.hidden, 1, MAX_HIDDEN, optional=True)
        _whole("layers", self.layers, 1, MAX_LAYERS, optional=True)
        _whole("embedding", self.embedding, 1, MAX_HIDDEN, optional=True)
        _whole("steps", self.steps, 1, 2**53, optional=True)
        _whole("batch_size", self.batch_size, 1, 2**20, optional=True)
        _whole("seq_len", self.seq_len, 1, 2**20, optional=True)
        _whole("valid_chars", self.valid_chars, 0, 2**53)
        _whole("validations", self.validations, 1, 10_000)
        _whole("sample_chars", self.sample_chars, 0, 100_000)
        _whole("patience", self.patience, 1, 10_000, optional=True)
        _whole("keep", self.keep, 0, 10_000)
        _whole("threads", self.threads, 1, 4096, optional=True)
        _whole("seed", self.seed, 0, 2**63 - 1)
        _real("dropout", self.dropout, 0, 0.95, optional=True)
        _real("forget_bias", self.forget_bias, -100, 100)
        _real("epochs", self.epochs, 1e-9, 1e9, optional=True)
        _real("seconds", self.seconds, 1e-3, 1e9, optional=True)
        _real("lr", self.lr, 0, 1e30, optional=True)
        _real("warmup", self.warmup, 0, 1)
        _real("weight_decay", self.weight_decay, 0, 1e6, optional=True)
        _real("beta1", self.beta1, 0, 0.999999)
        _real("beta2", self.beta2, 0, 0.999999)
        _real("clip", self.clip, 1e-9, 1e9)
        _real("reset", self.reset, 0, 1)
        _real("valid_share", self.valid_share, 0, 0.9)
        if sum(budget is not None for budget in (self.epochs, self.steps, self.seconds)) > 1:
            raise UsageError("a run has one budget: give only one of --epochs, --steps and --time")


@dataclass(frozen=True)
class TrainingConfig(TrainingOptions):
    """The options with every choice made; of the three budgets exactly one is not None."""

    cell: Cell = field(kw_only=True)
    hidden: int = field(kw_only=True)
    layers: int = field(kw_only=True)
    embedding: int = field(kw_only=True)
    dropout: float = field(kw_only=True)
    batch_size: int = field(kw_only=True)
    seq_len: int = field(kw_only=True)
    lr: float = field(kw_only=True)
    weight_decay: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = ("cell", "hidden", "layers", "embedding", "dropout", "batch_size", "seq_len", "lr", "weight_decay")
        if missing := [flag(name) for name in chosen if getattr(self, name) is None]:
            raise UsageError(f"a training needs a value for {', '.join(missing)}")
        if self.epochs is None and self.steps is None and self.seconds is None:
            raise UsageError("a training needs a budget: --epochs, --steps or --time")


@dataclass(frozen=True)
class SamplingConfig:
    """How text is drawn, where it begins and where it ends. docs/sampling.md defines each part and their order.

    Raises:
        UsageError: a value out of its range, such as a temperature that is negative or not finite.
    """

    temperature: float = 0.8  # 0 is greedy
    length: int | None = None  # most characters; 0 is without end; None: LENGTH, or 0 where `stop` or `lines` end it
    prime: str = ""  # text that the model reads first; not printed
    seed: int | None = None  # None draws a fresh one
    count: int = 1  # how many texts
    top_k: int = 0  # only the k likeliest; 0 is all
    top_p: float = 1.0  # only the likeliest that have this probability together
    min_p: float = 0.0  # only what is at least so likely as this share of the likeliest
    typical: float = 1.0  # only those of a surprise nearest to the entropy that have this probability together
    repeat_penalty: float = 1.0  # on the logits of what stands among the last `repeat_window` characters
    repeat_window: int = 64
    ban: str = ""  # characters that are never drawn
    only: str | None = None  # characters of which alone the text is made
    stop: tuple[str, ...] = ()  # texts that end the text where one of them is complete
    keep_stop: bool = False  # as part of the text
    lines: int | None = None  # ends with so many lines
    best_of: int = 1  # each text is the best of so many, by the model's own score
    raw: bool = False  # of a model of bytes: any, not only what makes UTF-8

    def __post_init__(self) -> None:
        _real("temp", self.temperature, 0, math.inf)
        if math.isinf(self.temperature):
            raise UsageError("--temp must be a finite number of at least 0, not inf")
        _whole("length", self.length, 0, 2**53, optional=True)
        _whole("seed", self.seed, 0, 2**63 - 1, optional=True)
        _whole("count", self.count, 1, 1_000_000)
        _whole("top_k", self.top_k, 0, MAX_VOCABULARY)
        _real("top_p", self.top_p, 0, 1)
        _real("min_p", self.min_p, 0, 1)
        _real("typical", self.typical, 0, 1)
        _real("repeat_penalty", self.repeat_penalty, 0.01, 100)
        _whole("repeat_window", self.repeat_window, 1, MAX_REPEAT_WINDOW)
        _whole("lines", self.lines, 1, 2**53, optional=True)
        _whole("best_of", self.best_of, 1, MAX_BEST_OF)
        if isinstance(self.stop, str):
            raise UsageError(f"stop wants a tuple of texts, not the text {_show(self.stop)}")
        for text in self.stop:
            if not (isinstance(text, str) and text):
                raise UsageError(f"--stop wants texts of one character or more, not {_show(text)}")
        if self.keep_stop and not self.stop:
            raise UsageError("--keep-stop makes sense with --stop only")

    @property
    def most(self) -> int | None:
        """The most characters of a text; None is without end."""
        if self.length is None:
            return None if self.stop or self.lines is not None else LENGTH
        return self.length or None

    @property
    def ends(self) -> bool:
        """Whether anything ends the text."""
        return self.most is not None or bool(self.stop) or self.lines is not None


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingConfig` that functions of the public API pass on as `**options`."""

    top_k: int
    top_p: float
    min_p: float
    typical: float
    repeat_penalty: float
    repeat_window: int
    ban: str
    only: str | None
    stop: tuple[str, ...]
    keep_stop: bool
    lines: int | None
    best_of: int
    raw: bool


@dataclass(frozen=True)
class DynamicConfig:
    """How a model learns while it is scored.

    Raises:
        UsageError: a value out of its range.
    """

    rate: float = 5e-4  # of the normalised gradient; 0 learns nothing
    decay: float = 3e-3  # share of the way back to the trained weights, at each update
    segment: int = 32  # characters that are scored before each update

    def __post_init__(self) -> None:
        _real("dynamic_rate", self.rate, 0, 1e3)
        _real("dynamic_decay", self.decay, 0, 1)
        _whole("dynamic_segment", self.segment, 1, 2**20)


def parse_duration(text: str) -> float:
    """Seconds in '90s', '3m', '1h', '1h30m' or a bare number of seconds.

    Raises:
        UsageError: anything else, and a duration of nothing.
    """
    match = re.fullmatch(r"\s*(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?\s*", text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total > 0:
        raise UsageError(f"--time wants a duration such as 90s, 3m or 1h30m, not {text!r}")
    return total


def to_json(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass, ready for JSON."""
    unused = {f.name: f.default for f in fields(config) if f.metadata.get("left_out")}
    return {name: value for name, value in asdict(config).items() if name not in unused or value != unused[name]}


def to_toml(options: TrainingOptions, **others: str | None) -> str:
    """The options that are not None, a line each, under the names of their flags: what `train --config` reads.

    Args:
        **others: of the command line that are no fields here: `valid="dev.txt"`.
    """
    known = {name: value for name, value in {**asdict(options), **others}.items() if value is not None}
    names = {name: "time" if name == "seconds" else flag(name).lstrip("-") for name in known}
    return "".join(f"{names[name]} = {json.dumps(value)}\n" for name, value in known.items())


def from_json(kind: type[_T], values: object) -> _T:
    """The config of `kind` with these values: every field there but those of `later`, none besides, each in its range.

    Raises:
        UsageError: a field that is missing, unknown or out of range.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{kind.__name__} wants an object, found {type(values).__name__}")
    found = {f.name: f.metadata.get("later", False) for f in fields(kind)}  # type: ignore[arg-type]
    if missing := [name for name, is_later in found.items() if name not in values and not is_later]:
        raise UsageError(f"{kind.__name__} lacks {', '.join(missing)}")
    if unknown := [ascii(name) for name in values if name not in found]:
        raise UsageError(f"{kind.__name__} has no field {', '.join(unknown)[:200]}")
    return kind(**values)


def flag(name: str) -> str:
    """The option a field is known by: 'seq_len' → '--seq-len'."""
    return "--" + name.replace("_", "-")


def _whole(name: str, value: object, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{flag(name)} must be a whole number from {low} to {high}, not {_show(value)}")


def _real(name: str, value: object, low: float, high: float, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        bounds = f"of at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise UsageError(f"{flag(name)} must be a number {bounds}, not {_show(value)}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{flag(name)} must be one of {', '.join(allowed)}, not {_show(value)}")


def _show(value: object) -> str:
    return ascii(value)[:60]

"""The configuration of a model, of a training run and of sampling: immutable dataclasses, validated when created.

Each option is declared once, by its field: type, default, range, help text and heading. From that declaration come the
check of its value, the keyword of the Python API, the option and the environment variable of the command line, and the
key of a configuration file. In `TrainingOptions` None means that `training.defaults.choose` selects the value.

This module imports nothing that is slow to import.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from charlstm.cells import GATES, STATES
from charlstm.errors import Field, UsageError

Cell = Literal["lstm", "peephole", "coupled", "gru", "rnn"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "int8"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]  # of `train`
TrainingPrecision = Literal["fp32", "bf16"]  # type that the operands of the products of a training step have
Unknown = Literal["error", "skip", "replace"]  # how to handle a character that is not in the vocabulary
SymbolKind = Literal["chars", "bytes"]  # the symbols that a text is split into
UNITS = {"char": "character", "byte": "byte"}  # the unit of a symbol -> its name in messages
OnDivergence = Literal["rollback", "stop"]

MAX_LAYERS = 64
MAX_HIDDEN = 65_536
MAX_VOCABULARY = 1_114_112  # the number of Unicode code points
MAX_REPEAT_WINDOW = 1024  # the number of recent symbols that a context stores
MAX_BEST_OF = 4096
MAX_SECONDS = 1e9
LENGTH = 1000  # the default length of a text, in characters, if nothing else ends it
GREEDY_LENGTH = 10_000  # the same for a greedy text that something else may end, but need not

_T = TypeVar("_T")


@dataclass(frozen=True)
class Setting:
    """The declaration of a config field, beside its type and its default.

    Attributes:
        help: what the field controls, in one sentence.
        low: the smallest number allowed.
        high: the largest number allowed; for infinity, every finite number.
        heading: the group under which the command line lists the option.
        metavar: the placeholder for the value, such as N; None for a choice or a switch.
        unset: what None means, such as "auto".
        later: whether the field was added after the first checkpoints; `from_json` uses the default if it is missing.
        left_out: whether `to_json` leaves the field out if it has its default, so that older files stay the same.
    """

    help: str = ""
    low: float | None = None
    high: float | None = None
    heading: str | None = None
    metavar: str | None = None
    unset: str | None = None
    later: bool = False
    left_out: bool = False


def setting(default: _T, help: str = "", metavar: str | None = None, **declared: Any) -> _T:
    """Declare a field of a config dataclass.

    Args:
        default: the default of the field.
        help: as in `Setting`.
        metavar: as in `Setting`.
        **declared: the other attributes of `Setting`.
    """
    return field(default=default, metadata={"setting": Setting(help, metavar=metavar, **declared)})


def later(default: _T) -> _T:
    """Declare a field that was added after the first checkpoints; `from_json` uses the default if it is missing."""
    return setting(default, later=True)


def setting_of(declared: Any) -> Setting:
    """Return the declaration of a dataclass field; an empty one if the field has none."""
    found: Setting = declared.metadata.get("setting", Setting())
    return found


def required(low: float, high: float) -> Mapping[str, Setting]:
    """Return the metadata of a field without a default that holds a number from `low` to `high`."""
    return {"setting": Setting(low=low, high=high)}


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a model: it determines the name and shape of every weight.

    A model of several documents has a boundary symbol between them. Before the step that reads the boundary, the state
    of all layers is set to zero, so that nothing after a boundary depends on anything before it. The model predicts the
    boundary like any other symbol.

    Attributes:
        vocab_size: V, the number of symbols.
        hidden: H, the hidden units per layer.
        layers: L, the number of recurrent layers.
        embedding: E, the size of the symbol embedding.
        cell: the recurrent cell of every layer.
        boundary: the id of the boundary symbol; None if the text is one document.

    Raises:
        UsageError: a value is outside its range.
    """

    vocab_size: int = field(metadata=required(1, MAX_VOCABULARY))
    hidden: int = field(metadata=required(1, MAX_HIDDEN))
    layers: int = setting(1, low=1, high=MAX_LAYERS)
    embedding: int = setting(128, low=1, high=MAX_HIDDEN)
    cell: Cell = "lstm"
    boundary: int | None = setting(None, low=0, high=MAX_VOCABULARY - 1, later=True, left_out=True)

    def __post_init__(self) -> None:
        check(self, ModelConfig)
        if self.boundary is not None and self.boundary >= self.vocab_size:
            raise _invalid("boundary", self.boundary, f"a whole number from 0 to {self.vocab_size - 1}")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight by its name; the names below `recurrence.` are those of `torch.nn.LSTM`."""
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
        """Return the number of parameters of the model."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def state_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape (L, S, B, H) of the state; S is 2 for cells with h and c, in that order, else 1."""
        return self.layers, len(STATES[self.cell]), batch, self.hidden


_MODEL = "Model"
_BUDGET = "Budget (mutually exclusive)"
_OPTIMIZATION = "Optimization"
_VALIDATION = "Validation and checkpoints"
_HARDWARE = "Hardware"


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training run, as the user gives them.

    None leaves the choice to `training.defaults.choose`. At most one of the budgets `epochs`, `steps` and `seconds` is
    given. The help text of each field is in its declaration.

    Raises:
        UsageError: a value is outside its range, or more than one budget is given.
    """

    cell: Cell | None = setting(None, "Recurrent cell of every layer.", heading=_MODEL, unset="lstm")
    hidden: int | None = setting(
        None, "Number of hidden units per layer.", "N", low=1, high=MAX_HIDDEN, heading=_MODEL, unset="auto"
    )
    layers: int | None = setting(
        None, "Number of recurrent layers.", "N", low=1, high=MAX_LAYERS, heading=_MODEL, unset="auto"
    )
    embedding: int | None = setting(
        None, "Size of the character embedding.", "N", low=1, high=MAX_HIDDEN, heading=_MODEL, unset="auto"
    )
    dropout: float | None = setting(
        None, "Dropout probability on the output of each layer.", "P", low=0, high=0.95, heading=_MODEL, unset="auto"
    )
    forget_bias: float = setting(1.0, "Initial bias of the forget gates.", "X", low=-100, high=100, heading=_MODEL)
    memory_length: int | None = setting(
        None,
        "Initial memory length, in characters: sets the biases of the forget and input gates.",
        "N",
        low=2,
        high=2**20,
        heading=_MODEL,
        unset="by the forget bias",
        later=True,
        left_out=True,
    )
    epochs: float | None = setting(
        None, "Number of passes over the training text.", "X", low=1e-9, high=1e9, heading=_BUDGET, unset="none"
    )
    steps: int | None = setting(
        None, "Number of weight updates.", "N", low=1, high=2**53, heading=_BUDGET, unset="none"
    )
    seconds: float | None = setting(
        None,
        "Training time, such as 90s, 3m or 1h30m.",
        "TIME",
        low=1e-3,
        high=MAX_SECONDS,
        heading=_BUDGET,
        unset="4m",
    )
    batch_size: int | None = setting(
        None, "Number of streams trained in parallel.", "N", low=1, high=2**20, heading=_OPTIMIZATION, unset="auto"
    )
    seq_len: int | None = setting(
        None,
        "Length of truncated backpropagation, in characters.",
        "N",
        low=1,
        high=2**20,
        heading=_OPTIMIZATION,
        unset="auto",
    )
    lr: float | None = setting(
        None,
        "Peak learning rate; it is reached after the warmup and then decays to 0.",
        "X",
        low=0,
        high=1e30,
        heading=_OPTIMIZATION,
        unset="auto",
    )
    warmup: float = setting(
        0.02, "Fraction of the budget used for learning-rate warmup.", "P", low=0, high=1, heading=_OPTIMIZATION
    )
    weight_decay: float | None = setting(
        None, "Weight decay of AdamW.", "X", low=0, high=1e6, heading=_OPTIMIZATION, unset="auto"
    )
    beta1: float = setting(  # 0 is no momentum; docs/experiments.md reports the comparison
        0.0, "Decay rate of AdamW's first moment.", "P", low=0, high=0.999999, heading=_OPTIMIZATION
    )
    beta2: float = setting(
        0.99, "Decay rate of AdamW's second moment.", "P", low=0, high=0.999999, heading=_OPTIMIZATION
    )
    clip: float = setting(1.0, "Maximum global norm of the gradient.", "X", low=1e-9, high=1e9, heading=_OPTIMIZATION)
    reset: float = setting(
        0.01,
        "Probability that a stream's state is set to zero before a window.",
        "P",
        low=0,
        high=1,
        heading=_OPTIMIZATION,
    )
    on_divergence: OnDivergence = setting(
        "rollback",
        "What to do when the loss becomes NaN or infinite: roll back and halve the learning rate, or stop.",
        heading=_OPTIMIZATION,
    )
    valid_share: float = setting(
        0.1,
        "Fraction of the text, from its end, held out for validation; 0 disables validation.",
        "P",
        low=0,
        high=0.9,
        heading=_VALIDATION,
    )
    valid_chars: int = setting(
        1_000_000,
        "Maximum number of held-out characters scored per validation; 0 scores all.",
        "N",
        low=0,
        high=2**53,
        heading=_VALIDATION,
        later=True,
    )
    validations: int = setting(
        20, "Number of validations during the run.", "N", low=1, high=10_000, heading=_VALIDATION
    )
    sample_chars: int = setting(
        160,
        "Length of the sample shown at each validation; 0 shows none.",
        "N",
        low=0,
        high=100_000,
        heading=_VALIDATION,
    )
    patience: int | None = setting(
        None,
        "Stop after N validations without improvement.",
        "N",
        low=1,
        high=10_000,
        heading=_VALIDATION,
        unset="none",
        later=True,
    )
    keep: int = setting(
        0,
        "Number of recent validation checkpoints to keep, in addition to the best and the last.",
        "N",
        low=0,
        high=10_000,
        heading=_VALIDATION,
        later=True,
    )
    device: Device = setting("auto", "Device to train on.", heading=_HARDWARE)
    precision: PrecisionChoice = setting(
        "auto",
        "Precision of the matrix products; bf16 stores weights and sums in fp32. auto is bf16 where a measurement at "
        "the start shows that it is faster, and fp32 if the budget is in steps or epochs.",
        heading=_HARDWARE,
        later=True,
    )
    threads: int | None = setting(
        None, "Number of CPU threads.", "N", low=1, high=4096, heading=_HARDWARE, unset="one per core"
    )
    seed: int = setting(
        1,
        "Random seed; the same seed and options give the same model.",
        "N",
        low=0,
        high=2**63 - 1,
        heading=_OPTIMIZATION,
    )

    def __post_init__(self) -> None:
        check(self, TrainingOptions)
        budgets = [Field(name) for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise mutually_exclusive(*budgets)
        if self.memory_length is not None:
            if self.forget_bias != TrainingOptions.forget_bias:
                raise mutually_exclusive("forget_bias", "memory_length")
            if self.cell == "rnn":
                raise UsageError(Field("memory_length"), " requires a cell with gates, not ", Field("cell"), " rnn")


BUDGETS = ("epochs", "steps", "seconds")


@dataclass(frozen=True)
class TrainingConfig(TrainingOptions):
    """The options of a training run with every value selected; exactly one of the three budgets is not None.

    Raises:
        UsageError: a value is missing or outside its range.
    """

    cell: Cell = field(kw_only=True)
    hidden: int = field(kw_only=True)
    layers: int = field(kw_only=True)
    embedding: int = field(kw_only=True)
    dropout: float = field(kw_only=True)
    batch_size: int = field(kw_only=True)
    seq_len: int = field(kw_only=True)
    lr: float = field(kw_only=True)
    weight_decay: float = field(kw_only=True)
    precision: TrainingPrecision = setting("fp32", later=True, left_out=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in get_args(TrainingPrecision):
            raise UsageError("the training configuration has no value for ", Field("precision"))
        for name in ("cell", "hidden", "layers", "embedding", "dropout", "batch_size", "seq_len", "lr", "weight_decay"):
            if getattr(self, name) is None:
                raise UsageError("the training configuration has no value for ", Field(name))
        if all(getattr(self, name) is None for name in BUDGETS):
            epochs, steps, seconds = map(Field, BUDGETS)
            raise UsageError("the training configuration has no budget: give ", epochs, ", ", steps, " or ", seconds)


_FILTERS = "Character selection"
_END = "End of the text (whichever comes first)"


@dataclass(frozen=True)
class SamplingConfig:
    """How a text is generated, where it begins and where it ends; docs/sampling.md defines each step and their order.

    The help text of each field is in its declaration.

    Raises:
        UsageError: a value is outside its range, such as a temperature that is negative or infinite.
    """

    temperature: float = setting(
        0.8,
        "Sampling temperature; 0 always takes the most probable character.",
        "X",
        low=0,
        high=math.inf,
        heading=_FILTERS,
    )
    length: int | None = setting(
        None,
        "Maximum number of characters; 0 means no limit.",
        "N",
        low=0,
        high=2**53,
        heading=_END,
        unset=f"{LENGTH} if nothing else ends the text",
    )
    prime: str = setting("", "Text that the model reads first; it is not part of the output.", "TEXT")
    seed: int | None = setting(
        None, "Random seed; the same seed gives the same text.", "N", low=0, high=2**63 - 1, unset="random"
    )
    count: int = setting(1, "Number of texts to generate.", "N", low=1, high=1_000_000)
    top_k: int = setting(
        0,
        "Sample from the N most probable characters; 0 disables this filter.",
        "N",
        low=0,
        high=MAX_VOCABULARY,
        heading=_FILTERS,
    )
    top_p: float = setting(
        1.0,
        "Sample from the most probable characters that together have probability P.",
        "P",
        low=0,
        high=1,
        heading=_FILTERS,
    )
    min_p: float = setting(
        0.0,
        "Exclude characters less than P times as probable as the most probable one.",
        "P",
        low=0,
        high=1,
        heading=_FILTERS,
    )
    typical: float = setting(
        1.0,
        "Sample from the characters whose surprisal is closest to the entropy, up to total probability P.",
        "P",
        low=0,
        high=1,
        heading=_FILTERS,
    )
    repeat_penalty: float = setting(
        1.0,
        "Penalty on recent characters: positive logits are divided by X, negative ones multiplied.",
        "X",
        low=0.01,
        high=100,
        heading=_FILTERS,
    )
    repeat_window: int = setting(
        64,
        "Number of recent characters to which the repeat penalty applies.",
        "N",
        low=1,
        high=MAX_REPEAT_WINDOW,
        heading=_FILTERS,
    )
    ban: str = setting("", "Never generate these characters.", "CHARS", heading=_FILTERS, unset="none")
    only: str | None = setting(None, "Generate only these characters.", "CHARS", heading=_FILTERS, unset="all")
    match: str | None = setting(
        None,
        "Generate only texts that match this regular expression of Python as a whole.",
        "REGEX",
        heading=_END,
        unset="any text",
    )
    stop: tuple[str, ...] = setting(
        (), "End the text before this string; repeat the option for several strings.", "TEXT", heading=_END
    )
    keep_stop: bool = setting(False, "Include the stop string in the output.", heading=_END)
    lines: int | None = setting(None, "End the text after N lines.", "N", low=1, high=2**53, heading=_END, unset="none")
    best_of: int = setting(
        1,
        "Generate N candidates per text and keep the one that the model finds most probable.",
        "N",
        low=1,
        high=MAX_BEST_OF,
    )
    raw: bool = setting(
        False, "Do not escape control characters on a terminal; let a model of bytes generate invalid UTF-8."
    )

    def __post_init__(self) -> None:
        check(self, SamplingConfig)
        if isinstance(self.stop, str):
            raise UsageError(Field("stop"), f" must be a tuple of strings, got the string {_show(self.stop)}")
        for text in self.stop:
            if not (isinstance(text, str) and text):
                raise _invalid("stop", text, "a string of at least one character")
        if self.keep_stop and not self.stop:
            raise requires("keep_stop", "stop")
        if self.match is not None and (self.stop or self.lines is not None):
            raise mutually_exclusive("match", "stop" if self.stop else "lines")

    @property
    def max_length(self) -> int | None:
        """The maximum number of characters of a text; None means no limit."""
        if self.length is None:
            return None if self.stop or self.lines is not None else LENGTH
        return self.length or None

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable character is always taken, so that a text may repeat itself for ever."""
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0

    @property
    def has_end(self) -> bool:
        """Whether anything ends the text."""
        return self.max_length is not None or bool(self.stop) or self.lines is not None


@dataclass(frozen=True)
class DynamicConfig:
    """How a model learns from a text while it scores the text.

    Raises:
        UsageError: a value is outside its range.
    """

    rate: float = setting(5e-4, "Size of each update; 0 disables learning.", "X", low=0, high=1e3)
    decay: float = setting(
        3e-3, "Fraction by which each update returns the weights to their trained values.", "P", low=0, high=1
    )
    segment: int = setting(32, "Number of characters scored before each update.", "N", low=1, high=2**20)

    def __post_init__(self) -> None:
        check(self, DynamicConfig)


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingConfig` that have no parameter of their own in `Model.sample`, as keyword arguments."""

    top_k: int
    top_p: float
    min_p: float
    typical: float
    repeat_penalty: float
    repeat_window: int
    ban: str
    only: str | None
    match: str | None
    stop: tuple[str, ...]
    keep_stop: bool
    lines: int | None
    best_of: int
    raw: bool


class TrainingKeywords(TypedDict, total=False):
    """The fields of `TrainingOptions`, as keyword arguments."""

    cell: Cell | None
    hidden: int | None
    layers: int | None
    embedding: int | None
    dropout: float | None
    forget_bias: float
    memory_length: int | None
    epochs: float | None
    steps: int | None
    seconds: float | None
    batch_size: int | None
    seq_len: int | None
    lr: float | None
    warmup: float
    weight_decay: float | None
    beta1: float
    beta2: float
    clip: float
    reset: float
    on_divergence: OnDivergence
    valid_share: float
    valid_chars: int
    validations: int
    sample_chars: int
    patience: int | None
    keep: int
    device: Device
    precision: PrecisionChoice
    threads: int | None
    seed: int


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as '90s', '3m', '1h', '1h30m', or of a plain number of seconds.

    Raises:
        UsageError: the text is not a duration, or the duration is not positive or too long.
    """
    match = re.fullmatch(r"\s*(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?\s*", text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total <= MAX_SECONDS:
        raise _invalid("seconds", text, f"a duration such as 90s, 3m or 1h30m, and at most {MAX_SECONDS:.0f} seconds")
    return total


def to_json(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass as a JSON object."""
    unused = {f.name: f.default for f in fields(config) if setting_of(f).left_out}
    return {name: value for name, value in asdict(config).items() if name not in unused or value != unused[name]}


def to_toml(options: TrainingOptions, **others: str | None) -> str:
    """Return the options that are not None as TOML, one per line, in the form that the command line reads.

    Args:
        options: the options of a training run.
        **others: options that are not fields of `options`, such as `valid="dev.txt"`.
    """
    known = {name: value for name, value in {**asdict(options), **others}.items() if value is not None}
    keys = {name: "time" if name == "seconds" else name.replace("_", "-") for name in known}
    return "".join(f"{keys[name]} = {json.dumps(value)}\n" for name, value in known.items())


def from_json(kind: type[_T], values: object) -> _T:
    """Return the config of type `kind` with these values.

    Args:
        kind: a config dataclass.
        values: a mapping with every field of `kind`, except that fields declared with `later` may be missing.

    Raises:
        UsageError: a field is missing, unknown or outside its range.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{kind.__name__} must be an object, got {type(values).__name__}")
    declared = {f.name: setting_of(f).later for f in fields(kind)}  # type: ignore[arg-type]
    if missing := [name for name, is_later in declared.items() if name not in values and not is_later]:
        raise UsageError(f"{kind.__name__} lacks {', '.join(missing)}")
    if unknown := [ascii(name) for name in values if name not in declared]:
        raise UsageError(f"{kind.__name__} has no field {', '.join(unknown)[:200]}")
    return kind(**values)


def check(config: object, kind: type[Any]) -> None:
    """Check the fields that `kind` declares against their types and ranges.

    Args:
        config: an instance of `kind` or of a subclass.
        kind: a config dataclass.

    Raises:
        UsageError: a number is outside its range, or a value is not one of its choices.
    """
    for name, declared, base, is_optional in _checks(kind):  # type: ignore[arg-type]
        value = getattr(config, name)
        if value is None and is_optional:
            continue
        if get_origin(base) is Literal:
            if value not in get_args(base):
                raise _invalid(name, value, f"one of {', '.join(get_args(base))}")
        elif declared.low is not None and declared.high is not None:
            numbers = (int,) if base is int else (int, float)
            is_number = isinstance(value, numbers) and not isinstance(value, bool)
            if not (is_number and declared.low <= value <= declared.high and value < math.inf):
                raise _invalid(name, value, _range(base, declared.low, declared.high))


@functools.cache
def _checks(kind: type[Any]) -> list[tuple[str, Setting, Any, bool]]:
    """Return the name, declaration, type without None and whether None is allowed, for each field of `kind`."""
    types = get_type_hints(kind)
    found = []
    for declared in fields(kind):
        base, is_optional = without_none(types[declared.name])
        found.append((declared.name, setting_of(declared), base, is_optional))
    return found


def without_none(annotation: Any) -> tuple[Any, bool]:
    """Return a type without None, and whether it had None."""
    arguments = get_args(annotation)
    if NoneType not in arguments:
        return annotation, False
    [base] = [argument for argument in arguments if argument is not NoneType]
    return base, True


def _range(base: Any, low: float, high: float) -> str:
    if base is int:
        return f"a whole number from {low} to {high}"
    return f"a finite number of at least {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"


def _invalid(name: str, value: object, allowed: str) -> UsageError:
    return UsageError(Field(name), f" must be {allowed}, got {_show(value)}", value=value, allowed=allowed)


def mutually_exclusive(*names: str) -> UsageError:
    """Return the error for options of which at most one may be given."""
    parts = [part for name in names for part in (", ", Field(name))][1:]
    if len(names) > 1:
        parts[-2] = " and "
    return UsageError(*parts, " are mutually exclusive: give one of them")


def requires(name: str, other: str) -> UsageError:
    """Return the error for an option that has no meaning without another."""
    return UsageError(Field(name), " requires ", Field(other))


def _show(value: object) -> str:
    return ascii(value)[:60]

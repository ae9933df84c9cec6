"""Everything that is measured about a model and a text, as one object: `Model.explain` returns it.

Letters: T time, L layers, G gates of the cell in the order of `cells.GATES`, H hidden, K steps back.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from charlstm import terminal
from charlstm.cells import GATES, STATES
from charlstm.config import UNITS, ModelConfig, Unknown
from charlstm.errors import CharlstmError, CheckpointError, CorpusError, Field, UsageError
from charlstm.explain import ablation, context, copies, gradients, ngram, saturation, trace, units
from charlstm.explain.ablation import Ablation
from charlstm.explain.context import ContextCurve
from charlstm.explain.copies import Copy
from charlstm.explain.features import features
from charlstm.explain.gradients import Connectivity, GradientNorms
from charlstm.explain.learning import Learning, learning
from charlstm.explain.ngram import NgramComparison
from charlstm.explain.saturation import Saturation
from charlstm.explain.trace import Ids, Predictions, Trace
from charlstm.explain.units import Units
from charlstm.inference.engine import Engine
from charlstm.runs import BEST, LAST
from charlstm.text import corpus
from charlstm.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from charlstm.model import Model

TOP = 5
LAGS = 300
GRADIENT_POSITIONS, MIN_GRADIENT_POSITIONS = 48, 12
CONNECTED, MIN_CONNECTED, CONNECTED_LAGS = 320, 40, 50
LARGE = 1_000_000  # parameters above which gradients are computed from fewer positions
COPY_SAMPLES, COPY_LENGTH = 3, 1000
MAX_TRAINING = 4_000_000  # symbols of the training text that n-gram models and the copy meter read
TRACED_UNITS = 8


@dataclass(frozen=True)
class CopiedSample:
    """A generated text and its longest part that occurs in the training text.

    Attributes:
        text: the generated text.
        temperature: the temperature of its sampling.
        copy: where the copied part is, in symbols.
        copied: the copied part.
    """

    text: str
    temperature: float
    copy: Copy
    copied: str


@dataclass(frozen=True)
class Explanation:
    """What a model does with a text.

    Parts that need more than is there (a longer text, the training text, the directory of the run) are None, and
    `missing` says why.

    Attributes:
        name: the name of the model.
        config: the shape of the model.
        vocabulary: its symbols.
        text: the text; a boundary between documents as the user wrote it.
        trace: the activations at each of the T symbols: gates (T, L, G, H), h and c (T, L, H), ids (T,).
        predictions: surprisal in bits (T,) and the most probable next symbols (T, 5).
        units: the names and scores of the units (L, H).
        saturation: how often gates are closed and open (L, gates, H), and the memory length of the units (L, H).
        gradients: norms of gradients by lag, of this model first and then of the models beside it.
        context: surprisal by length of the context, of this model first and then of the models beside it.
        connectivity: the influence of earlier symbols on a prediction, for the first symbols of the text.
        ablation: the cost of switching off units and gates.
        ngrams: the comparison with n-gram models of the training text.
        learning: the course of the training run.
        copies: generated texts with their longest parts that occur in the training text.
        missing: name of a part that is None → the reason in one sentence.
    """

    name: str
    config: ModelConfig
    vocabulary: Vocabulary
    text: str
    trace: Trace
    predictions: Predictions
    units: Units | None
    saturation: Saturation
    gradients: tuple[GradientNorms, ...]
    context: tuple[ContextCurve, ...]
    connectivity: Connectivity
    ablation: Ablation
    ngrams: NgramComparison | None
    learning: Learning | None
    copies: tuple[CopiedSample, ...] | None
    missing: Mapping[str, str]

    @property
    def bits_per_char(self) -> float:
        """The mean surprisal of the text in bits."""
        return float(np.nanmean(self.predictions.bits))

    def to_json(self, traced_units: int = TRACED_UNITS) -> dict[str, Any]:
        """Return the explanation as a JSON object.

        A number that is NaN or infinite is null. `bytes` below is base64 of one byte per value.

        Args:
            traced_units: number of units whose activations are included: the units with the best names, then those
                with the largest cost of ablation.

        Returns:
            An object with the keys

            * version: 1.
            * name, text, unit: the name of the model, the text, and 'char' or 'byte'.
            * ids: [T] the symbols of the text.
            * model: cell, layers, hidden, embedding, gates (names in order), states (names in order), boundary (id or
              null).
            * bits_per_char, bits: mean surprisal, and [T] that of each symbol, null for the first.
            * top: ids [T][N] and shares [T][N] of the most probable symbols after each symbol.
            * units: features (all names), strong (0.7), strong_share, chance (of any unit), shifts, count (L · H), and
              named: a list of {layer, unit, feature, quantity ('h' or 'c'), correlation, score, chance}, the best
              first. Or null.
            * traces: a list of {layer, unit, gates, h, c}. gates is bytes (G, T) in the order of model.gates, h and c
              (tanh of the cell state; null without one) are bytes (T). The value is byte / 127.5 − 1.
            * saturation: gates, closed and open [L][gates][H], memory [L][H] or null.
            * gradients: a list of {name, lags [K + 1], positions [K + 1], h, c, path, product}; the last four are
              [K + 1][L][3] (quartiles) or null.
            * context: a list of {name, context, bits_per_char, standard_error, full_bits_per_char}.
            * connectivity: positions [M], lags (K + 1) and values, which is bytes (M, K + 1); the value is byte / 255.
            * ablation: units [L][H], unit_chars, gates, gate_costs [L][gates][2], gate_chars, ranking [[layer, unit]].
            * ngrams: orders, train_chars, bits_per_char [O + 1], kinds, kind_count, kind_bits [K][O + 1], distances: a
              list of {name, most, count, bits}. Or null.
            * learning: validations: a list of {step, seconds, valid_bits_per_char, train_bits_per_char, is_best,
              sample}; training: a list of [step, bits, learning rate]; kept: a list of {step, file}. Or null.
            * copies: a list of {text, temperature, length, start, found_at, copied}. Or null.
            * missing: part → reason.
        """
        return {
            "version": 1,
            "name": self.name,
            "text": self.text,
            "unit": self.vocabulary.unit,
            "ids": self.trace.ids.tolist(),
            "model": {
                "cell": self.config.cell,
                "layers": self.config.layers,
                "hidden": self.config.hidden,
                "embedding": self.config.embedding,
                "gates": list(GATES[self.config.cell]),
                "states": list(STATES[self.config.cell]),
                "boundary": self.config.boundary,
            },
            "bits_per_char": _rounded(self.bits_per_char),
            "bits": _decimals(self.predictions.bits),
            "top": {"ids": self.predictions.top_ids.tolist(), "shares": _decimals(self.predictions.top_shares)},
            "units": None if self.units is None else _units_json(self.units),
            "traces": [self._trace_json(layer, unit) for layer, unit in self._traced(traced_units)],
            "saturation": _json(self.saturation),
            "gradients": [_json(norms) for norms in self.gradients],
            "context": [_json(curve) for curve in self.context],
            "connectivity": {
                "positions": self.connectivity.positions.tolist(),
                "lags": self.connectivity.values.shape[1],
                "values": _bytes(self.connectivity.values * 255),
            },
            "ablation": {**_json(self.ablation), "ranking": self.ablation.ranking().tolist()},
            "ngrams": None if self.ngrams is None else _json(self.ngrams, without=("bits",)),
            "learning": None if self.learning is None else _learning_json(self.learning),
            "copies": None
            if self.copies is None
            else [
                {
                    "text": sample.text,
                    "temperature": sample.temperature,
                    "length": sample.copy.length,
                    "start": sample.copy.start,
                    "found_at": sample.copy.found_at,
                    "copied": sample.copied,
                }
                for sample in self.copies
            ],
            "missing": dict(self.missing),
        }

    def _traced(self, count: int) -> list[tuple[int, int]]:
        named = [] if self.units is None else self.units.best(count)
        costly = [(int(layer), int(unit)) for layer, unit in self.ablation.ranking()[:count]]
        return list(dict.fromkeys([*named, *costly]))[:count]

    def _trace_json(self, layer: int, unit: int) -> dict[str, Any]:
        found = self.trace
        return {
            "layer": layer,
            "unit": unit,
            "gates": _bytes(found.gates[:, layer, :, unit].T * 127.5 + 127.5),
            "h": _bytes(found.h[:, layer, unit] * 127.5 + 127.5),
            "c": None if found.c is None else _bytes(np.tanh(found.c[:, layer, unit]) * 127.5 + 127.5),
        }


@np.errstate(over="ignore", invalid="ignore")  # the gradients of very large weights are infinite, and null in JSON
def explain(
    model: Model,
    text: str | None,
    *,
    chars: int,
    beside: Sequence[Model],
    unknown: Unknown,
) -> Explanation:
    """Measure what a model does with a text. No random number is used that is not seeded.

    Args:
        model: the model; it is evaluated in fp32.
        text: the text; None takes the validation part of the training corpus.
        chars: number of symbols of the text, from its beginning; 0 takes all.
        beside: models of the same kind of symbols, whose gradients and context curves are measured on the same text.
        unknown: what to do with characters that are not in the vocabulary. Models beside it replace them.

    Raises:
        UsageError: a model has other symbols, or the activations do not fit in memory.
        CorpusError: the text has fewer than two symbols; or there is no `text`, and the training corpus cannot be read
            or has changed.
        UnknownSymbols: the text has characters that are not in the vocabulary, and `unknown` is 'error'.
        CheckpointError: weights or activations are NaN or infinite.
    """
    if chars < 0:
        raise UsageError(Field("chars"), f" must be 0 or more, got {chars}", value=chars, allowed="0 or more")
    vocabulary = model.vocabulary
    for other in beside:
        vocabulary.check_compatible(other.vocabulary)
        other.vocabulary.check_compatible(vocabulary)
    ids = np.asarray(model.encode(text, unknown)[0][: chars or None])
    boundary = vocabulary.boundary_id
    shown = vocabulary.decode(ids if boundary is None or not len(ids) or ids[0] != boundary else ids[1:])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # huge weights: such results are NaN or infinite
        return _measured(model, ids, shown, beside)


def _measured(model: Model, ids: Ids, shown: str, beside: Sequence[Model]) -> Explanation:
    """Return the explanation of the symbols (T,) of a text."""
    vocabulary, config = model.vocabulary, model.config
    engine, found, predictions = _read(model, ids)
    missing: dict[str, str] = {}
    named = units.units(found, features(vocabulary, ids))
    if named is None:
        missing["units"] = f"Naming units needs a varied text of {units.MIN_CHARS} {UNITS[vocabulary.unit]}s or more."
    norms = [_norms(model, found)]
    curves = [context.curve(engine, ids, predictions.bits, name_of(model))]
    for other in beside:
        other_ids = np.asarray(other.encode(shown, "replace")[0])
        other_engine, other_found, other_predictions = _read(other, other_ids)
        norms.append(_norms(other, other_found))
        curves.append(context.curve(other_engine, other_ids, other_predictions.bits, name_of(other)))
    comparison, copied = _against_training(model, ids, predictions.bits, missing)
    course = None if model.path is None else learning(model.path.parent)
    if course is None:
        missing["learning"] = "The directory of the checkpoint has no log of its training."
    connected = _positions(config, MIN_CONNECTED, CONNECTED)
    return Explanation(
        name_of(model),
        config,
        vocabulary,
        shown,
        found,
        predictions,
        named,
        saturation.saturation(config.cell, found),
        tuple(norms),
        tuple(curves),
        gradients.connectivity(
            config, model.weights, found, np.arange(min(connected, len(ids) - 1)), min(CONNECTED_LAGS, len(ids) - 1)
        ),
        ablation.ablation(config, model.weights, found, predictions.bits),
        comparison,
        course,
        copied,
        missing,
    )


def name_of(model: Model) -> str:
    """Return a name for a model: its run directory or file, and its cell."""
    path = model.path
    if path is None:
        return model.config.cell
    name = path.parent.name if path.name in (BEST, LAST) and path.parent.name else path.stem
    return f"{name} ({model.config.cell})"


def _read(model: Model, ids: Ids) -> tuple[Engine, Trace, Predictions]:
    """Return the fp32 engine of a model, and its activations and predictions on a text."""
    if len(ids) < 2:
        unit = UNITS[model.vocabulary.unit]
        raise CorpusError(f"the text has {len(ids)} {unit}{'s' * (len(ids) != 1)}; an explanation needs 2 or more")
    for name, array in model.weights.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"the weights {name} are NaN or infinite; train with a lower learning rate")
    engine = model.scorer
    if engine.precision != "fp32":
        engine = Engine(model.config, model.weights, precision="fp32")
    found = trace.trace(model.config, model.weights, ids, engine)
    predictions = trace.predictions(model.weights, found, TOP)
    if not np.isfinite(predictions.bits[1:]).all():
        raise CheckpointError(
            "the model's logits are NaN or infinite: its weights are too large; train with a lower learning rate"
        )
    return engine, found, predictions


def _norms(model: Model, found: Trace) -> GradientNorms:
    last = len(found.ids) - 2  # the last step whose prediction is known
    lags = min(LAGS, last)
    count = _positions(model.config, MIN_GRADIENT_POSITIONS, GRADIENT_POSITIONS)
    positions = np.unique(np.linspace(lags, last, count).astype(np.int64))
    return gradients.norms(model.config, model.weights, found, positions, lags, name_of(model))


def _positions(config: ModelConfig, least: int, most: int) -> int:
    """Return the number of positions that gradients are computed from, which is smaller in a large model."""
    return max(least, min(most, most * LARGE // config.parameters()))


def _against_training(
    model: Model, ids: Ids, bits: NDArray[np.float64], missing: dict[str, str]
) -> tuple[NgramComparison | None, tuple[CopiedSample, ...] | None]:
    """Compare the model with n-gram models of its training text, and generated texts with the training text."""
    try:
        training = training_part(model)
    except CharlstmError as error:
        missing["ngrams"] = missing["copies"] = f"The training text is needed: {error}."
        return None, None
    comparison = ngram.comparison(model.vocabulary, training, ids, bits)
    samples = []
    for number in range(COPY_SAMPLES):
        temperature = (0.5, 0.8, 1.0)[number % 3]
        text = model.sample(length=COPY_LENGTH, temperature=temperature, seed=number)
        symbols = model.vocabulary.encode_known(text, "skip")[0]
        copy = copies.longest_copy(symbols, training)
        copied = model.vocabulary.decode(symbols[copy.start : copy.start + copy.length])
        samples.append(CopiedSample(text, temperature, copy, copied))
    return comparison, tuple(samples)


def training_part(model: Model) -> Ids:
    """Return the symbols (N,) that the model was trained on, at most the first MAX_TRAINING.

    The record may be that of an untrusted checkpoint: a pipe or a device that it names is not opened, no name is
    downloaded, and no more is read than the record says.

    Raises:
        CorpusError: the checkpoint does not name the text, or the text cannot be read or has changed.
    """
    record, vocabulary = model.corpus, model.vocabulary
    special = [name for name in record.names if os.path.exists(name) and not os.path.isfile(name) | os.path.isdir(name)]
    if not record.names or "-" in record.names or special or not record.chars or record.valid_share is None:
        raise CorpusError("the checkpoint does not name a text that can be read again")
    how: dict[str, Any] = {"symbols": vocabulary.kind, "boundary": vocabulary.boundary}
    name = terminal.shortened(record.names[0])
    try:
        text = corpus.read(record.names, encoding=record.encoding, max_chars=record.chars, **how)
    except CharlstmError as error:
        raise CorpusError(f"{name} cannot be read, or is longer than it was in training") from error
    if text.sha256 != record.sha256:
        raise CorpusError(f"{name} has changed since the training")
    return np.asarray(text.recoded(vocabulary).split(record.valid_share)[0][:MAX_TRAINING])


def _units_json(found: Units) -> dict[str, Any]:
    return {
        "features": list(found.features),
        "strong": units.STRONG,
        "strong_share": _rounded(found.strong_share),
        "chance": _rounded(found.chance_of_any),
        "shifts": found.shifts,
        "count": found.name.size,
        "named": [
            {
                "layer": layer,
                "unit": unit,
                "feature": found.features[found.name[layer, unit]],
                "quantity": str(found.quantity[layer, unit]),
                "correlation": _rounded(float(found.correlation[layer, unit])),
                "score": _rounded(float(found.score[layer, unit])),
                "chance": _rounded(float(found.chance[layer, unit])),
            }
            for layer, unit in found.best()
        ],
    }


def _learning_json(found: Learning) -> dict[str, Any]:
    return {
        "validations": [vars(validation) for validation in found.validations],
        "training": [list(point) for point in found.training],
        "kept": [{"step": step, "file": file.name} for step, file in found.kept],
    }


def _json(part: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass of arrays as JSON values."""
    return {name: _value(value) for name, value in vars(part).items() if name not in without}


def _value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "iu" else _rounded(value.tolist())
    if isinstance(value, float):
        return _rounded(value)
    if isinstance(value, tuple):
        return [_json(item) if hasattr(item, "__dataclass_fields__") else _value(item) for item in value]
    return value


def _rounded(value: Any) -> Any:
    """Round numbers in nested lists to four significant digits; NaN and infinity become None."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _decimals(values: NDArray[np.floating[Any]]) -> Any:
    """Return an array as nested lists with three decimals; NaN becomes None."""
    rounded = np.round(values.astype(np.float64), 3)
    if values.ndim == 1:
        return [None if math.isnan(value) else value for value in rounded.tolist()]
    return rounded.tolist()


def _bytes(values: NDArray[np.floating[Any]]) -> str:
    """Return numbers from 0 to 255, rounded to bytes, in base64; NaN becomes 0."""
    return base64.b64encode(np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8).tobytes()).decode()

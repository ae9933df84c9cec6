"""A trained model in a program: `charlstm.load` and what it returns. What the commands `sample` and `eval` call.

model = charlstm.load()                                  # the newest run's best checkpoint
print(model.sample("Once upon", length=300, temperature=0.7, seed=1))
print(model.evaluate("Once upon a time").bits_per_char)
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm import atomicfile, checkpoint, terminal
from charlstm.config import (
    MAX_REPEAT_WINDOW,
    UNITS,
    ModelConfig,
    Precision,
    SamplingConfig,
    Unknown,
    to_json,
)
from charlstm.errors import CheckpointError, CorpusError, UsageError
from charlstm.inference import evaluation, sampling, surprisal
from charlstm.inference.engine import Engine
from charlstm.inference.evaluation import Score
from charlstm.inference.sampling import Context, Text
from charlstm.inference.surprisal import CharScore, Difference, LineScore
from charlstm.progress import Report
from charlstm.provenance import CorpusRecord
from charlstm.text import corpus
from charlstm.text.corpus import Symbols
from charlstm.text.vocabulary import Vocabulary

STATE_MAGIC = b"charlstm-state-2"
STATE_HEADER = struct.Struct("<16s32sqqqq")  # magic, digest of the model, last, drawn, seed, how many before the last
# Then the state, the symbols before the last, and a sha256 of it all.


def load(path: str | Path | None = None, *, precision: Precision = "auto", threads: int | None = None) -> Model:
    """Open a trained model.

    Args:
        path: a checkpoint, or a run's folder; None is the newest run under `checkpoints/`.
        precision: 'fp32' is exact. 'int8' reads a quarter of the bytes. 'auto' samples in int8 where that is faster,
            and evaluates in fp32.
        threads: at most so many; None chooses. No result depends on it.

    Raises:
        CheckpointError: no such file, or one that is not a whole and trustworthy checkpoint.
    """
    file = checkpoint.resolve(path)
    found = checkpoint.load(file)
    return Model(found.model, found.vocabulary, found.weights, found.facts, file, precision, threads)


@dataclass(frozen=True)
class Comparison:
    """Two models on one text."""

    ours: Score
    theirs: Score
    difference: Difference  # ours less theirs


class Model:
    """A trained model: its vocabulary, its weights, what is known of its training, and what it can do.

    It remembers nothing between calls; where a text stands is a `Context` that goes in and comes out.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        weights: Mapping[str, NDArray[np.float32]],
        facts: Mapping[str, Any] | None = None,
        path: Path | None = None,
        precision: Precision = "auto",
        threads: int | None = None,
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.weights = weights
        self.facts = dict(facts or {})
        self.path = path
        self._precision: Precision = precision
        self._threads = threads

    @property
    def corpus(self) -> CorpusRecord:
        """The texts that the model was trained on and validated on; an empty record if `facts` do not name them."""
        return CorpusRecord.from_json(self.facts.get("corpus"))

    @functools.cached_property
    def engine(self) -> Engine:
        """What draws text, in the precision asked for."""
        return Engine(self.config, self.weights, precision=self._precision, threads=self._threads)

    @functools.cached_property
    def scorer(self) -> Engine:
        """What evaluates: fp32, so that figures are the model's own, unless int8 was asked for by name."""
        if self._precision == "int8" or self.engine.precision == "fp32":
            return self.engine
        return Engine(self.config, self.weights, precision="fp32", threads=self._threads)

    def sample(
        self,
        prime: str = "",
        length: int | None = None,
        *,
        temperature: float = SamplingConfig.temperature,
        seed: int | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> str:
        """Draw a text that goes on from `prime`, which is not part of it.

        Args:
            length: in characters; with `stop` or `lines`, at most. None is 1,000, or without limit where those end it.
            temperature: 0 takes the likeliest character each time.
            seed: the same seed gives the same text; None draws a fresh one.
            context: where `prime` goes on; None begins a text.
            **options: other fields of `charlstm.SamplingConfig`, such as `top_p=0.9`, `stop=("\\n\\n",)`, `best_of=8`.

        Raises:
            UnknownSymbols: the prime has characters that are not in the vocabulary.
            UsageError: a setting out of its range, or one that no text of this model can meet.
        """
        if length == 0:
            return ""
        config = SamplingConfig(temperature, length, prime, seed, **options)
        if config.best_of > 1:
            return next(sampling.texts(self.engine, self.vocabulary, config, context)).text
        return "".join(sampling.Stream(self.engine, self.vocabulary, config, context))

    def stream(
        self,
        prime: str = "",
        length: int = 0,
        *,
        temperature: float = SamplingConfig.temperature,
        seed: int | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> sampling.Stream:
        """As `sample`, piece by piece as it is drawn; a length of 0 is without limit. `.context` is where it stands."""
        config = SamplingConfig(temperature, length, prime, seed, **options)
        return sampling.Stream(self.engine, self.vocabulary, config, context)

    def samples(
        self,
        count: int,
        prime: str = "",
        length: int | None = None,
        *,
        temperature: float = SamplingConfig.temperature,
        seed: int | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """`count` texts drawn side by side, for a fraction of the cost of one after the other."""
        config = SamplingConfig(temperature, length, prime, seed, count, **options)
        return (found.text for found in sampling.texts(self.engine, self.vocabulary, config, context))

    def draw(
        self,
        config: SamplingConfig,
        primes: Iterable[Sequence[str]] | None = None,
        context: Context | None = None,
        *,
        scored: bool = True,
    ) -> Iterator[Text]:
        """Texts with their log-probability and what ended them: `config.count` of them, or so many for each prime.

        Args:
            primes: in groups, in place of `config.prime`. Those of one group are drawn side by side; all texts of a
                group are given before the next group is asked for.
            scored: without it the log-probability is None, and half the time is saved.

        Raises:
            UnknownSymbols, UsageError: as `sample`.
        """
        if primes is None:
            primes = [[config.prime]]
        return sampling.continuations(self.engine, self.vocabulary, config, primes, context, scored=scored)

    def after(self, text: Text) -> Context:
        """Where a text from `draw` stands, to go on from there."""
        return sampling.after(self.engine, text)

    def next(
        self,
        text: str = "",
        top: int | None = None,
        *,
        temperature: float = 1.0,
        context: Context | None = None,
        **options: Any,
    ) -> list[tuple[str, float]]:
        """The characters that may come next and their probabilities, the likeliest first.

        Args:
            top: at most so many; None is all that can come.
            temperature: 1 is the model's own distribution.
            context: where `text` goes on; None begins a text.
            **options: as `sample`; what the filters leave, renormalised.

        Raises:
            UnknownSymbols, UsageError: as `sample`.
        """
        rule = sampling.rule_of(self.vocabulary, SamplingConfig(temperature, **options))
        where = sampling.read(self.scorer, self.vocabulary, text, context)
        shares = sampling.following(self.scorer, self.vocabulary, rule, where)
        order = np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)][:top]
        return [(self.vocabulary.name(k), float(shares[k])) for k in order]

    def read(self, text: str, context: Context | None = None) -> Context:
        """The context after `text`, read after `context`, or from the beginning.

        Raises:
            UnknownSymbols: the text has characters that are not in the vocabulary.
        """
        return sampling.read(self.engine, self.vocabulary, text, context)

    def evaluate(
        self,
        text: str | Iterable[str] | None = None,
        *,
        exact: bool = False,
        unknown: Unknown = "error",
        report: Report | None = None,
    ) -> Score:
        """The mean surprise at the N − 1 transitions of a text; without one, of the validation part of its corpus.

        Args:
            text: it may come in parts; the ids of a long one are kept in a file.
            exact: as one stream; else as parts side by side, each warmed up on the characters before it.
            unknown: what to do with characters that are not in the vocabulary; `Score.unknown` counts them.
            report: called now and then with how many transitions are scored, and of how many.

        Raises:
            UnknownSymbols: there are such characters, and unknown is 'error'.
            CorpusError: fewer than two characters; without a text: the corpus is not there or not the same.
        """
        ids, foreign = self.symbols(text, unknown)
        unit = UNITS[self.vocabulary.unit]
        score = evaluation.evaluate(self.scorer, ids, exact=exact, unit=unit, report=report)
        return replace(score, unknown=foreign)

    def score_lines(
        self, text: str | Iterable[str], *, carry: bool = False, unknown: Unknown = "error"
    ) -> Iterator[LineScore]:
        """How surprising each line of a text is, which may come in parts: see `surprisal.lines`.

        Args:
            carry: the state goes on from line to line; else each line begins after a line break.

        Raises:
            UnknownSymbols: there are characters that are not in the vocabulary, and unknown is 'error'.
        """
        parts = [text] if isinstance(text, str) else text
        return surprisal.lines(self.scorer, self.vocabulary, parts, carry=carry, unknown=unknown)

    def score_chars(
        self, text: str | Iterable[str] | None = None, *, top: int = 0, unknown: Unknown = "error"
    ) -> Iterator[CharScore]:
        """How surprising each character of a text but the first is, with the `top` likeliest in its place beside it.

        Raises: as `evaluate`.
        """
        return surprisal.chars(self.scorer, self.vocabulary, self.symbols(text, unknown)[0], top)

    def compare(self, other: Model, text: str | None = None, *, unknown: Unknown = "error") -> Comparison:
        """Score a text, or the validation part of this model's corpus, with two models.

        Where unknown is 'skip', what either of them does not know is left out for both.

        Raises: as `evaluate`.
        """
        if self.vocabulary.boundary != other.vocabulary.boundary:
            raise UsageError(
                "models of documents that are divided otherwise are not scored at the same places: eval each"
            )
        if self.vocabulary.kind != other.vocabulary.kind:
            raise UsageError("a model of bytes and one of characters are not scored at the same places: eval each")
        text = self.validation_text() if text is None else text
        length = len(text)
        if unknown == "skip":
            for vocabulary in (self.vocabulary, other.vocabulary):
                text = vocabulary.decode(vocabulary.encode_known(text, "skip")[0])
        skipped = length - len(text)
        bits, scores = [], []
        for model in (self, other):
            ids, foreign = model.symbols(text, unknown)
            bits.append(surprisal.bits(model.scorer, ids))
            nats = float(bits[-1].sum()) * math.log(2)
            score = evaluation.score_of(len(ids), nats, evaluation.protocol_of(model.config, evaluation.EXACT))
            scores.append(replace(score, unknown=foreign + skipped))
        return Comparison(scores[0], scores[1], surprisal.difference(bits[0], bits[1]))

    def symbols(self, text: str | Iterable[str] | None, unknown: Unknown = "error") -> tuple[Symbols, int]:
        """The ids of a text, which may come in parts, or of the validation part; and how many characters of it were
        skipped or replaced.
        """
        if text is None:
            return self.validation_part(), 0
        return corpus.encoded(self.vocabulary, [text] if isinstance(text, str) else text, unknown)

    def int8_cost(self, text: str | None = None) -> float:
        """Bits per character that int8 adds on a text; without one, on the validation part of its corpus.

        Raises:
            UsageError: this installation has no native engine, and so no int8.
        """
        ids, _ = self.symbols(text)
        exact, rounded = (
            evaluation.evaluate(Engine(self.config, self.weights, precision=p, threads=self._threads), ids)
            for p in ("fp32", "int8")
        )
        return rounded.bits_per_char - exact.bits_per_char

    def validation_part(self) -> NDArray[np.integer]:
        """The symbols that the training validated on: the first `valid_chars` of its validation text, or where it had
        none, of the last share of its corpus, which it held out.

        Raises:
            CorpusError: the checkpoint does not name that text, or it is not there or has changed since; or nothing
                was held out.
        """
        record, vocabulary = self.corpus, self.vocabulary
        source = record.validation or record
        if not source.names or "-" in source.names:
            raise CorpusError("the checkpoint does not name a corpus that can be read again; give the text to evaluate")
        if record.valid_share is None or record.valid_chars is None:
            raise CorpusError("the checkpoint does not record which part was held out; give the text to evaluate")
        try:
            how: dict[str, Any] = {"symbols": vocabulary.kind, "boundary": vocabulary.boundary}
            text = corpus.read(source.names, encoding=source.encoding, **how)
        except CorpusError as error:
            raise CorpusError(f"{error}; give the text to evaluate") from error
        if text.sha256 != source.sha256:
            name, use = terminal.escape(text.names[0]), "trained" if source is record else "validated"
            raise CorpusError(f"{name} is not the text that the model was {use} on; give the text to evaluate")
        text = text.recoded(self.vocabulary)
        held_out = text.split(record.valid_share)[1] if source is record else text.ids
        if not len(held_out):
            raise CorpusError("nothing was held out when this model was trained; give the text to evaluate")
        return corpus.beginning(held_out, record.valid_chars, vocabulary.boundary_id)

    def validation_text(self) -> str:
        """The same as a text: of documents without the boundary in front of the first. Raises: as `validation_part`."""
        ids = self.validation_part()
        return self.vocabulary.decode(ids if self.vocabulary.boundary is None else ids[1:])

    @functools.cached_property
    def digest(self) -> bytes:
        """sha256 of the model: its config, its vocabulary and its weights."""
        digest = hashlib.sha256(json.dumps([to_json(self.config), self.vocabulary.symbols]).encode())
        for name in sorted(self.weights):
            digest.update(np.ascontiguousarray(self.weights[name]).data)
        return digest.digest()

    def save_state(self, path: str | Path, context: Context) -> None:
        """Write where a text stands to a small file, for `load_state` in another process or on another day.

        Raises:
            OSError: it could not be written; a file that was there is untouched.
        """
        seed = -1 if context.seed is None else context.seed
        before = context.before
        data = STATE_HEADER.pack(STATE_MAGIC, self.digest, context.last, context.drawn, seed, len(before))
        data += np.ascontiguousarray(context.state, "<f4").tobytes() + np.ascontiguousarray(before, "<i4").tobytes()
        atomicfile.replace(Path(path), [data, hashlib.sha256(data).digest()])

    def load_state(self, path: str | Path) -> Context:
        """What `save_state` wrote.

        Raises:
            CheckpointError: not such a file, a damaged one, or one of another model.
        """
        name = terminal.escape(str(path))
        shape = self.config.state_shape(1)
        size = STATE_HEADER.size + 4 * math.prod(shape)
        try:
            with Path(path).open("rb") as file:
                data = file.read(size + 4 * MAX_REPEAT_WINDOW + 32)
        except OSError as error:
            raise CheckpointError(f"cannot read the state {name}: {error.strerror}") from error
        if not data.startswith(STATE_MAGIC):
            raise CheckpointError(f"{name} is not a state that charlstm saved")
        of_this_model = len(data) > size and data[len(STATE_MAGIC) : len(STATE_MAGIC) + 32] == self.digest
        if not of_this_model or len(data) != size + 4 * STATE_HEADER.unpack_from(data)[-1] + 32:
            raise CheckpointError(f"{name} is the state of another model, or cut short")
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise CheckpointError(f"the state {name} is damaged: its checksum is wrong")
        _, _, last, drawn, seed, _ = STATE_HEADER.unpack_from(data)
        state = np.frombuffer(data[STATE_HEADER.size : size], "<f4").astype(np.float32).reshape(shape)
        before = np.frombuffer(data[size:-32], "<i4").astype(np.int32)
        known = 0 <= last < self.config.vocab_size and all(0 <= symbol < self.config.vocab_size for symbol in before)
        if not (known and drawn >= 0 and seed >= -1 and np.isfinite(state).all()):
            raise CheckpointError(f"the state {name} holds values that no model can reach")
        return Context(state, last, drawn, None if seed == -1 else seed, before)

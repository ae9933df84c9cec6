"""The public interface of a trained model: `charlstm.load` and `Model`.

model = charlstm.load()  # the best checkpoint of the newest run
print(model.sample("Once upon", length=300, temperature=0.7, seed=1))
print(model.evaluate("Once upon a time").bits_per_char)
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from charlstm import checkpoint, runs, terminal
from charlstm.config import UNITS, ModelConfig, Precision, SamplingConfig, Unknown, to_json
from charlstm.errors import CorpusError, Field, UsageError
from charlstm.inference import context as contexts
from charlstm.inference import evaluation, state_file, surprisal
from charlstm.inference.context import Context
from charlstm.inference.engine import Engine
from charlstm.inference.evaluation import Score
from charlstm.inference.mixture import MixBy, MixedEngine, Part, union
from charlstm.inference.sampling import GeneratedText, Sampler, Stream
from charlstm.inference.surprisal import CharScore, Difference, LineScore
from charlstm.progress import Report
from charlstm.provenance import CorpusRecord
from charlstm.text import corpus
from charlstm.text.corpus import Symbols
from charlstm.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from charlstm.config import SamplingKeywords
    from charlstm.explain.explanation import Explanation

EXPLAINED_CHARS = 5000  # symbols of a text that `explain` reads


def load(path: str | Path | None = None, *, precision: Precision = "auto", threads: int | None = None) -> Model:
    """Load a trained model.

    Args:
        path: a checkpoint, or a run directory; None loads the newest run in `checkpoints/`.
        precision: 'fp32' is exact. 'int8' rounds the weights and takes a quarter of the memory bandwidth. 'auto'
            samples in int8 where that is faster, and scores in fp32.
        threads: the largest number of threads; None chooses it. Results do not depend on it.

    Raises:
        CheckpointError: the file does not exist, or is not a valid checkpoint.
    """
    file = runs.resolve(path)
    found = checkpoint.load(file)
    return Model(found.model, found.vocabulary, found.weights, found.facts, found.corpus, file, precision, threads)


@dataclass(frozen=True)
class Comparison:
    """The scores of two models on one text.

    Attributes:
        ours: the score of the model whose `compare` was called.
        theirs: the score of the other model.
        difference: ours minus theirs.
    """

    ours: Score
    theirs: Score
    difference: Difference


class Model:
    """A trained model, which samples and scores text.

    A model keeps nothing between calls. The position in a text is a `Context`, which is an argument and a result.

    Args:
        config: the shape of the model.
        vocabulary: the symbols, `config.vocab_size` of them.
        weights: name → float32 array, with the names and shapes of `config.shapes()`.
        facts: what the checkpoint records about the model, as in `Checkpoint.facts`.
        corpus: the texts that the model was trained on and validated on; None if they are not known.
        path: the file that the model was loaded from.
        precision: as in `load`.
        threads: as in `load`.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        weights: Mapping[str, NDArray[np.float32]],
        facts: Mapping[str, Any] | None = None,
        corpus: CorpusRecord | None = None,
        path: Path | None = None,
        precision: Precision = "auto",
        threads: int | None = None,
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.weights = weights
        self.facts = dict(facts or {})
        self.corpus = corpus or CorpusRecord()
        self.path = path
        self._precision: Precision = precision
        self._threads = threads

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine that samples, in the requested precision."""
        return self._engine_in(self._precision)

    @functools.cached_property
    def scorer(self) -> Engine:
        """The engine that scores: fp32, so that scores are exact, unless int8 was requested."""
        is_engine = self._precision == "int8" or self.engine.precision == "fp32"
        return self.engine if is_engine else self._engine_in("fp32")

    @functools.cached_property
    def digest(self) -> bytes:
        """The sha256 of the config, the vocabulary and the weights."""
        digest = hashlib.sha256(json.dumps([to_json(self.config), self.vocabulary.symbols]).encode())
        for name in sorted(self.weights):
            digest.update(np.ascontiguousarray(self.weights[name]).data)
        return digest.digest()

    def sample(
        self,
        prime: str = "",
        length: int | None = None,
        *,
        temperature: float = SamplingConfig.temperature,
        seed: int | None = None,
        context: Context | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> str:
        r"""Generate a text.

        Args:
            prime: the text to continue.
            length: number of characters; the largest number with `stop` or `lines`. None means 1,000, or no limit if
                `stop`, `lines` or the end of a document ends the text.
            temperature: divides the logits; 0 always takes the most probable character.
            seed: the same seed gives the same text; None uses a random seed.
            context: the context that the prime continues; None starts a new text.
            **options: other fields of `charlstm.SamplingConfig`, such as `top_p=0.9`, `stop=("\n\n",)`, `best_of=8`.

        Returns:
            The text without the prime.

        Raises:
            UnknownSymbols: the prime has characters that are not in the vocabulary.
            UsageError: an option is outside its range, or no text can satisfy the options.

        Example:
            >>> charlstm.load().sample("Once upon", length=300, temperature=0.7, seed=1)
        """
        if length == 0:
            return ""
        config = SamplingConfig(temperature, length, prime, seed, **options)
        if config.best_of > 1:
            return next(self._sampler(config).texts(context=context)).text
        return "".join(self._sampler(config).stream(context))

    def stream(
        self,
        prime: str = "",
        length: int = 0,
        *,
        temperature: float = SamplingConfig.temperature,
        seed: int | None = None,
        context: Context | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Stream:
        """Generate a text in pieces, each as soon as it is sampled.

        Args:
            prime: as in `sample`.
            length: number of characters; 0 means no limit.
            temperature: as in `sample`.
            seed: as in `sample`.
            context: as in `sample`.
            **options: as in `sample`, but `best_of` must be 1.

        Returns:
            An iterator of strings. Its attribute `context` is the context after the last piece.

        Raises:
            UnknownSymbols, UsageError: as in `sample`.
        """
        return self._sampler(SamplingConfig(temperature, length, prime, seed, **options)).stream(context)

    def samples(
        self,
        count: int,
        prime: str = "",
        length: int | None = None,
        *,
        temperature: float = SamplingConfig.temperature,
        seed: int | None = None,
        context: Context | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Iterator[str]:
        """Generate `count` texts in batches, which is several times faster than one after another.

        The other arguments and the errors are those of `sample`.
        """
        config = SamplingConfig(temperature, length, prime, seed, count, **options)
        return (found.text for found in self._sampler(config).texts(context=context))

    def generate(
        self,
        config: SamplingConfig,
        primes: Iterable[Sequence[str]] | None = None,
        context: Context | None = None,
        *,
        scored: bool = True,
    ) -> Iterator[GeneratedText]:
        """Generate texts with their log-probability and the reason why each ended.

        Args:
            config: the options. `config.count` texts are generated for each prime.
            primes: groups of primes, used instead of `config.prime`. The texts of a group are generated in batches, and
                before the next group is requested.
            context: as in `sample`.
            scored: compute the log-probabilities, which takes about half of the time.

        Raises:
            UnknownSymbols, UsageError: as in `sample`.
        """
        return self._sampler(config).texts(primes, context, scored=scored)

    def next(
        self,
        text: str = "",
        top: int | None = None,
        *,
        temperature: float = 1.0,
        context: Context | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[tuple[str, float]]:
        """Return the possible next characters and their probabilities, the most probable first.

        Args:
            text: the text before the next character.
            top: the largest number of characters to return; None returns all with a probability above 0.
            temperature: 1 gives the distribution of the model.
            context: the context that `text` continues; None starts a new text.
            **options: as in `sample`. The probabilities that the filters keep are renormalised.

        Raises:
            UnknownSymbols, UsageError: as in `sample`.
        """
        sampler = Sampler(self.scorer, self.vocabulary, SamplingConfig(temperature, **options))
        shares = sampler.next_probabilities(contexts.advance(self.scorer, self.vocabulary, text, context))
        order = np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)][:top]
        return [(self.vocabulary.name(k), float(shares[k])) for k in order]

    def embed(self, text: str, context: Context | None = None) -> NDArray[np.float32]:
        """Return the state after a text as a vector: what the model remembers of it.

        Args:
            text: the text; its last characters have the largest effect.
            context: the context that `text` continues; None starts a new text.

        Returns:
            (L·H,) the hidden states h of all layers, each value between −1 and 1.

        Raises:
            UnknownSymbols: the text has characters that are not in the vocabulary.
        """
        after = contexts.advance(self.scorer, self.vocabulary, text, context)
        state = self.scorer.advance(np.array([[after.last]]), after.state)
        return state[:, 0, 0].ravel()

    def advance(self, text: str, context: Context | None = None) -> Context:
        """Return the context after a text.

        Args:
            text: the text to feed to the model.
            context: the context that `text` continues; None starts a new text.

        Raises:
            UnknownSymbols: the text has characters that are not in the vocabulary.
        """
        return contexts.advance(self.engine, self.vocabulary, text, context)

    def context_after(self, text: GeneratedText) -> Context:
        """Return the context after a text from `generate`, from which another text can continue."""
        return contexts.advance_sampled(self.engine, text.start, text.symbols)

    def save_state(self, path: str | Path, context: Context) -> None:
        """Write a context to a small file, for `load_state` in another process.

        Raises:
            OSError: the file could not be written. An existing file is unchanged.
        """
        state_file.save(path, context, self.digest)

    def load_state(self, path: str | Path) -> Context:
        """Read a context that `save_state` wrote.

        Raises:
            CheckpointError: the file cannot be read, is invalid, truncated or corrupt, or was saved by another model.
        """
        return state_file.load(path, self.config, self.digest)

    def evaluate(
        self,
        text: str | Iterable[str] | None = None,
        *,
        exact: bool = False,
        unknown: Unknown = "error",
        report: Report | None = None,
    ) -> Score:
        """Return how well the model predicts a text of N characters: the mean loss of its N − 1 transitions.

        Args:
            text: the text, which may come in parts; the ids of a long text are stored in a file. None scores the
                validation part of the training corpus.
            exact: score the text as one stream. Otherwise it is split into parts that are scored in parallel, each
                after a warm-up on the characters before it, which is faster.
            unknown: what to do with characters that are not in the vocabulary; `Score.unknown` counts them.
            report: called repeatedly with the number of scored transitions and their total.

        Raises:
            UnknownSymbols: the text has such characters, and `unknown` is 'error'.
            CorpusError: the text has fewer than two characters; or there is no `text`, and the training corpus cannot
                be read or has changed.
        """
        ids, foreign = self.encode(text, unknown)
        unit = UNITS[self.vocabulary.unit]
        score = evaluation.evaluate(self.scorer, ids, exact=exact, unit=unit, report=report)
        return replace(score, unknown=foreign)

    def score_lines(
        self, text: str | Iterable[str], *, carry: bool = False, unknown: Unknown = "error"
    ) -> Iterator[LineScore]:
        """Score each line of a text; see `surprisal.lines`.

        Args:
            text: the text, which may come in parts.
            carry: carry the state from line to line. Otherwise each line is scored as if it followed a line break at
                the start of a text.
            unknown: what to do with characters that are not in the vocabulary.

        Raises:
            UnknownSymbols: the text has such characters, and `unknown` is 'error'.
        """
        parts = [text] if isinstance(text, str) else text
        return surprisal.lines(self.scorer, self.vocabulary, parts, carry=carry, unknown=unknown)

    def score_chars(
        self, text: str | Iterable[str] | None = None, *, top: int = 0, unknown: Unknown = "error"
    ) -> Iterator[CharScore]:
        """Score each character of a text but the first; see `surprisal.chars`.

        Args:
            text: as in `evaluate`.
            top: number of most probable characters to return with each score.
            unknown: as in `evaluate`.

        Raises:
            UnknownSymbols, CorpusError: as in `evaluate`.
        """
        return surprisal.chars(self.scorer, self.vocabulary, self.encode(text, unknown)[0], top)

    def compare(self, other: Model, text: str | None = None, *, unknown: Unknown = "error") -> Comparison:
        """Score a text with two models.

        Args:
            other: the model to compare with.
            text: the text; None takes the validation part of the training corpus of this model.
            unknown: what to do with characters that are not in a vocabulary. 'skip' leaves out for both models what one
                of them does not have.

        Raises:
            UsageError: one model is of bytes and the other of characters, or their boundaries differ.
            UnknownSymbols, CorpusError: as in `evaluate`.
        """
        self.vocabulary.check_compatible(other.vocabulary)
        other.vocabulary.check_compatible(self.vocabulary)  # the check ignores texts without a boundary on one side
        text = self.validation_text() if text is None else text
        length = len(text)
        if unknown == "skip":
            for vocabulary in (self.vocabulary, other.vocabulary):
                text = vocabulary.decode(vocabulary.encode_known(text, "skip")[0])
        skipped = length - len(text)
        bits, scores = [], []
        for model in (self, other):
            ids, foreign = model.encode(text, unknown)
            bits.append(surprisal.bits(model.scorer, ids))
            nats = float(bits[-1].sum()) * math.log(2)
            score = evaluation.score_of(len(ids), nats, evaluation.protocol_of(model.config, evaluation.EXACT))
            scores.append(replace(score, unknown=foreign + skipped))
        return Comparison(scores[0], scores[1], surprisal.difference(bits[0], bits[1]))

    def explain(
        self,
        text: str | None = None,
        *,
        chars: int = EXPLAINED_CHARS,
        beside: Sequence[Model] = (),
        unknown: Unknown = "error",
    ) -> Explanation:
        """Measure what the model does with a text: gates, named units, gradients, context, and more.

        Args:
            text: the text; None takes the validation part of the training corpus.
            chars: number of symbols of the text, from its beginning; 0 takes all.
            beside: other models, whose gradients and use of context are measured on the same text.
            unknown: what to do with characters that are not in the vocabulary.

        Returns:
            An `Explanation`, whose attributes have documented shapes; `to_json()` gives it as a JSON object.

        Raises:
            UsageError: `chars` is invalid, a model has other symbols, or the activations do not fit in memory.
            CorpusError: the text has fewer than two symbols; or there is no `text`, and the training corpus cannot
                be read or has changed.
            UnknownSymbols: the text has characters that are not in the vocabulary, and `unknown` is 'error'.
            CheckpointError: weights or activations are NaN or infinite.
        """
        from charlstm.explain.explanation import explain

        return explain(self, text, chars=chars, beside=beside, unknown=unknown)

    def int8_cost(
        self,
        text: str | Symbols | None = None,
        *,
        exact: bool = False,
        report: Report | None = None,
        int8_score: Score | None = None,
    ) -> float:
        """Return the bits per character that int8 adds to the loss.

        Args:
            text: the text, or its ids from `encode`; None takes the validation part of the training corpus.
            exact: as in `evaluate`.
            report: as in `evaluate`.
            int8_score: the score of the text in int8, if it is known already; then only fp32 is computed.

        Raises:
            UsageError: this installation has no native engine, and therefore no int8.
            UnknownSymbols, CorpusError: as in `evaluate`.
        """
        ids = self.encode(text)[0] if text is None or isinstance(text, str) else text
        if int8_score is None:
            int8_score = evaluation.evaluate(self._engine_in("int8"), ids, exact=exact, report=report)
        fp32_score = evaluation.evaluate(self._engine_in("fp32"), ids, exact=exact, report=report)
        return int8_score.bits_per_char - fp32_score.bits_per_char

    def encode(self, text: str | Iterable[str] | None, unknown: Unknown = "error") -> tuple[Symbols, int]:
        """Return the ids of a text.

        Args:
            text: the text, which may come in parts; None takes the validation part of the training corpus.
            unknown: what to do with characters that are not in the vocabulary.

        Returns:
            The ids (N,), in documents with a boundary before and after; and the number of characters that were skipped
            or replaced.

        Raises:
            UnknownSymbols: the text has such characters, and `unknown` is 'error'.
            CorpusError: there is no `text`, and the training corpus cannot be read or has changed.
        """
        if text is None:
            return self.validation_part(), 0
        return corpus.encode_text(self.vocabulary, [text] if isinstance(text, str) else text, unknown)

    def validation_part(self) -> NDArray[np.integer]:
        """Return the symbols (N,) that the validations of the training run scored.

        These are the first `valid_chars` symbols of the validation text. If the run had no separate validation text,
        they are taken from the held-out part of the training text.

        Raises:
            CorpusError: the checkpoint does not name the text, the text cannot be read or has changed, or nothing was
                held out.
        """
        record, vocabulary = self.corpus, self.vocabulary
        source = record.validation or record
        advice = "; give the text to evaluate"
        if not source.names or "-" in source.names:
            raise CorpusError(f"the checkpoint does not name a corpus that can be read again{advice}")
        if record.valid_share is None or record.valid_chars is None:
            raise CorpusError(f"the checkpoint does not record which part of the corpus was held out{advice}")
        try:
            how: dict[str, Any] = {"symbols": vocabulary.kind, "boundary": vocabulary.boundary}
            text = corpus.read(source.names, encoding=source.encoding, **how)
        except CorpusError as error:
            raise CorpusError(f"{error}{advice}") from error
        if text.sha256 != source.sha256:
            name, use = terminal.escape(text.names[0]), "trained" if source is record else "validated"
            raise CorpusError(f"{name} is not the text that the model was {use} on{advice}")
        text = text.recoded(vocabulary)
        held_out = text.split(record.valid_share)[1] if source is record else text.ids
        if not len(held_out):
            raise CorpusError(f"nothing was held out when this model was trained{advice}")
        return corpus.beginning(held_out, record.valid_chars, vocabulary.boundary_id)

    def validation_text(self) -> str:
        """Return the text of `validation_part`, in documents without the boundary before the first.

        Raises:
            CorpusError: as in `validation_part`.
        """
        ids = self.validation_part()
        return self.vocabulary.decode(ids if self.vocabulary.boundary is None else ids[1:])

    def _sampler(self, config: SamplingConfig) -> Sampler:
        return Sampler(self.engine, self.vocabulary, config)

    def _engine_in(self, precision: Precision) -> Engine:
        return Engine(self.config, self.weights, precision=precision, threads=self._threads)


class _MixedModel(Model):
    """A mixture of models; see `mix`. It has no weights of its own."""

    def __init__(self, parts: Sequence[tuple[Model, float]], by: MixBy) -> None:
        vocabulary = union([model.vocabulary for model, _ in parts])
        self._scoring, self._sampling = (
            MixedEngine([Part(engine, model.vocabulary, weight) for (model, weight), engine in pairs], vocabulary, by)
            for pairs in (
                [(part, part[0].scorer) for part in parts],
                [(part, part[0].engine) for part in parts],
            )
        )
        super().__init__(self._scoring.config, vocabulary, {})
        self._digests = [(model.digest.hex(), weight) for model, weight in parts]
        self._by = by

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine that samples: each model in the precision that was requested for it."""
        return self._sampling

    @functools.cached_property
    def scorer(self) -> Engine:
        """The engine that scores."""
        return self._scoring

    @functools.cached_property
    def digest(self) -> bytes:
        """The sha256 of the models, their weights and the kind of mixture."""
        return hashlib.sha256(json.dumps([self._by, self._digests]).encode()).digest()


def mix(models: Sequence[Model], weights: Sequence[float] | None = None, *, by: MixBy = "mean") -> Model:
    """Return a model whose distribution is the weighted mean, or product, of the distributions of several models.

    The vocabulary is the union of the vocabularies; `inference.mixture` has the equations. The order of the models has
    no effect. A model of weight 0 has no effect at all, not even on the vocabulary.

    Args:
        models: the models, all of characters or all of bytes, with the same boundary between documents.
        weights: a weight of at least 0 for each; they are divided by their sum. None weights all equally.
        by: 'mean' lets any of the models propose a character; 'product' needs the consent of all.

    Raises:
        UsageError: a weight is invalid, or the models do not fit together.
    """
    given = [1.0] * len(models) if weights is None else list(weights)
    valid = len(given) == len(models) and all(0 <= weight < math.inf for weight in given) and any(given)
    if not valid or by not in ("mean", "product"):
        problem = " needs a weight from 0 for each model, one of them above 0, and by mean or product"
        raise UsageError(Field("mix"), problem)
    parts = [(model, weight) for model, weight in zip(models, given, strict=True) if weight > 0]
    union([model.vocabulary for model in models])  # also models of weight 0 must fit
    if len(parts) == 1:
        return parts[0][0]
    return _MixedModel(sorted(parts, key=lambda part: (part[0].digest, part[1])), by)

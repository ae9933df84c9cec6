"""Validation during a run: which symbols are held out, when they are scored, and how."""

from __future__ import annotations

import numpy as np

from charlstm.config import SamplingConfig, TrainingConfig
from charlstm.inference import evaluation, native
from charlstm.inference.engine import Engine
from charlstm.inference.sampling import Sampler
from charlstm.text.corpus import Corpus, Ids, Symbols
from charlstm.text.vocabulary import Vocabulary
from charlstm.training.budget import Budget
from charlstm.training.counters import StepTime
from charlstm.training.network import Network, Scorer

MAX_SHARE = 0.05  # of a run's time for validation, besides the last one
SCORING_COST = 0.2  # time to score one symbol, where the time to train on one is 1


class ValidationSchedule:
    """Decide when to validate: at even shares of the budget, and less often if the validation text is long.

    With a budget in steps or epochs the decision does not depend on the clock.

    Args:
        budget: the length of the run.
        validations: the wanted number of validations in the run.
        valid_chars: symbols that a validation scores.
        step_chars: symbols that a step trains on.
        step_time: the time of the steps so far; the owner updates it.
    """

    def __init__(
        self, budget: Budget, validations: int, valid_chars: int, step_chars: int, step_time: StepTime
    ) -> None:
        """Start without a validation; see `start`."""
        self._budget, self._validations = budget, validations
        self._valid_chars, self._step_chars, self._step_time = valid_chars, step_chars, step_time
        self._last_at = self._last_took = 0.0  # seconds

    @property
    def is_possible(self) -> bool:
        """Whether there is a transition to score."""
        return self._valid_chars > 1

    def start(self, seconds: float) -> None:
        """Count the time until the first validation from this time of the clock."""
        self._last_at = seconds

    def record(self, began: float, ended: float) -> None:
        """Record when the latest validation began and ended, by the clock."""
        self._last_at, self._last_took = ended, ended - began

    def due(self, step: int, seconds: float) -> bool:
        """Return whether to validate after this step, at this time of the clock."""
        if not self.is_possible:
            return False
        if (total := self._budget.total_steps) is not None:
            affordable = int(MAX_SHARE / SCORING_COST * (total * self._step_chars) / self._valid_chars)
            count = max(1, min(self._validations, affordable))
            return step < total and step * count // total > (step - 1) * count // total
        limit, took = self._budget.time_limit, self.expected_seconds()
        spare = MAX_SHARE - took / limit
        return spare > 0 and seconds - self._last_at >= max(limit / self._validations, took / spare)

    def expected_seconds(self) -> float:
        """Return the time that a validation takes: that of the latest, or an estimate from the steps so far."""
        if self._last_took or not self._step_time.steps:
            return self._last_took
        seconds_per_char = self._step_time.seconds / self._step_time.steps / self._step_chars
        return SCORING_COST * self._valid_chars * seconds_per_char


def split(corpus: Corpus, valid: Corpus | None, valid_share: float) -> tuple[Symbols, Symbols]:
    """Return the symbols to train on and the symbols that are held out.

    Args:
        corpus: the text to train on.
        valid: a separate validation text, or None.
        valid_share: the share at the end of `corpus` that is held out if there is no validation text.

    Raises:
        CorpusError: the training part or the validation text has fewer than two symbols.
    """
    if valid is None:
        return corpus.split(valid_share)
    evaluation.transitions_of(np.asarray(valid.ids[:2]))
    return corpus.ids, valid.ids


def validate(network: Network, vocabulary: Vocabulary, ids: Ids, options: TrainingConfig) -> tuple[float, str]:
    """Score the validation text with the current weights, and sample a few lines.

    The native engine is the fastest on a CPU; on another device, or without it, the network itself scores.

    Args:
        network: the network in training.
        vocabulary: that of the ids.
        ids: (N,) symbols to score.
        options: those of the run; `sample_chars`, `seed` and `threads` are used.

    Returns:
        The mean loss in nats per symbol, and the sample ("" if `sample_chars` is 0).
    """

    def engine() -> Engine:
        return Engine(network.config, network.weights(), precision="fp32", threads=options.threads)

    is_native = network.embedding.weight.device.type == "cpu" and native.library() is not None
    reader = engine() if is_native else Scorer(network)
    nats = evaluation.evaluate(reader, ids).nats_per_char
    if not options.sample_chars:
        return nats, ""
    config = SamplingConfig(length=options.sample_chars, seed=options.seed)
    sampler = Sampler(reader if isinstance(reader, Engine) else engine(), vocabulary, config)
    return nats, "".join(sampler.stream())

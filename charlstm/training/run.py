"""The parts of a run, and what they say about it: the events and the facts that checkpoints record."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig, TrainingConfig
from charlstm.provenance import BaseRecord, CorpusRecord, TextRecord
from charlstm.text.corpus import Corpus, beginning
from charlstm.training import hardware, memory, precision, validation
from charlstm.training.budget import Budget
from charlstm.training.counters import Clock, StepTime
from charlstm.training.events import CurvePoint, Progress, Started, Stopped, StopReason, Validated
from charlstm.training.run_dir import RunDir
from charlstm.training.state import TrainingState
from charlstm.training.validation import ValidationSchedule
from charlstm.training.workers import Workers

CURVE_POINTS = 200  # `CurvePoint` events of a whole run


class Run:
    """The parts of a run: its texts, its directory, its state and its length.

    Args:
        corpus: the training text.
        valid: a separate validation text, or None.
        directory: the run directory.
        options: those of the run, without None for a value to be chosen.
        model: the shape of the network; the weights are not initialised.
        workers: the workers that train the run; None if this process is the only one.

    Attributes:
        corpus: the training text.
        valid: the separate validation text, or None.
        directory: the run directory.
        train_chars: symbols of the training part.
        valid_ids: (N,) symbols that each validation scores.
        state: network, optimizer and everything else that a step changes.
        budget: the length of the run.
        schedule: when to validate.
        step_time: the time that this process has spent in steps.
        clock: the time of the run.
        base: the model that is fine-tuned, or None.
        bf16_speedup: how many times as fast a step in bf16 is as one in fp32; None if it was not measured.

    Raises:
        CorpusError: the text is too short.
        CharlstmError: the run does not fit in memory.
    """

    def __init__(
        self,
        corpus: Corpus,
        valid: Corpus | None,
        directory: RunDir,
        options: TrainingConfig,
        model: ModelConfig,
        workers: Workers | None = None,
    ) -> None:
        self.corpus, self.valid, self.directory = corpus, valid, directory
        train_ids, held_out = validation.split(corpus, valid, options.valid_share)
        self.train_chars, self._held_out_chars = len(train_ids), len(held_out)
        self.valid_ids = beginning(held_out, options.valid_chars, model.boundary)
        device = hardware.device(options.device)
        precision.check(options.precision, device)
        part = (workers or Workers()).part(options.batch_size)
        memory.check(model, replace(options, batch_size=part.count), device.type, len(self.valid_ids))
        self.state = TrainingState(model, options, train_ids, device, workers)
        self.budget = Budget.of(options, self.state.streams.windows_per_epoch)
        self._step_chars, self.step_time = options.batch_size * options.seq_len, StepTime()
        self.schedule = ValidationSchedule(
            self.budget, options.validations, len(self.valid_ids), self._step_chars, self.step_time
        )
        self.clock = Clock()
        self.base: BaseRecord | None = None
        self.bf16_speedup: float | None = None

    @property
    def options(self) -> TrainingConfig:
        """The options of the run; `dropout` and `weight_decay` may change once, when its speed is known."""
        return self.state.options

    def choose_precision(self, workers: Workers) -> None:
        """Choose the precision before the first step, by measuring in worker 0."""
        part = workers.part(self.options.batch_size)
        model, options = self.state.network.config, replace(self.options, batch_size=part.count)
        self.bf16_speedup = workers.from_leader(lambda: precision.speedup(model, options))
        self.state.set_precision("bf16" if self.bf16_speedup >= precision.LEAST_SPEEDUP else "fp32")

    @property
    def threads(self) -> int:
        """The number of threads that train."""
        return self.options.threads or torch.get_num_threads()

    @property
    def share(self) -> float:
        """The share of the budget that is spent, from 0 to 1; at 1 the run ends."""
        reserved = self.schedule.expected_seconds()
        return self.budget.share(self.state.counters.step, self.clock.seconds(), reserved)

    @property
    def curve_points(self) -> int:
        """The number of points of the curves, at even shares of the budget, that the run has reached."""
        reserved = self.schedule.expected_seconds()
        return self.budget.parts(CURVE_POINTS, self.state.counters.step, self.clock.seconds(), reserved)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether as many validations in a row as `patience` allows were not better than the best."""
        return self.options.patience is not None and self.state.counters.no_better >= self.options.patience

    def weights(self) -> Checkpoint:
        """Return a checkpoint of the weights."""
        return self.state.to_checkpoint(self.corpus.vocabulary, self.facts())

    def resumable(self) -> Checkpoint:
        """Return a checkpoint of the whole state."""
        seconds = None if self.budget.seconds is None else self.clock.seconds()
        return self.state.to_resumable(self.corpus.vocabulary, self.facts(), seconds)

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint records about the run for its readers."""
        counters, options = self.state.counters, self.options
        return {
            "corpus": CorpusRecord(
                **vars(TextRecord.of(self.corpus)),
                valid_share=options.valid_share if self.valid is None else 0.0,
                valid_chars=options.valid_chars,
                validation=None if self.valid is None else TextRecord.of(self.valid),
            ).to_json(),
            "base": None if self.base is None else self.base.to_json(),
            "chars_seen": counters.chars_seen,
            "valid_nats_per_char": counters.last_nats if counters.validated_step == counters.step else None,
            "best_valid_nats_per_char": counters.best_nats,
            "best_step": counters.best_step,
            "device": self.state.device.type,
            "threads": torch.get_num_threads(),
            **({"workers": self.state.workers.size} if self.state.workers.size > 1 else {}),
            "kernels": self.state.network.recurrence.path,
            "versions": hardware.versions(),
        }

    def settings(self) -> dict[str, str | None]:
        """Return how the texts are read and what is fine-tuned, for `config.toml`; None for a default."""
        vocabulary = self.corpus.vocabulary
        boundary = vocabulary.boundary
        return {
            "from": None if self.base is None else self.base.checkpoint,
            "valid": None if self.valid is None else self.valid.names[0],
            "symbols": None if vocabulary.kind == "chars" else vocabulary.kind,
            "encoding": None if self.corpus.encoding == "utf-8" else self.corpus.encoding,
            "boundary": None if boundary is None else boundary.replace("\\", "\\\\"),  # read as an escape sequence
        }

    def started(self) -> Started:
        """Return the first event: everything that was decided about the run."""
        options, model, vocabulary = self.options, self.state.network.config, self.corpus.vocabulary
        return Started(
            run=self.directory.path,
            cell=model.cell,
            layers=model.layers,
            hidden=model.hidden,
            embedding=model.embedding,
            dropout=options.dropout,
            parameters=model.parameters(),
            chars=len(self.corpus.ids),
            train_chars=self.train_chars,
            held_out_chars=self._held_out_chars,
            valid_chars=len(self.valid_ids),
            vocab_size=model.vocab_size,
            batch_size=options.batch_size,
            seq_len=options.seq_len,
            lr=options.lr,
            device=str(self.state.device),
            threads=self.threads,
            kernels=self.state.network.recurrence.path,
            precision=options.precision,
            bf16_speedup=self.bf16_speedup,
            budget=str(self.budget),
            seed=options.seed,
            resumed_step=self.state.counters.step,
            patience=options.patience,
            keep=options.keep,
            valid=() if self.valid is None else self.valid.names,
            base=None if self.base is None else self.base.checkpoint or "a model without a file",
            boundary=vocabulary.boundary,
            unit=vocabulary.unit,
        )

    def progress(self, lr: float, chars_per_second: float) -> Progress:
        """Return the event after a step.

        Args:
            lr: the learning rate of the step.
            chars_per_second: the speed of the last seconds.
        """
        counters, seconds = self.state.counters, self.clock.seconds()
        return Progress(
            step=counters.step,
            share=self.share,
            train_bits_per_char=counters.train_nats / math.log(2),
            chars_per_second=chars_per_second,
            chars_seen=counters.chars_seen,
            seconds=seconds,
            seconds_left=self.budget.seconds_left(counters.step, seconds, chars_per_second / self._step_chars),
            lr=lr,
        )

    def curve_point(self, lr: float, chars_per_second: float) -> CurvePoint:
        """Return the event at a point of the curves.

        Args:
            lr: the learning rate of the step.
            chars_per_second: the speed of the last seconds.
        """
        return CurvePoint(
            step=self.state.counters.step,
            share=self.share,
            seconds=self.clock.seconds(),
            train_bits_per_char=self.state.counters.train_nats / math.log(2),
            chars_per_second=chars_per_second,
            lr=lr,
        )

    def validated(self, nats: float, sample: str, *, is_best: bool) -> Validated:
        """Return the event after a validation.

        Args:
            nats: mean loss in nats per symbol.
            sample: a few lines that the model generated.
            is_best: whether no validation before was as good.
        """
        return Validated(
            step=self.state.counters.step,
            seconds=self.clock.seconds(),
            valid_bits_per_char=nats / math.log(2),
            valid_nats_per_char=nats,
            train_bits_per_char=self.state.counters.train_nats / math.log(2),
            best=is_best,
            sample=sample,
        )

    def stopped(self, reason: StopReason, signal: int | None = None) -> Stopped:
        """Return the last event.

        Args:
            reason: why the run ends.
            signal: the number of the signal that ended it.
        """
        counters = self.state.counters
        return Stopped(
            step=counters.step,
            seconds=self.clock.seconds(),
            reason=reason,
            best_valid_bits_per_char=None if counters.best_nats is None else counters.best_nats / math.log(2),
            best=self.directory.best,
            last=self.directory.last,
            signal=signal,
            no_better=counters.no_better,
            step_seconds=self.step_time.seconds,
        )

"""The training loop: a generator of events. It prints nothing, and it resumes bit for bit.

If the budget is in steps or epochs, nothing in the checkpoints of a run depends on the clock, so that a run that was
stopped and resumed ends in the same bytes as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from charlstm import checkpoint, runs
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig, TrainingConfig, TrainingOptions
from charlstm.errors import CheckpointError, Field, UsageError
from charlstm.model import Model, load
from charlstm.provenance import BaseRecord, CorpusRecord, TextRecord
from charlstm.terminal import escape
from charlstm.text.corpus import Corpus, beginning
from charlstm.training import defaults, divergence, hardware, memory, resume, run_dir, validation
from charlstm.training.budget import Budget
from charlstm.training.counters import Clock, SpeedMeter, StepTime
from charlstm.training.divergence import DivergenceGuard
from charlstm.training.events import (
    CheckpointSaved,
    Event,
    Progress,
    Started,
    Stopped,
    StopReason,
    Validated,
    Warned,
)
from charlstm.training.resume import TrainingRecord
from charlstm.training.run_dir import Metrics, RunDir
from charlstm.training.signals import Signals
from charlstm.training.state import TrainingState
from charlstm.training.streams import fit_batch
from charlstm.training.validation import ValidationSchedule

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11

    from charlstm.config import TrainingKeywords

SAVE_SECONDS = 20.0  # between two saves: the most work that is lost if the process is killed
PROGRESS_SECONDS = 0.1  # between two `Progress` events
COUNTED_CHARS = 10_000_000  # symbols of the text that are counted for the initial bias of the projection
SPEED_KNOWN_AT = 0.1  # share of the budget after which the speed of the run is known well enough


class Trainer:
    """One run: create it with `Trainer.start` or `Trainer.resume`, then iterate over `events`, which trains.

    Attributes:
        corpus: the training text.
        valid: a separate validation text, or None.
        directory: the run directory, locked until the last event.
        state: network, optimizer and everything else that a step changes.
        budget: the length of the run.
        schedule: when to validate.
        valid_ids: (N,) symbols that each validation scores.
        clock: the time of the run.
    """

    def __init__(
        self, corpus: Corpus, valid: Corpus | None, directory: RunDir, options: TrainingConfig, model: ModelConfig
    ) -> None:
        self.corpus, self.valid, self.directory = corpus, valid, directory
        train_ids, held_out = validation.split(corpus, valid, options.valid_share)
        self._train_chars, self._held_out_chars = len(train_ids), len(held_out)
        self.valid_ids = beginning(held_out, options.valid_chars, model.boundary)
        device = hardware.device(options.device)
        memory.check(model, options, device.type, len(self.valid_ids))
        self.state = TrainingState(model, options, train_ids, device)
        self.budget = Budget.of(options, self.state.streams.windows_per_epoch)
        self._step_chars, self._step_time = options.batch_size * options.seq_len, StepTime()
        self.schedule = ValidationSchedule(
            self.budget, options.validations, len(self.valid_ids), self._step_chars, self._step_time
        )
        self.clock = Clock()
        self._guard = DivergenceGuard(options.on_divergence)
        self._base: BaseRecord | None = None  # the model that is fine-tuned
        self._provisional: set[str] = set()  # options chosen from an estimate of how many epochs will be read
        self._warnings: list[str] = []

    @classmethod
    def start(
        cls,
        corpus: Corpus,
        run: Path | str,
        options: TrainingOptions,
        *,
        valid: Corpus | None = None,
        from_: Model | None = None,
    ) -> Trainer:
        """Create a new run.

        Args:
            corpus: the training text.
            run: the run directory, which is created.
            options: those that are None are chosen from the text, the budget and the machine.
            valid: a separate validation text; then all of `corpus` is for training.
            from_: the model to fine-tune. Its shape is kept; its vocabulary grows by the new symbols of the text.

        Raises:
            UsageError: options that contradict each other or the shape of `from_`.
            CheckpointError: the directory already holds a model, or cannot be written.
            RunBusy: another process trains there.
            CorpusError: the text is too short.
        """
        _check_combinations(options, valid, from_)
        vocabulary = corpus.vocabulary.union(*(known.vocabulary for known in (valid, from_) if known is not None))
        corpus = corpus.recoded(vocabulary)
        valid = None if valid is None else valid.recoded(vocabulary)
        train_ids, held_out = validation.split(corpus, valid, options.valid_share)
        if options.patience is not None and len(held_out) < 2:
            raise UsageError(
                Field("patience"), " counts validations, but nothing of this text is held out to validate on"
            )
        device, directory = hardware.device(options.device), RunDir(Path(run))
        with hardware.run_settings(device, options.threads):
            is_timed = options.steps is None and options.epochs is None
            speed = hardware.speed(device) if is_timed else defaults.NOMINAL_SPEED
            base = None if from_ is None else from_.config
            chosen = defaults.choose(options, len(train_ids), len(vocabulary), base, speed=speed)
            batch_size, seq_len = fit_batch(len(train_ids), chosen.batch_size, chosen.seq_len)
            chosen = replace(chosen, batch_size=batch_size, seq_len=seq_len)
            sizes = (len(vocabulary), chosen.hidden, chosen.layers, chosen.embedding, chosen.cell)
            model = ModelConfig(*sizes, boundary=vocabulary.boundary_id)
            directory.lock()
            try:
                directory.check_free()
                with memory.shortage_explained(model):
                    trainer = cls(corpus, valid, directory, chosen, model)
                if from_ is None:
                    counts = np.bincount(train_ids[:COUNTED_CHARS], minlength=len(vocabulary))
                    trainer.state.network.initialise(trainer.state.generator, chosen.forget_bias, counts)
                else:
                    trainer._fine_tune(from_)
            except BaseException:
                directory.unlock()
                raise
        if is_timed:
            trainer._provisional = {name for name in ("dropout", "weight_decay") if getattr(options, name) is None}
        if valid is None and options.valid_share and vocabulary.boundary is not None and not len(held_out):
            trainer._warnings.append(
                "the text is one document, so that nothing is held out: give a separate validation text"
            )
        return trainer

    @classmethod
    def resume(
        cls,
        corpus: Corpus,
        path: Path | str,
        changes: Mapping[str, Any] | None = None,
        *,
        valid: Corpus | None = None,
        from_: Model | None = None,
        allow_new_corpus: bool = False,
    ) -> Trainer:
        """Continue a saved run.

        Args:
            corpus: the text of the run. Another one is an error, because streams and carried state belong to the text.
            path: the run directory, or a checkpoint in it.
            changes: options that differ from the saved ones; those that shape the model or the streams may not change.
            valid: the separate validation text of the run, if it has one.
            from_: the model that the run was fine-tuned from; it is only compared, and may be left out.
            allow_new_corpus: continue with another text in the vocabulary of the run, from its start.

        Raises:
            ResumeError: a text, the model or the shape differs, or the file holds no valid training state.
            CheckpointError: there is no such run, or the file is damaged.
            RunBusy: another process trains there.
        """
        file = runs.resolve(path, prefer="last")
        directory = RunDir(file.parent)
        directory.lock()
        try:
            saved = checkpoint.load(file, training=True)
            record = TrainingRecord.of(saved)
            options = resume.options_of(record, changes or {})
            same_text = resume.check_text(saved, corpus, allow_new=allow_new_corpus)
            base = resume.check_base(saved, from_)
            resume.check_validation(saved, valid)
            corpus = corpus.recoded(saved.vocabulary)
            valid = None if valid is None else valid.recoded(saved.vocabulary)
            trainer = cls(corpus, valid, directory, options, saved.model)
            trainer.state.restore(saved, same_text=same_text)
        except BaseException:
            directory.unlock()
            raise
        trainer._base = base
        trainer.clock = Clock(record.seconds or 0.0)
        now = {**hardware.versions(), "threads": str(trainer._threads), "device": trainer.state.device.type}
        trainer._warnings += resume.changes_of_environment(saved, now)
        return trainer

    def _fine_tune(self, from_: Model) -> None:
        """Take the weights of a model of the same shape instead of random ones."""
        ids = self.corpus.vocabulary.lookup(from_.vocabulary.symbols)[0]
        self.state.network.adopt(from_.weights, ids, self.state.generator)
        path = None if from_.path is None else escape(str(from_.path))
        self._base = BaseRecord(path, from_.digest.hex())

    @property
    def options(self) -> TrainingConfig:
        """The options of the run; `dropout` and `weight_decay` may change once, when its speed is known."""
        return self.state.options

    @property
    def _threads(self) -> int:
        return self.state.options.threads or torch.get_num_threads()

    @property
    def started(self) -> Started:
        """Everything that was decided about the run, as its first event."""
        options, model, vocabulary = self.state.options, self.state.network.config, self.corpus.vocabulary
        return Started(
            run=self.directory.path,
            cell=model.cell,
            layers=model.layers,
            hidden=model.hidden,
            embedding=model.embedding,
            dropout=options.dropout,
            parameters=model.parameters(),
            chars=len(self.corpus.ids),
            train_chars=self._train_chars,
            held_out_chars=self._held_out_chars,
            valid_chars=len(self.valid_ids),
            vocab_size=model.vocab_size,
            batch_size=options.batch_size,
            seq_len=options.seq_len,
            lr=options.lr,
            device=str(self.state.device),
            threads=self._threads,
            kernels=self.state.network.recurrence.path,
            budget=str(self.budget),
            seed=options.seed,
            resumed_step=self.state.counters.step,
            patience=options.patience,
            keep=options.keep,
            valid=() if self.valid is None else self.valid.names,
            base=None if self._base is None else self._base.checkpoint or "a model without a file",
            boundary=vocabulary.boundary,
            unit=vocabulary.unit,
        )

    def events(self) -> Iterator[Event]:
        """Train, and yield events. The last one is `Stopped`. A Trainer can be iterated over once.

        When the generator ends, the run directory is unlocked and the settings of the process are as before. In the
        main thread, SIGINT, SIGTERM or SIGHUP finishes the current step, saves and stops; a second one stops at once.

        Raises:
            DivergenceError: a loss or gradient is NaN or infinite, and there may be no more rollback.
            CheckpointError: the last save failed; the files are those of the save before.
        """
        assert self.directory.is_locked, "a Trainer runs once"
        try:
            with (
                hardware.run_settings(self.state.device, self.state.options.threads),
                memory.shortage_explained(self.state.network.config),
                Metrics(self.directory) as metrics,
                Signals() as signals,
            ):
                for event in self._run(signals):
                    if not isinstance(event, (Progress, CheckpointSaved)) and (warning := metrics.write(event)):
                        yield Warned(self.state.counters.step, warning)
                    yield event
        finally:
            self.directory.unlock()

    def _run(self, signals: Signals) -> Iterator[Event]:
        """The run from its first event to its last."""
        self.clock.start()
        self.schedule.start(self.clock.seconds())
        yield self.started
        if warning := self.directory.write_settings(self.state.options, **self._settings_of_texts()):
            self._warnings.append(warning)
        for message in self._warnings:
            yield Warned(self.state.counters.step, message)
        if self._share() >= 1:
            yield self._stopped("already-finished")
            return
        if self._is_out_of_patience():
            yield self._stopped("patience")
            return
        self._guard.keep(self._resumable())
        yield from self._train(signals)
        if found := self._guard.check(self.state.counters):
            yield self._roll_back(found)
        if not signals.received:
            if self.state.counters.validated_step != self.state.counters.step and self.schedule.is_possible:
                yield from self._validate()
            if not self.directory.best.exists():
                yield self._save(self.directory.best, self._weights())
        yield self._save(self.directory.last, self._resumable())
        if signals.received:
            yield self._stopped("interrupted", signals.received)
        else:
            yield self._stopped("finished" if self._share() >= 1 else "patience")

    def _train(self, signals: Signals) -> Iterator[Event]:
        """Step until the budget is spent, patience is exhausted or a signal arrives; report, validate, save."""
        state, clock, guard = self.state, self.clock, self._guard
        shown = saved = clock.seconds()
        speed = SpeedMeter(shown, state.counters.chars_seen)
        while not signals.received and not self._is_out_of_patience() and (share := self._share()) < 1:
            began = clock.seconds()
            step = state.step(share)
            now = clock.seconds()
            self._step_time.add(now - began)
            guard.add(step.loss, step.grad_norm)

            show, save = now - shown >= PROGRESS_SECONDS, now - saved >= SAVE_SECONDS
            validate, keep = self.schedule.due(state.counters.step, now), self._is_good_step()
            if state.device.type == "cuda" and not (show or validate or save or keep or self._share() >= 1):
                continue  # reading the loss would wait for the GPU and leave it without work
            if found := guard.check(state.counters):
                yield self._roll_back(found)
                continue
            if self._provisional and share >= SPEED_KNOWN_AT and (change := self._choose_again(share)):
                yield Warned(state.counters.step, change)
            if keep and guard.is_good(state.counters):
                guard.keep(self._resumable())
            if show:
                shown = now
                yield self._progress(step.lr, speed)
            if validate:
                yield from self._validate()
            if save:
                yield self._try_to_save(self.directory.last, self._resumable())
                saved = clock.seconds()

    def _share(self) -> float:
        reserved = self.schedule.expected_seconds()
        return self.budget.share(self.state.counters.step, self.clock.seconds(), reserved)

    def _is_out_of_patience(self) -> bool:
        patience = self.state.options.patience
        return patience is not None and self.state.counters.no_better >= patience

    def _is_good_step(self) -> bool:
        return self.state.counters.step % divergence.GOOD_STEPS == 0

    def _roll_back(self, found: divergence.Divergence) -> Warned:
        return Warned(found.step, self._guard.roll_back(found, self.state, self.directory.last))

    def _choose_again(self, share: float) -> str | None:
        """Choose the provisional options again, now that the speed is known; return a warning if one changes."""
        state = self.state
        epochs = state.counters.chars_seen / share / self._train_chars
        changes: dict[str, Any] = {
            name: value
            for name, value in defaults.regularisation(epochs).items()
            if name in self._provisional and value != getattr(state.options, name)
        }
        self._provisional.clear()
        if not changes:
            return None
        state.options = replace(state.options, **changes)
        state.optimizer.weight_decay = state.options.weight_decay
        words = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in changes.items())
        return f"at this speed {epochs:.1f} epochs will be read, which differs from the estimate: {words} from now on"

    def _validate(self) -> Iterator[Event]:
        """Score the validation text, sample a few lines, and save the weights if they are the best or to be kept."""
        counters, began = self.state.counters, self.clock.seconds()
        nats, sample = validation.validate(
            self.state.network, self.corpus.vocabulary, self.valid_ids, self.state.options
        )
        before = counters.best_nats, counters.best_step
        is_best = counters.record_validation(nats)
        self.schedule.record(began, self.clock.seconds())
        yield Validated(
            step=counters.step,
            seconds=self.clock.seconds(),
            valid_bits_per_char=nats / math.log(2),
            valid_nats_per_char=nats,
            train_bits_per_char=counters.train_nats / math.log(2),
            best=is_best,
            sample=sample,
        )
        if is_best:
            yield (outcome := self._try_to_save(self.directory.best, self._weights()))
            if isinstance(outcome, Warned):
                counters.best_nats, counters.best_step = before
        if self.state.options.keep:
            yield from self._keep(self.state.options.keep)

    def _keep(self, count: int) -> Iterator[Event]:
        """Save the weights of this step, and when they are stored, remove all but the latest `count`."""
        counters = self.state.counters
        yield (outcome := self._try_to_save(self.directory.kept_file(counters.step), self._weights()))
        if isinstance(outcome, CheckpointSaved):
            kept = sorted({*counters.kept, counters.step})
            for step in kept[:-count]:
                self.directory.forget(step)
            counters.kept = tuple(kept[-count:])

    def _try_to_save(self, file: Path, saved: Checkpoint) -> CheckpointSaved | Warned:
        try:
            return self._save(file, saved)
        except CheckpointError as error:
            return Warned(saved.step, f"{error}; training continues and will try again")

    def _save(self, file: Path, saved: Checkpoint) -> CheckpointSaved:
        self.directory.save(file, saved)
        return CheckpointSaved(saved.step, file)

    def _weights(self) -> Checkpoint:
        return self.state.to_checkpoint(self.corpus.vocabulary, self._facts())

    def _resumable(self) -> Checkpoint:
        seconds = None if self.budget.seconds is None else self.clock.seconds()
        return self.state.to_resumable(self.corpus.vocabulary, self._facts(), seconds)

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint records about the run for its readers."""
        counters, options = self.state.counters, self.state.options
        return {
            "corpus": CorpusRecord(
                **vars(TextRecord.of(self.corpus)),
                valid_share=options.valid_share if self.valid is None else 0.0,
                valid_chars=options.valid_chars,
                validation=None if self.valid is None else TextRecord.of(self.valid),
            ).to_json(),
            "base": None if self._base is None else self._base.to_json(),
            "chars_seen": counters.chars_seen,
            "valid_nats_per_char": counters.last_nats if counters.validated_step == counters.step else None,
            "best_valid_nats_per_char": counters.best_nats,
            "best_step": counters.best_step,
            "device": self.state.device.type,
            "threads": torch.get_num_threads(),
            "kernels": self.state.network.recurrence.path,
            "versions": hardware.versions(),
        }

    def _settings_of_texts(self) -> dict[str, str | None]:
        """How the texts were read and what is fine-tuned, as far as it is not the default, for `config.toml`."""
        vocabulary = self.corpus.vocabulary
        boundary = vocabulary.boundary
        return {
            "from": None if self._base is None else self._base.checkpoint,
            "valid": None if self.valid is None else self.valid.names[0],
            "symbols": None if vocabulary.kind == "chars" else vocabulary.kind,
            "encoding": None if self.corpus.encoding == "utf-8" else self.corpus.encoding,
            "boundary": None if boundary is None else boundary.replace("\\", "\\\\"),  # read as an escape sequence
        }

    def _progress(self, lr: float, speed: SpeedMeter) -> Progress:
        counters, seconds = self.state.counters, self.clock.seconds()
        chars_per_second = speed.chars_per_second(seconds, counters.chars_seen)
        return Progress(
            step=counters.step,
            share=self._share(),
            train_bits_per_char=counters.train_nats / math.log(2),
            chars_per_second=chars_per_second,
            chars_seen=counters.chars_seen,
            seconds=seconds,
            seconds_left=self.budget.seconds_left(counters.step, seconds, chars_per_second / self._step_chars),
            lr=lr,
        )

    def _stopped(self, reason: StopReason, received: int | None = None) -> Stopped:
        counters = self.state.counters
        return Stopped(
            step=counters.step,
            seconds=self.clock.seconds(),
            reason=reason,
            best_valid_bits_per_char=None if counters.best_nats is None else counters.best_nats / math.log(2),
            best=self.directory.best,
            last=self.directory.last,
            signal=received,
            no_better=counters.no_better,
            step_seconds=self._step_time.seconds,
        )


def train(
    corpus: Corpus,
    run: Path | str | None = None,
    *,
    from_: Model | Path | str | None = None,
    valid: Corpus | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[TrainingKeywords],
) -> Model:
    """Train a model on a text and load the best checkpoint.

    Args:
        corpus: the text, from `charlstm.read`.
        run: the run directory, which is created; None creates a new one under checkpoints/, named after the text.
        from_: a model to fine-tune, or its checkpoint; None starts from random weights.
        valid: a separate validation text; None holds out the last tenth of `corpus`.
        on_event: called with each event of `charlstm.training.events`.
        **options: fields of `charlstm.config.TrainingOptions`, such as `seconds=60`, `hidden=256`, `cell="gru"`.

    Returns:
        The model with the best validation, ready to sample and to score.

    Raises:
        UsageError: an option is out of its range, or options exclude each other.
        CharlstmError: as `Trainer.start` and `Trainer.events`.
    """
    folder = run_dir.fresh(corpus.names) if run is None else Path(run)
    base = load(from_) if isinstance(from_, (str, Path)) else from_
    for event in Trainer.start(corpus, folder, TrainingOptions(**options), valid=valid, from_=base).events():
        if on_event is not None:
            on_event(event)
    return load(folder)


def _check_combinations(options: TrainingOptions, valid: Corpus | None, from_: Model | None) -> None:
    """Raise UsageError for options that have no effect together with a validation text or a model to fine-tune."""
    if valid is not None and options.valid_share != TrainingOptions.valid_share:
        raise UsageError(
            *(
                Field("valid_share"),
                f" {options.valid_share:g} and ",
                Field("valid"),
                " are mutually exclusive: the first ",
            ),
            "holds out a part of the text, the second is a separate validation text",
        )
    if from_ is not None and options.forget_bias != TrainingOptions.forget_bias:
        raise UsageError(
            *(
                Field("forget_bias"),
                " and ",
                Field("from_"),
                " are mutually exclusive: the first is for random weights, ",
            ),
            "the second loads trained ones",
        )

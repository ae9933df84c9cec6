"""The training loop: a generator of events. It prints nothing, saves what it says it saved, and resumes bit for bit.

For a budget in steps or epochs nothing in a run's checkpoints depends on the clock, so that a run that was stopped and
resumed ends in the same bytes as one that never was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from charlstm import checkpoint, runs
from charlstm.atomicfile import FolderLock
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig, SamplingConfig, TrainingConfig, TrainingOptions, flag, from_json, to_json
from charlstm.errors import CheckpointError, DivergenceError, UsageError
from charlstm.inference import evaluation, native
from charlstm.inference.engine import Engine
from charlstm.inference.sampling import Sampler
from charlstm.model import Model, load
from charlstm.provenance import BaseRecord, CorpusRecord, TextRecord
from charlstm.runs import BEST, LAST
from charlstm.terminal import escape
from charlstm.text.corpus import Corpus, Symbols, beginning
from charlstm.training import defaults, hardware, memory, records, resume, run_dir
from charlstm.training.counters import Clock, Speed, Tally
from charlstm.training.events import Event, Progress, Saved, Started, Stopped, Validated, Warned
from charlstm.training.network import Network, Scorer
from charlstm.training.optimizer import Optimizer
from charlstm.training.scan_native import keep_pages
from charlstm.training.signals import Signals
from charlstm.training.streams import Streams, fit_batch

SAVE_SECONDS = 20.0  # at most so much work is lost to a kill
PROGRESS_SECONDS = 0.1
COUNTED_CHARS = 10_000_000  # of the text, for how frequent each symbol is
VALIDATION_SHARE = 0.05  # of a run, with the validation at its end, which may take longer
SCORING_COST = 0.2  # of a character, where that of training on one is 1
GOOD_STEPS = 100  # a run that diverges goes back at most so far
MAX_ROLLBACKS = 3
SETTLED_AT = 0.1  # of the budget: by then a run's own speed is known


class Trainer:
    """One run, fresh (`Trainer.start`) or taken up again (`Trainer.resume`); `events` trains."""

    def __init__(
        self, corpus: Corpus, valid: Corpus | None, run: Path, options: TrainingConfig, model: ModelConfig
    ) -> None:
        keep_pages()
        self.corpus, self.valid, self.run, self.options = corpus, valid, run, options
        self._device = hardware.device(options.device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if self._device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # products of float32 on tensor cores, as cuDNN's are by default
        train_ids, held_out = _split(corpus, valid, options)
        self._valid_ids = beginning(held_out, options.valid_chars, model.boundary)
        memory.check(model, options, self._device.type, len(self._valid_ids))
        self._streams = Streams(train_ids, options.batch_size, options.seq_len)
        self._train_chars, self._held_out_chars = len(train_ids), len(held_out)
        self._network = Network(model).to(self._device)
        self._optimizer = Optimizer(self._network, options)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._mask_generator = torch.Generator(self._device).manual_seed(options.seed)
        self._state = self._network.zero_state(options.batch_size)
        self._base: BaseRecord | None = None  # the model that is fine-tuned
        self._tally = Tally()
        self._seconds_before = 0.0  # in earlier sittings
        self._steps_here, self._step_seconds = 0, 0.0  # training steps of this one, and the time in them
        self._validated_at = self._validation_took = 0.0  # seconds
        self._unseen: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of the steps not yet looked at
        self._good: Checkpoint | None = None
        self._lock: FolderLock | None = None
        self._warnings: list[str] = []
        self._unsettled: set[str] = set()  # choices that rest on how often the text will be read, as far as is foreseen

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
        """A fresh run in the folder `run`, which is made.

        Args:
            valid: a text of its own to validate on; all of `corpus` trains then.
            from_: the model to fine-tune: its shape is kept, and its vocabulary grows by what is new in the text.

        Raises:
            UsageError: options that contradict each other or the shape of `from_`.
            CheckpointError: the folder holds a model already, or cannot be written.
            RunBusy: another process trains there.
            CorpusError: the text is too short to train on.
        """
        run = Path(run)
        if valid is not None and options.valid_share != TrainingOptions.valid_share:
            raise UsageError(
                f"--valid-share {options.valid_share:g} holds out a part of the text, --valid gives another text "
                "to validate on: choose one of them"
            )
        if from_ is not None and options.forget_bias != TrainingOptions.forget_bias:
            raise UsageError(
                "--forget-bias is for fresh weights, and with --from there are none: leave out one of them"
            )
        vocabulary = corpus.vocabulary.union(*(known.vocabulary for known in (valid, from_) if known is not None))
        corpus = corpus.recoded(vocabulary)
        valid = None if valid is None else valid.recoded(vocabulary)
        train_ids, held_out = _split(corpus, valid, options)
        if options.patience is not None and len(held_out) < 2:
            raise UsageError("--patience counts validations, and of this text nothing is held out to validate on")
        speed = defaults.NOMINAL_SPEED
        if options.steps is None and options.epochs is None:
            if options.threads is not None:
                torch.set_num_threads(options.threads)
            speed = hardware.speed(hardware.device(options.device))
        base = None if from_ is None else from_.config
        chosen = defaults.choose(options, len(train_ids), len(vocabulary), base, speed=speed)
        batch_size, seq_len = fit_batch(len(train_ids), chosen.batch_size, chosen.seq_len)
        chosen = replace(chosen, batch_size=batch_size, seq_len=seq_len)
        sizes = (len(vocabulary), chosen.hidden, chosen.layers, chosen.embedding, chosen.cell)
        model = ModelConfig(*sizes, boundary=vocabulary.boundary_id)
        lock = run_dir.lock(run)
        try:
            run_dir.check_free(run)
            with memory.shortage_explained(model):
                training = cls(corpus, valid, run, chosen, model)
            if chosen.seconds is not None:
                training._unsettled = {n for n in ("dropout", "weight_decay") if getattr(options, n) is None}
            if from_ is None:
                counts = np.bincount(train_ids[:COUNTED_CHARS], minlength=len(vocabulary))
                training._network.initialise(training._generator, chosen.forget_bias, counts)
            else:
                ids = vocabulary.lookup(from_.vocabulary.symbols)[0]
                training._network.adopt(from_.weights, ids, training._generator)
                path = None if from_.path is None else escape(str(from_.path))
                training._base = BaseRecord(path, from_.digest.hex())
        except BaseException:
            lock.close()
            raise
        training._lock = lock
        if valid is None and options.valid_share and vocabulary.boundary is not None and not len(held_out):
            training._warnings.append("the text is one document: nothing is held out; give a text to --valid")
        return training

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
        """Go on with a saved run.

        Args:
            corpus: the run's text; another is refused, for the carried states and the cursor belong to it.
            path: the run's folder, or the checkpoint to go on from; the run is the folder that it lies in.
            changes: options that differ from the saved ones. Those that shape the model or the streams may not.
            valid: the run's validation text, where it has one of its own.
            from_: nothing is taken from it; one that is not what the run began with is refused.
            allow_new_corpus: take another text whose characters the run knows; its streams start at their beginning.

        Raises:
            ResumeError: a text or the shape differs, or the file holds no training state.
            CheckpointError: no such run, or a damaged file.
        """
        file = runs.resolve(path, prefer="last")
        lock = run_dir.lock(file.parent)
        try:
            saved = checkpoint.load(file, training=True)
            options = resume.options_of(saved, changes or {})
            same_text = resume.check_text(saved, corpus, allow_new=allow_new_corpus)
            base = resume.check_base(saved, from_)
            resume.check_validation(saved, valid)
            corpus = corpus.recoded(saved.vocabulary)
            valid = None if valid is None else valid.recoded(saved.vocabulary)
            training = cls(corpus, valid, file.parent, options, saved.model)
            training._base = base
            training._restore(saved, same_text)
            training._warn_of_changes(records.surroundings_of(saved))
        except BaseException:
            lock.close()
            raise
        training._lock = lock
        return training

    @property
    def started(self) -> Started:
        """All that was decided, for whoever wants to see it before the first step."""
        options, model = self.options, self._network.config
        return Started(
            run=self.run,
            cell=model.cell,
            layers=model.layers,
            hidden=model.hidden,
            embedding=model.embedding,
            dropout=options.dropout,
            parameters=model.parameters(),
            chars=len(self.corpus.ids),
            train_chars=self._train_chars,
            held_out_chars=self._held_out_chars,
            valid_chars=len(self._valid_ids),
            vocab_size=model.vocab_size,
            batch_size=options.batch_size,
            seq_len=options.seq_len,
            lr=options.lr,
            device=str(self._device),
            threads=torch.get_num_threads(),
            kernels=self._network.recurrence.path,
            budget=_budget(options),
            seed=options.seed,
            resumed_step=self._tally.step,
            patience=options.patience,
            keep=options.keep,
            valid=() if self.valid is None else self.valid.names,
            base=None if self._base is None else self._base.checkpoint or "a model without a file",
            boundary=self.corpus.vocabulary.boundary,
            unit=self.corpus.vocabulary.unit,
        )

    def events(self) -> Iterator[Event]:
        """Train, and tell. The last event is `Stopped`; the run's folder is unlocked when the generator ends.

        In the main thread, SIGINT, SIGTERM and SIGHUP end the current step, save, and stop; a second one stops at once.

        Raises:
            DivergenceError: a loss or gradient that is not finite, once too often; that step changed nothing.
            CheckpointError: the last save failed; the run's files are those of the save before.
        """
        assert self._lock is not None, "a Trainer runs once"
        try:
            with (
                run_dir.Metrics(self.run) as metrics,
                Signals() as signals,
                memory.shortage_explained(self._network.config),
            ):
                for event in self._loop(signals):
                    if not isinstance(event, (Progress, Saved)) and (complaint := metrics.note(event)):
                        yield Warned(self._tally.step, complaint)
                    yield event
        finally:
            self._lock.close()
            self._lock = None

    def _loop(self, signals: Signals) -> Iterator[Event]:
        clock = Clock(self._seconds_before)
        self._validated_at = clock.seconds()
        yield self.started
        others = {
            "from": None if self._base is None else self._base.checkpoint,
            "valid": None if self.valid is None else self.valid.names[0],
            "symbols": None if self.corpus.vocabulary.kind == "chars" else self.corpus.vocabulary.kind,
            "encoding": None if self.corpus.encoding == "utf-8" else self.corpus.encoding,
            "boundary": None if self.corpus.vocabulary.boundary is None else _escaped(self.corpus.vocabulary.boundary),
        }
        if complaint := run_dir.write_settings(self.run, self.options, **others):
            self._warnings.append(complaint)
        for message in self._warnings:
            yield Warned(self._tally.step, message)
        if self._share(clock) >= 1:
            yield self._stopped(clock, "already-finished")
            return
        if self._out_of_patience():
            yield self._stopped(clock, "patience")
            return
        self._good = self._checkpoint(clock)
        shown = saved = clock.seconds()
        speed = Speed(shown, self._tally.chars_seen)
        while not signals.received and not self._out_of_patience() and (share := self._share(clock)) < 1:
            began = clock.seconds()
            rate = self._step(share)
            now = clock.seconds()
            self._step_seconds += now - began
            self._steps_here += 1
            show, validate = now - shown >= PROGRESS_SECONDS, self._validation_due(now)
            save, keep = now - saved >= SAVE_SECONDS, self._tally.step % GOOD_STEPS == 0
            if self._device.type == "cuda" and not (show or validate or save or keep or self._share(clock) >= 1):
                continue  # to look at the loss would make the queue of the GPU run dry
            if trouble := self._trouble():
                yield self._roll_back(trouble)
                continue
            if self._unsettled and share >= SETTLED_AT and (change := self._settle(share)):
                yield Warned(self._tally.step, change)
            if keep and not self._tally.raised():
                self._good = self._checkpoint(clock)
            if show:
                shown = now
                yield self._report(clock, rate, speed)
            if validate:
                yield from self._validate(clock)
            if save:
                yield self._try_save(LAST, clock)
                saved = clock.seconds()
        if trouble := self._trouble():
            yield self._roll_back(trouble)
        if not signals.received:
            if self._tally.validated_step != self._tally.step and len(self._valid_ids) > 1:
                yield from self._validate(clock)
            if not (self.run / BEST).exists():
                yield self._save(BEST)
        yield self._save(LAST, clock)
        if signals.received:
            yield self._stopped(clock, "interrupted", signals.received)
        else:
            yield self._stopped(clock, "finished" if self._share(clock) >= 1 else "patience")

    def _settle(self, share: float) -> str | None:
        """Choose again, by the speed of this run, what rested on that of a moment before it; says what has changed."""
        epochs = self._tally.chars_seen / share / self._train_chars
        changes: dict[str, Any] = {
            name: value
            for name, value in defaults.regularisation(epochs).items()
            if name in self._unsettled and value != getattr(self.options, name)
        }
        self._unsettled.clear()
        if not changes:
            return None
        self.options = replace(self.options, **changes)
        self._optimizer.weight_decay = self.options.weight_decay
        words = ", ".join(f"{flag(name)} {value:g}" for name, value in changes.items())
        return f"at this speed {epochs:.1f} epochs will be read, which was not foreseen: {words} from now on"

    def _step(self, share: float) -> float:
        """One window of every stream: forward, backward, update. Returns the learning rate."""
        options, tally = self.options, self._tally
        inputs, targets, fresh = self._streams.next()  # (T, B), (T, B), (B,)
        restart = torch.from_numpy(fresh) | (torch.rand(len(fresh), generator=self._generator) < options.reset)
        self._state *= (~restart).to(self._device, torch.float32, non_blocking=True)[:, None]
        ids = torch.from_numpy(inputs).to(self._device, non_blocking=True)
        wanted = torch.from_numpy(targets).to(self._device, non_blocking=True)
        logits, state = self._network(ids, self._state, options.dropout, self._mask_generator)
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        loss.backward()
        norm = self._optimizer.clip()
        rate = self._optimizer.step(share, norm, 0.5**tally.rollbacks)
        self._state = state.detach()
        self._unseen.append((loss.detach(), norm))
        tally.step += 1
        tally.chars_seen += ids.numel()
        return rate

    def _trouble(self) -> str | None:
        """Look at the steps since the last look: what is wrong with them, if anything is."""
        for loss, norm in self._unseen:
            nats, length = float(loss), float(norm)
            if not (math.isfinite(nats) and math.isfinite(length)):
                return f"loss {nats:g}, gradient norm {length:g}"
            self._tally.observe(nats)
        self._unseen.clear()
        if self.options.on_divergence == "rollback" and self._tally.rollbacks < MAX_ROLLBACKS and self._tally.spiked():
            return f"loss {self._tally.recent_nats:.3g} after {self._tally.lowest_nats:.3g}"
        return None

    def _roll_back(self, trouble: str) -> Warned:
        """Go back to the last good state, with half the rate; or give up. A non-finite step has changed no weight."""
        step, rollbacks = self._tally.step, self._tally.rollbacks
        if self.options.on_divergence == "stop" or rollbacks >= MAX_ROLLBACKS:
            kept = self.run / LAST
            hint = f"the last good state is {escape(str(kept))}" if kept.exists() else "nothing was saved yet"
            raise DivergenceError(
                f"step {step}: {trouble}; the weights were not changed and {hint}. Try a lower --lr or --clip"
            )
        assert self._good is not None
        before = self._tally
        self._restore(self._good, same_text=True)
        self._unseen.clear()
        self._tally = replace(  # what is known of the files, which stay what they are
            self._tally,
            best_nats=before.best_nats,
            best_step=before.best_step,
            no_better=before.no_better,
            kept=before.kept,
            rollbacks=rollbacks + 1,
        )
        return Warned(
            step,
            f"step {step} diverged ({trouble}): back to step {self._tally.step}, the rate halved "
            f"({rollbacks + 1} of at most {MAX_ROLLBACKS} times)",
        )

    def _share(self, clock: Clock) -> float:
        """Of the budget that is spent, 0 to 1. A budget in time keeps back what the last validation will take."""
        if (steps := self._total_steps()) is not None:
            return min(1.0, self._tally.step / steps)
        assert self.options.seconds is not None
        kept_back = min(self._validation_seconds(), self.options.seconds / 2)
        return min(1.0, (clock.seconds() + kept_back) / self.options.seconds)

    def _out_of_patience(self) -> bool:
        return self.options.patience is not None and self._tally.no_better >= self.options.patience

    def _total_steps(self) -> int | None:
        if self.options.epochs is not None:
            return max(1, round(self.options.epochs * self._streams.windows_per_epoch))
        return self.options.steps

    def _validation_due(self, seconds: float) -> bool:
        """At even shares of the budget, and no more often than the validation part's size allows."""
        if len(self._valid_ids) < 2:
            return False
        step, count = self._tally.step, self.options.validations
        if (steps := self._total_steps()) is not None:
            chars = steps * self.options.batch_size * self.options.seq_len
            count = max(1, min(count, int(VALIDATION_SHARE / SCORING_COST * chars / len(self._valid_ids))))
            return step < steps and step * count // steps > (step - 1) * count // steps
        assert self.options.seconds is not None
        took = self._validation_seconds()
        spare = VALIDATION_SHARE - took / self.options.seconds
        return spare > 0 and seconds - self._validated_at >= max(self.options.seconds / count, took / spare)

    def _validation_seconds(self) -> float:
        """What a validation takes: as long as the latest, or, before there is one, as the steps so far let expect."""
        if self._validation_took or not self._steps_here:
            return self._validation_took
        step_chars = self.options.batch_size * self.options.seq_len
        return SCORING_COST * len(self._valid_ids) / step_chars * self._step_seconds / self._steps_here

    def _validate(self, clock: Clock) -> Iterator[Event]:
        """Score the validation part, draw a few lines, and save where it was never better."""
        tally, began = self._tally, clock.seconds()
        reader = self._reader()
        nats = evaluation.evaluate(reader, self._valid_ids).nats_per_char
        text = ""
        if self.options.sample_chars:
            engine = reader if isinstance(reader, Engine) else self._engine()
            config = SamplingConfig(length=self.options.sample_chars, seed=self.options.seed)
            text = "".join(Sampler(engine, self.corpus.vocabulary, config).stream())
        before = tally.best_nats, tally.best_step
        best = math.isfinite(nats) and (tally.best_nats is None or nats < tally.best_nats)
        tally.no_better += 1
        if best:
            tally.best_nats, tally.best_step, tally.no_better = nats, tally.step, 0
        tally.last_nats, tally.validated_step = nats if math.isfinite(nats) else None, tally.step
        self._validated_at, self._validation_took = clock.seconds(), clock.seconds() - began
        yield Validated(
            step=tally.step,
            seconds=clock.seconds(),
            valid_bits_per_char=nats / math.log(2),
            valid_nats_per_char=nats,
            train_bits_per_char=tally.train_nats / math.log(2),
            best=best,
            sample=text,
        )
        if best:
            yield (outcome := self._try_save(BEST))
            if isinstance(outcome, Warned):
                tally.best_nats, tally.best_step = before
        if self.options.keep:
            yield from self._keep()

    def _reader(self) -> evaluation.ScoringModel:
        """What validates: the native engine, which is the fastest on a CPU, or the network where it is."""
        is_fast = self._device.type == "cpu" and native.library() is not None
        return self._engine() if is_fast else Scorer(self._network)

    def _engine(self) -> Engine:
        """The model as it is now, outside of torch."""
        weights = self._network.weights()
        return Engine(self._network.config, weights, precision="fp32", threads=self.options.threads)

    def _keep(self) -> Iterator[Event]:
        """Keep the weights of this step, and once they are on the disk let go of those that are one too many."""
        yield (outcome := self._try_save(run_dir.kept(self._tally.step)))
        if isinstance(outcome, Saved):
            kept = sorted({*self._tally.kept, self._tally.step})
            for step in kept[: -self.options.keep]:
                run_dir.forget(self.run, step)
            self._tally.kept = tuple(kept[-self.options.keep :])

    def _try_save(self, name: str, clock: Clock | None = None) -> Event:
        try:
            return self._save(name, clock)
        except CheckpointError as error:
            return Warned(self._tally.step, f"{error}; training goes on and will try again")

    def _save(self, name: str, clock: Clock | None = None) -> Saved:
        """Write `name`: the weights alone without a clock, else with all the state of the training."""
        return Saved(self._tally.step, run_dir.save(self.run, name, self._checkpoint(clock)))

    def _checkpoint(self, clock: Clock | None) -> Checkpoint:
        """The run as it is: copies, so that training may go on."""
        record: dict[str, Any] | None = None
        tensors: dict[str, np.ndarray[Any, Any]] = {}
        if clock is not None:
            record = {
                "options": to_json(self.options),
                "tally": asdict(self._tally),
                "cursor": self._streams.cursor,
                "seconds": clock.seconds() if self.options.seconds is not None else None,
            }
            live = {
                **self._optimizer.tensors(),
                "state/carried": self._state,
                "rng/generator": self._generator.get_state(),
                "rng/mask": self._mask_generator.get_state(),
            }
            tensors = {name: tensor.detach().cpu().numpy().copy() for name, tensor in live.items()}
        return Checkpoint(
            model=self._network.config,
            vocabulary=self.corpus.vocabulary,
            weights=self._network.weights(),
            step=self._tally.step,
            training=record,
            tensors=tensors,
            facts=self._facts(),
        )

    def _facts(self) -> dict[str, Any]:
        tally = self._tally
        return {
            "corpus": CorpusRecord(
                **vars(TextRecord.of(self.corpus)),
                valid_share=self.options.valid_share if self.valid is None else 0.0,
                valid_chars=self.options.valid_chars,
                validation=None if self.valid is None else TextRecord.of(self.valid),
            ).to_json(),
            "base": None if self._base is None else self._base.to_json(),
            "chars_seen": tally.chars_seen,
            "valid_nats_per_char": tally.last_nats if tally.validated_step == tally.step else None,
            "best_valid_nats_per_char": tally.best_nats,
            "best_step": tally.best_step,
            "device": self._device.type,
            "threads": torch.get_num_threads(),
            "kernels": self._network.recurrence.path,
            "versions": hardware.versions(),
        }

    def _restore(self, saved: Checkpoint, same_text: bool) -> None:
        """Become the run that was saved. Streams and carried states belong to one text, and stay out for another."""
        record = saved.training
        assert record is not None
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in saved.tensors.items()}
        try:
            self._network.load_weights(saved.weights)
            self._optimizer.load(tensors, saved.step)
            self._generator.set_state(tensors["rng/generator"])
            self._mask_generator.set_state(tensors["rng/mask"])
            self._tally = from_json(Tally, record["tally"])
            self._seconds_before = record["seconds"] or 0.0
            if same_text:
                self._state = tensors["state/carried"].to(self._device)
                self._streams.seek(record["cursor"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise records.unsound(escape(str(error))[:200]) from error

    def _warn_of_changes(self, then: Mapping[str, str]) -> None:
        now = {**hardware.versions(), "threads": str(torch.get_num_threads()), "device": self._device.type}
        self._warnings = [
            f"{name} was {then.get(name, 'unknown')} when this run was saved and is {value} now: "
            "the result may differ in the last digits"
            for name, value in now.items()
            if then.get(name) != value
        ]

    def _report(self, clock: Clock, rate: float, speed: Speed) -> Progress:
        tally, seconds = self._tally, clock.seconds()
        chars_per_second = speed.reading(seconds, tally.chars_seen)
        if (steps := self._total_steps()) is not None:
            chars = (steps - tally.step) * self.options.batch_size * self.options.seq_len
            left = chars / chars_per_second
        else:
            assert self.options.seconds is not None
            left = max(0.0, self.options.seconds - seconds)
        return Progress(
            step=tally.step,
            share=self._share(clock),
            train_bits_per_char=tally.train_nats / math.log(2),
            chars_per_second=chars_per_second,
            chars_seen=tally.chars_seen,
            seconds=seconds,
            seconds_left=left,
            lr=rate,
        )

    def _stopped(
        self,
        clock: Clock,
        reason: Literal["finished", "interrupted", "patience", "already-finished"],
        received: int | None = None,
    ) -> Stopped:
        best = self._tally.best_nats
        return Stopped(
            step=self._tally.step,
            seconds=clock.seconds(),
            reason=reason,
            best_valid_bits_per_char=None if best is None else best / math.log(2),
            best=self.run / BEST,
            last=self.run / LAST,
            signal=received,
            no_better=self._tally.no_better,
            step_seconds=self._step_seconds,
        )


def train(
    corpus: Corpus,
    run: Path | str | None = None,
    *,
    from_: Model | Path | str | None = None,
    valid: Corpus | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> Model:
    """Train a model on a text and load the best of it.

    Args:
        corpus: from `charlstm.read`.
        run: the folder to make; None takes a fresh one under checkpoints/, named after the text.
        from_: a model, or the checkpoint of one, to fine-tune on the text; None begins with fresh weights.
        valid: a text to validate on; all of `corpus` trains then. None holds out the last tenth of `corpus`.
        on_event: called with each event of `charlstm.training.events`.
        **options: fields of `charlstm.config.TrainingOptions`, such as `seconds=60`, `hidden=256`, `cell="gru"`.

    Returns:
        The model with the best validation, ready to sample and to score.
    """
    folder = run_dir.fresh(corpus.names) if run is None else Path(run)
    base = load(from_) if isinstance(from_, (str, Path)) else from_
    for event in Trainer.start(corpus, folder, TrainingOptions(**options), valid=valid, from_=base).events():
        if on_event is not None:
            on_event(event)
    return load(folder)


def _split(corpus: Corpus, valid: Corpus | None, options: TrainingOptions) -> tuple[Symbols, Symbols]:
    """What is trained on, and what is held out."""
    if valid is None:
        return corpus.split(options.valid_share)
    evaluation.transitions_of(np.asarray(valid.ids[:2]))  # refuses a text without
    return corpus.ids, valid.ids


def _escaped(boundary: str) -> str:
    """As `--boundary` reads it, which takes a backslash for an escape."""
    return boundary.replace("\\", "\\\\")


def _budget(options: TrainingConfig) -> str:
    if options.epochs is not None:
        return f"{options.epochs:g} epoch{'' if options.epochs == 1 else 's'}"
    if options.steps is not None:
        return f"{options.steps:,} step{'' if options.steps == 1 else 's'}"
    return f"{options.seconds:g} s"

"""The training loop: a generator of events. It prints nothing, saves what it says it saved, and resumes bit for bit.

A run is a folder: `best.safetensors` (the weights with the best validation), `last.safetensors` (those of the last
save, with everything needed to go on) and `metrics.jsonl`. For a budget in steps or epochs nothing in the two files
depends on the clock, so that a run that was stopped and resumed ends in the same bytes as one that never was.
"""

from __future__ import annotations

import json
import math
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import charlstm
from charlstm import checkpoint, evaluation, events, library, recipe, sampling
from charlstm.atomicfile import FolderLock
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig, SamplingConfig, TrainingConfig, TrainingOptions, flag, from_json, to_json
from charlstm.corpus import Corpus, Streams, fit
from charlstm.engine import Engine
from charlstm.errors import CheckpointError, DivergenceError, ResumeError, RunBusy
from charlstm.events import Event, Progress, Saved, Started, Stopped, Validated, Warned
from charlstm.kernels.training import keep_pages
from charlstm.model import Network, Scorer
from charlstm.optimisation import Optimiser
from charlstm.terminal import escape

BEST, LAST, METRICS = "best.safetensors", "last.safetensors", "metrics.jsonl"
SAVE_SECONDS = 20.0  # at most so much work is lost to a kill
PROGRESS_SECONDS = 0.1
CHANGEABLE_ON_RESUME = {
    *("epochs", "steps", "seconds", "lr", "warmup", "weight_decay", "beta1", "beta2", "clip"),
    *("dropout", "reset", "validations", "sample_chars", "device", "threads"),
}


class Training:
    """One run, fresh (`Training.start`) or taken up again (`Training.resume`); `events` trains."""

    def __init__(self, corpus: Corpus, run: Path, options: TrainingConfig, model: ModelConfig) -> None:
        self.corpus, self.run, self.options = corpus, run, options
        keep_pages()
        self._device = _device(options.device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        train_ids, self._valid_ids = corpus.split(options.valid_share)
        self._streams = Streams(train_ids, options.batch_size, options.seq_len)
        self._train_chars = len(train_ids)
        self._network = Network(model).to(self._device)
        self._optimiser = Optimiser(self._network, options)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._mask_generator = torch.Generator(self._device).manual_seed(options.seed)
        self._state = self._network.zero_state(options.batch_size)
        self._progress = _Progress()
        self._lock: FolderLock | None = None
        self._warnings: list[str] = []

    @classmethod
    def start(cls, corpus: Corpus, run: Path | str, options: TrainingOptions) -> Training:
        """A fresh run in the folder `run`, which is made.

        Raises:
            CheckpointError: the folder holds a model already, or cannot be written.
            RunBusy: another process trains there.
            CorpusError: the text is too short to train on.
        """
        run = Path(run)
        train_ids, _ = corpus.split(options.valid_share)
        chosen = recipe.choose(options, len(train_ids), len(corpus.vocabulary))
        batch_size, seq_len = fit(len(train_ids), chosen.batch_size, chosen.seq_len)
        chosen = replace(chosen, batch_size=batch_size, seq_len=seq_len)
        model = ModelConfig(len(corpus.vocabulary), chosen.hidden, chosen.layers, chosen.embedding, chosen.cell)
        lock = _lock(run)
        try:
            if held := [name for name in (BEST, LAST) if (run / name).exists()]:
                raise CheckpointError(
                    f"{escape(str(run))} holds a model already ({', '.join(held)}): "
                    "go on with it by --resume, or choose another folder with -o"
                )
            training = cls(corpus, run, chosen, model)
            training._network.initialise(training._generator, chosen.forget_bias)
        except BaseException:
            lock.close()
            raise
        training._lock = lock
        return training

    @classmethod
    def resume(
        cls,
        corpus: Corpus,
        path: Path | str,
        changes: Mapping[str, Any] | None = None,
        *,
        allow_new_corpus: bool = False,
    ) -> Training:
        """Go on with a saved run.

        Args:
            corpus: the run's text; another is refused, for the carried states and the cursor belong to it.
            path: the run's folder, or the checkpoint to go on from; the run is the folder that it lies in.
            changes: options that differ from the saved ones. Those that shape the model or the streams may not.
            allow_new_corpus: take another text with the same vocabulary; its streams start at their beginning.

        Raises:
            ResumeError: the text or the shape differs, or the file holds no training state.
            CheckpointError: no such run, or a damaged file.
        """
        file = checkpoint.resolve(path, prefer="last")
        lock = _lock(file.parent)
        try:
            saved = checkpoint.load(file, training=True)
            if saved.training is None:
                raise ResumeError(f"{escape(str(file))} holds weights only; resume from its run's {LAST}")
            options = from_json(TrainingConfig, saved.training["options"])
            options = _changed(options, dict(changes or {}))
            same_text = corpus.sha256 == saved.facts["corpus"]["sha256"]
            if not same_text and not allow_new_corpus:
                raise ResumeError(
                    f"this run began with another text, of {saved.facts['corpus']['chars']} characters and sha256 "
                    f"{saved.facts['corpus']['sha256'][:16]}…; given are {len(corpus.ids)}, {corpus.sha256[:16]}…: "
                    "give the same text, or --allow-new-corpus"
                )
            if corpus.vocabulary.symbols != saved.vocabulary.symbols:
                raise ResumeError(
                    "the new text has other characters than the run's vocabulary; resume keeps the vocabulary"
                )
            training = cls(corpus, file.parent, options, saved.model)
            training._restore(saved, same_text)
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
            resumed_step=self._progress.step,
        )

    def events(self) -> Iterator[Event]:
        """Train, and tell. The last event is `Stopped`; the run's folder is unlocked when the generator ends.

        In the main thread, SIGINT, SIGTERM and SIGHUP end the current step, save, and stop; a second one stops at once.

        Raises:
            DivergenceError: a loss or gradient that is not finite; nothing was changed by that step.
            CheckpointError: the last save failed; the run's files are those of the save before.
        """
        assert self._lock is not None, "a Training is run once"
        try:
            with (self.run / METRICS).open("a", encoding="utf-8") as metrics, _Signals() as signals:
                for event in self._loop(signals):
                    if not isinstance(event, (Progress, Saved)):
                        metrics.write(json.dumps(events.to_json(event), ensure_ascii=False) + "\n")
                        metrics.flush()
                    yield event
        except OSError as error:
            raise CheckpointError(f"cannot write {escape(str(self.run / METRICS))}: {error.strerror}") from error
        finally:
            self._lock.close()
            self._lock = None

    def _loop(self, signals: _Signals) -> Iterator[Event]:
        progress, clock = self._progress, _Clock(self._progress.seconds)
        yield self.started
        for message in self._warnings:
            yield Warned(progress.step, message)
        if self._share(clock) >= 1:
            yield self._stopped(clock, "already-finished", None)
            return
        shown = saved = clock.seconds()
        speed = _Speed(clock)
        while not signals.received:
            share = self._share(clock)
            if share >= 1:
                break
            rate = self._step(share)
            now = clock.seconds()
            if now - shown >= PROGRESS_SECONDS:
                shown = now
                self._check_finite()
                yield self._report(clock, rate, speed)
            if self._validation_due(clock):
                self._check_finite()
                yield (validated := self._validate(clock))
                if validated.best:
                    yield self._try_save(BEST)
                shown = clock.seconds()
            if clock.seconds() - saved >= SAVE_SECONDS:
                self._check_finite()
                yield self._try_save(LAST, clock)
                saved = clock.seconds()
        self._check_finite()
        if not signals.received and progress.validated_step != progress.step and len(self._valid_ids) > 1:
            yield (validated := self._validate(clock))
            if validated.best:
                yield self._save(BEST)
        if not signals.received and not (self.run / BEST).exists():
            yield self._save(BEST)
        yield self._save(LAST, clock)
        yield self._stopped(clock, "interrupted" if signals.received else "finished", signals.received)

    def _step(self, share: float) -> float:
        """One window of every stream: forward, backward, update. Returns the learning rate."""
        options, progress = self.options, self._progress
        inputs, targets, fresh = self._streams.next()  # (T, B), (T, B), (B,)
        restart = torch.from_numpy(fresh) | (torch.rand(len(fresh), generator=self._generator) < options.reset)
        self._state *= (~restart).to(self._device, torch.float32)[:, None]
        ids = torch.from_numpy(inputs).to(self._device, non_blocking=True)
        wanted = torch.from_numpy(targets).to(self._device, non_blocking=True)
        logits, state = self._network(ids, self._state, options.dropout, self._mask_generator)
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._optimiser.clip()
        progress.norm, progress.loss = norm, loss.detach()
        if (
            self._device.type != "cuda"
        ):  # there it would stall the queue; a step that is not finite is skipped by its kernel
            self._check_finite()
        rate = self._optimiser.step(share, norm)
        self._state = state.detach()
        progress.step += 1
        progress.chars_seen += ids.numel()
        progress.observe(ids.numel())
        return rate

    def _check_finite(self) -> None:
        loss, norm = float(self._progress.loss), float(self._progress.norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        kept = self.run / LAST
        hint = f"the last good state is {escape(str(kept))}" if kept.exists() else "nothing was saved yet"
        raise DivergenceError(
            f"step {self._progress.step + 1}: loss {loss:g}, gradient norm {norm:g}; the weights were not changed "
            f"and {hint}. Try a lower --lr or --clip"
        )

    def _share(self, clock: _Clock) -> float:
        """Of the budget that is spent, 0 to 1. A budget in time keeps back what the last validation will take."""
        if (steps := self._total_steps()) is not None:
            return min(1.0, self._progress.step / steps)
        assert self.options.seconds is not None
        return min(1.0, (clock.seconds() + self._progress.validation_seconds) / self.options.seconds)

    def _total_steps(self) -> int | None:
        if self.options.epochs is not None:
            return max(1, round(self.options.epochs * self._streams.windows_per_epoch))
        return self.options.steps

    def _validation_due(self, clock: _Clock) -> bool:
        """At even shares of the budget, and no more often than the validation part's size allows."""
        if len(self._valid_ids) < 2:
            return False
        progress, count = self._progress, self.options.validations
        if (steps := self._total_steps()) is not None:
            # Scoring a character costs about a third of training on one; a twentieth of the run may go to it.
            chars = steps * self.options.batch_size * self.options.seq_len
            count = max(1, min(count, int(0.15 * chars / len(self._valid_ids))))
            return progress.step * count // steps > (progress.step - 1) * count // steps
        assert self.options.seconds is not None
        pause = max(self.options.seconds / count, 20 * progress.validation_seconds)
        return clock.seconds() - progress.validated_seconds >= pause

    def _validate(self, clock: _Clock) -> Validated:
        progress, began = self._progress, clock.seconds()
        nats = evaluation.evaluate(Scorer(self._network), self._valid_ids).nats_per_char
        text = ""
        if self.options.sample_chars:
            engine = Engine(self._network.config, self._network.weights(), precision="fp32")
            config = SamplingConfig(length=self.options.sample_chars, seed=self.options.seed)
            text = "".join(sampling.stream(engine, self.corpus.vocabulary, config))
        best = bool(math.isfinite(nats)) and (progress.best_nats is None or nats < progress.best_nats)
        if best:
            progress.best_nats, progress.best_step = nats, progress.step
        progress.last_nats = nats
        progress.validated_step, progress.validated_seconds = progress.step, clock.seconds()
        progress.validation_seconds = clock.seconds() - began
        return Validated(
            step=progress.step,
            seconds=clock.seconds(),
            valid_bits_per_char=nats / math.log(2),
            valid_nats_per_char=nats,
            train_bits_per_char=progress.train_nats / math.log(2),
            best=best,
            sample=text,
        )

    def _try_save(self, name: str, clock: _Clock | None = None) -> Event:
        try:
            return self._save(name, clock)
        except CheckpointError as error:
            return Warned(self._progress.step, f"{error}; training goes on and will try again")

    def _save(self, name: str, clock: _Clock | None = None) -> Saved:
        """Write `name`: the weights alone without a clock, else with all the state of the training."""
        progress = self._progress
        record: dict[str, Any] | None = None
        tensors: dict[str, np.ndarray] = {}
        if clock is not None:
            record = {"options": to_json(self.options), "cursor": self._streams.cursor, **progress.to_json()}
            record["seconds"] = clock.seconds() if self.options.seconds is not None else None
            tensors = {key: tensor.detach().cpu().numpy() for key, tensor in self._optimiser.tensors().items()}
            tensors["state/carried"] = self._state.cpu().numpy()
            tensors["rng/generator"] = self._generator.get_state().numpy()
            tensors["rng/mask"] = self._mask_generator.get_state().cpu().numpy()
        checkpoint.save(
            self.run / name,
            Checkpoint(
                model=self._network.config,
                vocabulary=self.corpus.vocabulary,
                weights=self._network.weights(),
                step=progress.step,
                training=record,
                tensors=tensors,
                facts=self._facts(),
            ),
        )
        return Saved(progress.step, self.run / name)

    def _facts(self) -> dict[str, Any]:
        corpus, progress = self.corpus, self._progress
        return {
            "corpus": {
                "names": list(corpus.names),
                "chars": len(corpus.ids),
                "sha256": corpus.sha256,
                "valid_share": self.options.valid_share,
            },
            "chars_seen": progress.chars_seen,
            "valid_nats_per_char": progress.last_nats if progress.validated_step == progress.step else None,
            "best_valid_nats_per_char": progress.best_nats,
            "best_step": progress.best_step,
            "device": self._device.type,
            "threads": torch.get_num_threads(),
            "kernels": self._network.recurrence.path,
            "versions": _versions(),
        }

    def _restore(self, saved: Checkpoint, same_text: bool) -> None:
        assert saved.training is not None
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in saved.tensors.items()}
        try:
            self._network.load_weights(saved.weights)
            self._optimiser.load(tensors, saved.step)
            self._generator.set_state(tensors["rng/generator"])
            self._mask_generator.set_state(tensors["rng/mask"])
            self._progress = _Progress.from_json(saved.training)
            carried = tensors["state/carried"].to(self._device)
            if carried.shape != self._state.shape:
                raise ResumeError(f"the carried state is {tuple(carried.shape)}, expected {tuple(self._state.shape)}")
            if same_text:
                self._state = carried
                self._streams.seek(saved.training["cursor"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ResumeError(f"the saved training state is not whole: {escape(str(error))[:200]}") from error
        now = {**_versions(), "threads": torch.get_num_threads(), "device": self._device.type}
        then = {**saved.facts["versions"], "threads": saved.facts["threads"], "device": saved.facts["device"]}
        for name, value in now.items():
            if then.get(name) != value:
                self._warnings.append(
                    f"{name} was {escape(str(then.get(name)))} when this run was saved and is {value} now: "
                    "the result may differ in the last digits"
                )

    def _report(self, clock: _Clock, rate: float, speed: _Speed) -> Progress:
        progress, share = self._progress, self._share(clock)
        chars_per_second = speed.reading(progress.chars_seen)
        if (steps := self._total_steps()) is not None:
            left = (steps - progress.step) * self.options.batch_size * self.options.seq_len / chars_per_second
        else:
            assert self.options.seconds is not None
            left = max(0.0, self.options.seconds - clock.seconds())
        return Progress(
            step=progress.step,
            share=share,
            train_bits_per_char=progress.train_nats / math.log(2),
            chars_per_second=chars_per_second,
            chars_seen=progress.chars_seen,
            seconds=clock.seconds(),
            seconds_left=left,
            lr=rate,
        )

    def _stopped(self, clock: _Clock, reason: Any, received: int | None) -> Stopped:
        best = self._progress.best_nats
        return Stopped(
            step=self._progress.step,
            seconds=clock.seconds(),
            reason=reason,
            best_valid_bits_per_char=None if best is None else best / math.log(2),
            best=self.run / BEST,
            last=self.run / LAST,
            signal=received,
        )


class _Progress:
    """What a run has come to: saved with it, so that a resumed run knows what the straight one would."""

    def __init__(self) -> None:
        self.step = 0
        self.chars_seen = 0
        self.train_nats = 0.0  # smoothed over about the last hundred windows
        self.weight = 0.0  # of what train_nats has seen
        self.best_nats: float | None = None
        self.best_step: int | None = None
        self.last_nats: float | None = None
        self.validated_step: int | None = None
        self.seconds = 0.0
        self.validated_seconds = 0.0  # these two belong to the sitting, not to the run
        self.validation_seconds = 0.0
        self.loss: Tensor | float = 0.0
        self.norm: Tensor | float = 0.0

    SAVED = ("step", "chars_seen", "train_nats", "weight", "best_nats", "best_step", "last_nats", "validated_step")

    def observe(self, chars: int) -> None:
        """Smooth the loss of the step just made, without a bias towards the start."""
        self.weight = 0.99 * self.weight + 0.01
        self.train_nats += (float(self.loss) - self.train_nats) * 0.01 / self.weight

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.SAVED}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> _Progress:
        progress = cls()
        for name in cls.SAVED:
            setattr(progress, name, values[name])
        progress.seconds = progress.validated_seconds = values["seconds"] or 0.0
        return progress


class _Clock:
    """Seconds that the run has taken, over all its sittings."""

    def __init__(self, before: float) -> None:
        self._origin = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._origin


class _Speed:
    """Characters a second over the last few seconds."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[float, int]] = []

    def reading(self, chars_seen: int) -> float:
        now = self._clock.seconds()
        self._marks = [mark for mark in self._marks if now - mark[0] < 5.0] + [(now, chars_seen)]
        seconds, chars = self._marks[0]
        return (
            (chars_seen - chars) / (now - seconds)
            if now > seconds and chars_seen > chars
            else max(1.0, chars_seen / max(now, 1e-3))
        )


class _Signals:
    """Remembers the first SIGINT, SIGTERM or SIGHUP, that the loop may stop between two steps; the second acts as ever.

    Outside the main thread Python lets nobody set handlers, and the loop is then stopped by its owner.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if number := getattr(signal, name, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


def train(
    corpus: Corpus,
    run: Path | str | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> library.Model:
    """Train a model on a text and load the best of it.

    Args:
        corpus: from `charlstm.read`.
        run: the folder to make; None takes a fresh one under checkpoints/, named after the text.
        on_event: called with each event of `charlstm.events`.
        **options: fields of `charlstm.config.TrainingOptions`, such as `seconds=60`, `hidden=256`, `cell="gru"`.

    Returns:
        The model with the best validation, ready to sample and to score.
    """
    folder = fresh_run(corpus.names) if run is None else Path(run)
    for event in Training.start(corpus, folder, TrainingOptions(**options)).events():
        if on_event is not None:
            on_event(event)
    return library.load(folder)


def fresh_run(names: tuple[str, ...], root: Path = Path("checkpoints")) -> Path:
    """A folder under `root` that does not exist, named after the text: shakespeare, shakespeare-2, …"""
    stem = Path(names[0]).name.removesuffix(".gz").rsplit(".", 1)[0] if names and names[0] != "-" else "stdin"
    stem = re.sub(r"[^\w.-]+", "-", stem).strip(".-")[:100] or "run"
    taken = (root / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 1_000_000))
    return next(folder for folder in taken if not folder.exists())


def _lock(run: Path) -> FolderLock:
    try:
        run.mkdir(parents=True, exist_ok=True)
        return FolderLock(run)
    except BlockingIOError as error:
        raise RunBusy(f"{escape(str(run))}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot train into {escape(str(run))}: {error.strerror}") from error


def _changed(saved: TrainingConfig, changes: dict[str, Any]) -> TrainingConfig:
    refused = [
        f"{flag(f.name)} {changes[f.name]} (saved: {getattr(saved, f.name)})"
        for f in fields(TrainingOptions)
        if f.name in changes and f.name not in CHANGEABLE_ON_RESUME and changes[f.name] != getattr(saved, f.name)
    ]
    if refused:
        raise ResumeError(f"a resumed run keeps its shape, but these differ: {', '.join(refused)}")
    if changes.keys() & {"epochs", "steps", "seconds"}:
        saved = replace(saved, epochs=None, steps=None, seconds=None)
    return replace(saved, **changes)


def _budget(options: TrainingConfig) -> str:
    if options.epochs is not None:
        return f"{options.epochs:g} epoch{'' if options.epochs == 1 else 's'}"
    if options.steps is not None:
        return f"{options.steps:,} step{'' if options.steps == 1 else 's'}"
    return f"{options.seconds:g} s"


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def _versions() -> dict[str, str]:
    return {
        "charlstm": charlstm.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }

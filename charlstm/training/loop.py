"""The training loop: step, check the loss, report, validate, save.

If the budget is in steps or epochs, nothing in the checkpoints of a run depends on the clock, so that a run that was
stopped and resumed ends in the same bytes as one that was not.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from charlstm.checkpoint import Checkpoint
from charlstm.errors import CheckpointError
from charlstm.training import defaults, divergence, validation
from charlstm.training.counters import SpeedMeter
from charlstm.training.divergence import Divergence, DivergenceGuard
from charlstm.training.events import CheckpointSaved, Event, Warned
from charlstm.training.run import Run
from charlstm.training.signals import Signals

SAVE_SECONDS = 20.0  # between two saves: the most work that is lost if the process is killed
PROGRESS_SECONDS = 0.1  # between two `Progress` events
SPEED_KNOWN_AT = 0.1  # share of the budget after which the speed of the run is known well enough


class TrainingLoop:
    """Train a run from its current state until its end.

    Args:
        run: the parts of the run; its directory is locked.
        signals: entered; a signal that it has received ends the loop after the current step.
        provisional: options chosen from an estimate of how many epochs will be read; they are chosen again once the
            speed is known.
        warnings: reported after the first event.
    """

    def __init__(
        self, run: Run, signals: Signals, *, provisional: Collection[str] = (), warnings: Sequence[str] = ()
    ) -> None:
        self._run, self._signals, self._warnings = run, signals, warnings
        self._provisional = set(provisional)
        self._guard = DivergenceGuard(run.options.on_divergence)

    def events(self) -> Iterator[Event]:
        """Train, and yield the events of the run from the first to the last."""
        run, signals, state = self._run, self._signals, self._run.state
        run.clock.start()
        state.is_interrupted = lambda: signals.received is not None
        run.schedule.start(run.clock.seconds())
        yield run.started()
        not_written = run.directory.write_settings(run.options, **run.settings())
        for message in (*self._warnings, *([not_written] if not_written else [])):
            yield Warned(state.counters.step, message)
        if run.share >= 1:
            yield run.stopped("already-finished")
            return
        if run.is_out_of_patience:
            yield run.stopped("patience")
            return
        self._guard.keep(run.resumable())
        yield from self._train()
        if found := self._guard.check(state.counters):
            yield self._roll_back(found)
        if not signals.received:
            if state.counters.validated_step != state.counters.step and run.schedule.is_possible:
                yield from self._validate()
            if not run.directory.best.exists():
                yield self._save(run.directory.best, run.weights())
        yield self._save(run.directory.last, run.resumable())
        if signals.received:
            yield run.stopped("interrupted", signals.received)
        else:
            yield run.stopped("finished" if run.share >= 1 else "patience")

    def _train(self) -> Iterator[Event]:
        """Step until the budget is spent, patience is exhausted or a signal arrives; report, validate, save."""
        run, state, clock, guard = self._run, self._run.state, self._run.clock, self._guard
        shown = saved = clock.seconds()
        speed, points = SpeedMeter(shown, state.counters.chars_seen), run.curve_points
        while not self._signals.received and not run.is_out_of_patience and (share := run.share) < 1:
            began = clock.seconds()
            step = state.step(share)
            if step.interrupted and self._signals.received is None:
                self._signals.received = signal.SIGTERM  # of another worker
            now = clock.seconds()
            run.step_time.add(now - began)
            guard.add(step.loss, step.grad_norm)

            show, save = now - shown >= PROGRESS_SECONDS, now - saved >= SAVE_SECONDS
            validate, keep = run.schedule.due(state.counters.step, now), self._is_good_step()
            is_point = run.curve_points > points
            if state.device.type == "cuda" and not (show or is_point or validate or save or keep or run.share >= 1):
                continue  # reading the loss would wait for the GPU and leave it without work
            if found := guard.check(state.counters):
                yield self._roll_back(found)
                points = run.curve_points
                continue
            if self._provisional and share >= SPEED_KNOWN_AT and (change := self._choose_again(share)):
                yield Warned(state.counters.step, change)
            if keep and guard.is_good(state.counters):
                guard.keep(run.resumable())
            if show:
                shown = now
                yield run.progress(step.lr, speed.chars_per_second(clock.seconds(), state.counters.chars_seen))
            if is_point:
                points = run.curve_points
                yield run.curve_point(step.lr, speed.chars_per_second(clock.seconds(), state.counters.chars_seen))
            if validate:
                yield from self._validate()
            if save:
                yield self._try_to_save(run.directory.last, run.resumable())
                saved = clock.seconds()

    def _is_good_step(self) -> bool:
        return self._run.state.counters.step % divergence.GOOD_STEPS == 0

    def _roll_back(self, found: Divergence) -> Warned:
        return Warned(found.step, self._guard.roll_back(found, self._run.state, self._run.directory.last))

    def _choose_again(self, share: float) -> str | None:
        """Choose the provisional options again, now that the speed is known; return a warning if one changes."""
        state = self._run.state
        epochs = state.counters.chars_seen / share / self._run.train_chars
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
        run, counters, began = self._run, self._run.state.counters, self._run.clock.seconds()
        nats, sample = validation.validate(run.state.network, run.corpus.vocabulary, run.valid_ids, run.options)
        before = counters.best_nats, counters.best_step
        is_best = counters.record_validation(nats)
        run.schedule.record(began, run.clock.seconds())
        yield run.validated(nats, sample, is_best=is_best)
        if is_best:
            yield (outcome := self._try_to_save(run.directory.best, run.weights()))
            if isinstance(outcome, Warned):
                counters.best_nats, counters.best_step = before
        if run.options.keep:
            yield from self._keep(run.options.keep)

    def _keep(self, count: int) -> Iterator[Event]:
        """Save the weights of this step, and when they are stored, remove all but the latest `count`."""
        run, counters = self._run, self._run.state.counters
        yield (outcome := self._try_to_save(run.directory.kept_file(counters.step), run.weights()))
        if isinstance(outcome, CheckpointSaved):
            kept = sorted({*counters.kept, counters.step})
            for step in kept[:-count]:
                run.directory.forget(step)
            counters.kept = tuple(kept[-count:])

    def _try_to_save(self, file: Path, saved: Checkpoint) -> CheckpointSaved | Warned:
        try:
            return self._save(file, saved)
        except CheckpointError as error:
            return Warned(saved.step, f"{error}; training continues and will try again")

    def _save(self, file: Path, saved: Checkpoint) -> CheckpointSaved:
        self._run.directory.save(file, saved)
        return CheckpointSaved(saved.step, file)

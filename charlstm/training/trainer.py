"""Start or resume a run: check and choose what it needs, then train. Nothing here prints; a run yields events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from charlstm import checkpoint, runs
from charlstm.config import ModelConfig, TrainingOptions
from charlstm.errors import Field, UsageError
from charlstm.model import Model, load
from charlstm.provenance import BaseRecord
from charlstm.terminal import escape
from charlstm.text.corpus import Corpus, Symbols
from charlstm.training import defaults, hardware, memory, precision, resume, run_dir, scan_native, validation
from charlstm.training.counters import Clock
from charlstm.training.events import CheckpointSaved, Event, Progress, Warned
from charlstm.training.loop import TrainingLoop
from charlstm.training.resume import TrainingRecord
from charlstm.training.run import Run
from charlstm.training.run_dir import Metrics, RunDir
from charlstm.training.signals import Signals
from charlstm.training.state import TrainingState
from charlstm.training.streams import fit_batch
from charlstm.training.workers import Order, Workers

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11

    from charlstm.config import TrainingKeywords

COUNTED_CHARS = 10_000_000  # symbols of the text that are counted for the initial bias of the projection


class Trainer:
    """One run: create it with `Trainer.start` or `Trainer.resume`, then iterate over `events`, which trains.

    The loop itself is in `charlstm.training.loop`.

    Args:
        run: the parts of the run; its directory is locked until the last event.
        provisional: see `TrainingLoop`.
        warnings: see `TrainingLoop`.
    """

    def __init__(self, run: Run, *, provisional: Collection[str] = (), warnings: Sequence[str] = ()) -> None:
        self.run = run
        self._provisional, self._warnings = provisional, warnings

    @classmethod
    def start(
        cls,
        corpus: Corpus,
        run: Path | str,
        options: TrainingOptions,
        *,
        valid: Corpus | None = None,
        from_: Model | None = None,
        workers: Workers | None = None,
    ) -> Trainer:
        """Create a new run.

        Args:
            corpus: the training text.
            run: the run directory, which is created.
            options: those that are None are chosen from the text, the budget and the machine.
            valid: a separate validation text; then all of `corpus` is for training.
            from_: the model to fine-tune. Its shape is kept; its vocabulary grows by the new symbols of the text.
            workers: the workers that train the run; each of them calls this with the same arguments. None if this
                process is the only one.

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
        workers = workers or Workers()
        device, directory = hardware.device(options.device), RunDir(Path(run))
        workers.check_equal(_to_compare(corpus, valid))
        with hardware.run_settings(device, options.threads):
            is_timed = options.steps is None and options.epochs is None
            may_be_bf16 = options.precision == "bf16" or (options.precision == "auto" and is_timed)
            speed, faster = defaults.NOMINAL_SPEED, None
            if is_timed:  # the workers must choose the same options
                speed, faster = workers.from_leader(lambda: precision.speeds(device, may_be_bf16=may_be_bf16))
                speed, faster = speed * workers.size, None if faster is None else faster * workers.size
            base = None if from_ is None else from_.config
            given = (options, len(train_ids), len(vocabulary), base)
            chosen = defaults.choose(*given, speed=speed, product_speed=faster)
            batch_size, seq_len = fit_batch(len(train_ids), chosen.batch_size, chosen.seq_len)
            chosen = replace(chosen, batch_size=batch_size, seq_len=seq_len)
            sizes = (len(vocabulary), chosen.hidden, chosen.layers, chosen.embedding, chosen.cell)
            model = ModelConfig(*sizes, boundary=vocabulary.boundary_id)
            if workers.leads:
                directory.lock()
            try:
                if workers.leads:
                    directory.check_free()
                with memory.shortage_explained(model):
                    parts = Run(corpus, valid, directory, chosen, model, workers)
                    if options.precision == "auto" and faster is not None:
                        parts.choose_precision(workers)
                if from_ is None:
                    counts = np.bincount(train_ids[:COUNTED_CHARS], minlength=len(vocabulary))
                    parts.state.network.initialise(
                        parts.state.generator, chosen.forget_bias, counts, memory_length=chosen.memory_length
                    )
                else:
                    _fine_tune(parts, from_)
                parts.state.network.load_weights(workers.from_leader(parts.state.network.weights))
            except BaseException:
                directory.unlock()
                raise
        chosen_by_speed = ("dropout", "weight_decay") if is_timed else ()
        provisional = [name for name in chosen_by_speed if getattr(options, name) is None]
        warnings = precision.warnings(parts.options.precision)
        if valid is None and options.valid_share and vocabulary.boundary is not None and not len(held_out):
            warnings.append("the text is one document, so that nothing is held out: give a separate validation text")
        if hint := _window_hint(train_ids, vocabulary.boundary_id, seq_len):
            warnings.append(hint)
        return cls(parts, provisional=provisional, warnings=warnings)

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
        workers: Workers | None = None,
    ) -> Trainer:
        """Continue a saved run.

        Args:
            corpus: the text of the run. Another one is an error, because streams and carried state belong to the text.
            path: the run directory, or a checkpoint in it.
            changes: options that differ from the saved ones; those that shape the model or the streams may not change.
            valid: the separate validation text of the run, if it has one.
            from_: the model that the run was fine-tuned from; it is only compared, and may be left out.
            allow_new_corpus: continue with another text in the vocabulary of the run, from its start.
            workers: as in `start`. Their number may differ from that of the saved run.

        Raises:
            ResumeError: a text, the model or the shape differs, or the file holds no valid training state.
            CheckpointError: there is no such run, or the file is damaged.
            RunBusy: another process trains there.
        """
        workers = workers or Workers()
        workers.check_equal(_to_compare(corpus, valid))
        file = workers.from_leader(lambda: runs.resolve(path, prefer="last"))
        directory = RunDir(file.parent)
        if workers.leads:
            directory.lock()
        try:
            saved = workers.from_leader(lambda: checkpoint.load(file, training=True))
            record = TrainingRecord.of(saved)
            options = resume.options_of(record, changes or {})
            same_text = resume.check_text(saved, corpus, allow_new=allow_new_corpus)
            base = resume.check_base(saved, from_)
            resume.check_validation(saved, valid)
            corpus = corpus.recoded(saved.vocabulary)
            valid = None if valid is None else valid.recoded(saved.vocabulary)
            parts = Run(corpus, valid, directory, options, saved.model, workers)
            parts.state.restore(saved, same_text=same_text)
        except BaseException:
            directory.unlock()
            raise
        parts.base = base
        parts.clock = Clock(record.seconds or 0.0)
        now = {**hardware.versions(), "threads": str(parts.threads), "device": parts.state.device.type}
        if workers.size > 1 or "workers" in saved.facts:
            now["workers"] = str(workers.size)
        warnings = [*resume.changes_of_environment(saved, now), *precision.warnings(options.precision)]
        return cls(parts, warnings=warnings)

    @property
    def state(self) -> TrainingState:
        """Everything that a training step changes."""
        return self.run.state

    def events(self) -> Iterator[Event]:
        """Train, and yield events. The last one is `Stopped`. A Trainer can be iterated over once.

        When the generator ends, the run directory is unlocked and the settings of the process are as before. In the
        main thread, SIGINT, SIGTERM or SIGHUP finishes the current step, saves and stops; a second one stops at once.

        Raises:
            DivergenceError: a loss or gradient is NaN or infinite, and there may be no more rollback.
            CheckpointError: the last save failed; the files are those of the save before.
            WorkerLost: another worker has ended or does not answer; the files are those of the last save.
        """
        if not self.state.workers.leads:
            with (
                hardware.run_settings(self.state.device, self.run.options.threads),
                memory.shortage_explained(self.state.network.config),
                Signals() as signals,
            ):
                self.state.is_interrupted = lambda: signals.received is not None
                self.state.follow()
            return
        assert self.run.directory.is_locked, "a Trainer runs once"
        try:
            with (
                hardware.run_settings(self.state.device, self.run.options.threads),
                memory.shortage_explained(self.state.network.config),
                Metrics(self.run.directory) as metrics,
                Signals() as signals,
            ):
                not_written = metrics.forget_after(self.state.counters.step)
                warnings = [*self._warnings, *([not_written] if not_written else [])]
                loop = TrainingLoop(self.run, signals, provisional=self._provisional, warnings=warnings)
                for event in loop.events():
                    if not isinstance(event, (Progress, CheckpointSaved)) and (warning := metrics.write(event)):
                        yield Warned(self.state.counters.step, warning)
                    yield event
                self.state.workers.order(Order("end"))
        finally:
            self.run.directory.unlock()


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


def _to_compare(corpus: Corpus, valid: Corpus | None) -> dict[str, str]:
    """Return what all workers must have in common, by its name in a message."""
    versions = {f"version of {name}": version for name, version in hardware.versions().items()}
    texts = {"training text": corpus.sha256, "validation text": "none" if valid is None else valid.sha256}
    kernels = "none" if scan_native.NATIVE is None else "C"
    return {**texts, **versions, "kind of training kernels": kernels}


def _check_combinations(options: TrainingOptions, valid: Corpus | None, from_: Model | None) -> None:
    """Raise UsageError for options that have no effect together with a validation text or a model to fine-tune."""
    if valid is not None and options.valid_share != TrainingOptions.valid_share:
        raise UsageError(
            *(Field("valid_share"), f" {options.valid_share:g} and ", Field("valid")),
            " are mutually exclusive: the first holds out a part of the text, the second is a separate validation text",
        )
    for name in ("forget_bias", "memory_length"):
        if from_ is not None and getattr(options, name) != getattr(TrainingOptions, name):
            raise UsageError(
                *(Field(name), " and ", Field("from_")),
                " are mutually exclusive: the first is for random weights, the second loads trained ones",
            )


def _window_hint(train_ids: Symbols, boundary: int | None, seq_len: int) -> str | None:
    """Return a hint if most documents are longer than a window; None if they fit, or without several documents."""
    if boundary is None:
        return None
    lengths = np.diff(np.flatnonzero(np.asarray(train_ids[:COUNTED_CHARS]) == boundary))  # with one boundary each
    if len(lengths) < 2 or (median := int(np.median(lengths))) <= seq_len:
        return None
    wanted = min(3 * median, len(train_ids) - 1)
    return (
        f"most documents (median length {median - 1:,}) are longer than a window of {seq_len:,}, so that no gradient "
        f"connects their end with their beginning; a sequence length of {wanted} would hold whole documents"
    )


def _fine_tune(run: Run, from_: Model) -> None:
    """Take the weights of a model of the same shape instead of random ones."""
    ids = run.corpus.vocabulary.lookup(from_.vocabulary.symbols)[0]
    run.state.network.adopt(from_.weights, ids, run.state.generator)
    path = None if from_.path is None else escape(str(from_.path))
    run.base = BaseRecord(path, from_.digest.hex())

"""The state of a run: everything that a training step changes, and its conversion to and from a checkpoint.

Letters: B batch (number of streams), T time (symbols of a window), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig, TrainingConfig, TrainingPrecision
from charlstm.terminal import escape
from charlstm.text.corpus import Symbols
from charlstm.text.vocabulary import Vocabulary
from charlstm.training.counters import Counters
from charlstm.training.network import Network
from charlstm.training.optimizer import Optimizer
from charlstm.training.resume import TrainingRecord, invalid_state
from charlstm.training.streams import Streams
from charlstm.training.workers import Order, Workers


class Step(NamedTuple):
    """The result of a training step; the tensors are scalars that may still be computed on the device."""

    lr: float
    loss: Tensor  # nats per symbol
    grad_norm: Tensor  # before clipping
    interrupted: bool = False  # whether a worker has received a signal to stop


class TrainingState:
    """Network, optimizer, streams, carried state, random generators and counters of a run.

    Args:
        model: the shape of the network.
        options: those of the run.
        train_ids: (N,) symbols of the training part.
        device: the device that trains.
        workers: the workers that train the run; None if this process is the only one.

    Attributes:
        options: those of the run; `dropout` and `weight_decay` may change between steps.
        carried: (L, S, B', H) recurrent state after the last window, of the B' streams of this worker.
        generator: random numbers of initial weights and resets.
        mask_generator: random numbers of dropout, on the device.
        is_interrupted: tells whether this process has received a signal to stop; every step tells the other workers.
    """

    def __init__(
        self,
        model: ModelConfig,
        options: TrainingConfig,
        train_ids: Symbols,
        device: torch.device,
        workers: Workers | None = None,
    ) -> None:
        """Create the state before the first step; the weights are not initialised."""
        self.options = options
        self.device = device
        self.workers = workers or Workers()
        self._part = self.workers.part(options.batch_size)
        self.network = Network(model).to(device)
        self.set_precision(options.precision)
        self.optimizer = Optimizer(self.network, options)
        self.streams = Streams(train_ids, options.batch_size, options.seq_len, self._part)
        self.carried = self.network.zero_state(self._part.count)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.mask_generator = torch.Generator(device).manual_seed(options.seed)
        self.counters = Counters()
        self.is_interrupted: Callable[[], bool] = lambda: False

    def set_precision(self, precision: TrainingPrecision) -> None:
        """Choose the precision of the matrix products of the following steps."""
        self.options = replace(self.options, precision=precision)
        self.network.recurrence.requested_path = "native-bf16" if precision == "bf16" else None

    def step(self, share: float) -> Step:
        """Train on one window of every stream: forward, backward, update; in all workers.

        A loss or gradient that is NaN or infinite changes no weight.

        Args:
            share: the share of the budget that is spent, which sets the learning rate.
        """
        factor = 0.5**self.counters.rollbacks
        order = Order("step", share, factor, self.options.dropout, self.optimizer.weight_decay)
        self.workers.order(order)
        return self._step(order)

    def follow(self) -> None:
        """Do what worker 0 orders until the run ends, as one of the other workers.

        Raises:
            WorkerLost: another worker has ended or does not answer.
        """
        while (order := self.workers.next_order()).name != "end":
            if order.name == "step":
                self.optimizer.weight_decay = order.weight_decay
                self._step(order)
            elif order.name == "gather":
                self.workers.gather(self.carried)
            else:
                self.restore(self.workers.receive())

    def roll_back_to(self, saved: Checkpoint) -> None:
        """Take the state of a checkpoint of this run, in all workers."""
        self.workers.order(Order("restore"))
        self.workers.send(saved)
        self.restore(saved)

    def _step(self, order: Order) -> Step:
        """Train on one window of the streams of this worker, and update the weights with the gradient of all workers.

        Letters: B' is the number of streams of this worker.
        """
        part = self._part
        inputs, targets, fresh = self.streams.next()  # (T, B'), (T, B'), (B',)
        resets = torch.rand(part.total, generator=self.generator)[part.first : part.first + part.count]
        restart = torch.from_numpy(fresh) | (resets < self.options.reset)
        self.carried *= (~restart).to(self.device, torch.float32, non_blocking=True)[:, None]
        ids = torch.from_numpy(inputs).to(self.device, non_blocking=True)
        wanted = torch.from_numpy(targets).to(self.device, non_blocking=True)
        logits, carried = self.network(ids, self.carried, order.dropout, self.mask_generator, part)  # (T, B', V)
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        if part.count < part.total:
            loss = loss * (part.count / part.total)
        loss.backward()
        parameters = self.network.parameters()
        loss, interrupted = self.workers.sum_gradients(parameters, loss.detach(), self.is_interrupted())
        grad_norm = self.optimizer.clip()
        lr = self.optimizer.step(order.share, grad_norm, order.factor)
        self.carried = carried.detach()
        self.counters.step += 1
        self.counters.chars_seen += len(ids) * part.total
        return Step(lr, loss, grad_norm, interrupted)

    def to_checkpoint(self, vocabulary: Vocabulary, facts: Mapping[str, Any]) -> Checkpoint:
        """Return a copy of the weights, without the rest of the state.

        Args:
            vocabulary: that of the text.
            facts: recorded in the checkpoint.
        """
        return Checkpoint(
            model=self.network.config,
            vocabulary=vocabulary,
            weights=self.network.weights(),
            step=self.counters.step,
            facts=facts,
        )

    def to_resumable(self, vocabulary: Vocabulary, facts: Mapping[str, Any], seconds: float | None) -> Checkpoint:
        """Return a copy of the whole state of all workers, from which the run can be resumed.

        Args:
            vocabulary: that of the text.
            facts: recorded in the checkpoint.
            seconds: time spent so far if the budget is a time, else None: the bytes must not depend on the clock.
        """
        self.workers.order(Order("gather"))
        carried = self.workers.gather(self.carried)
        record = TrainingRecord(self.options, self.counters, self.streams.cursor, seconds)
        live = {
            **self.optimizer.tensors(),
            "state/carried": carried,
            "rng/generator": self.generator.get_state(),
            "rng/mask": self.mask_generator.get_state(),
        }
        return Checkpoint(
            model=self.network.config,
            vocabulary=vocabulary,
            weights=self.network.weights(),
            step=self.counters.step,
            training=record.to_json(),
            tensors={name: tensor.detach().cpu().numpy().copy() for name, tensor in live.items()},
            facts=facts,
        )

    def restore(self, saved: Checkpoint, *, same_text: bool = True) -> None:
        """Take the state of a checkpoint.

        Args:
            saved: from `to_resumable`, or from a file of any origin, because its record and tensors are checked.
            same_text: False keeps the streams at the start and the carried state zero: both belong to one text.

        Raises:
            ResumeError: a part is missing or does not fit.
        """
        record = TrainingRecord.of(saved)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in saved.tensors.items()}
        try:
            self.network.load_weights(saved.weights)
            self.optimizer.load(tensors, saved.step)
            self.generator.set_state(tensors["rng/generator"])
            self.mask_generator.set_state(tensors["rng/mask"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise invalid_state(escape(str(error))[:200]) from error
        self.counters = record.counters
        if same_text:
            part = self._part
            carried = tensors["state/carried"][:, :, part.first : part.first + part.count]
            self.carried = carried.contiguous().to(self.device)
            self.streams.seek(record.cursor)

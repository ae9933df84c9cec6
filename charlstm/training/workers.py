"""The processes that train one run together, each on some of the streams: data parallelism by `torch.distributed`.

`torchrun` starts the processes, which are called workers here. Worker 0 leads: it runs the same loop as a run in one
process, decides everything (when to validate, save, roll back or stop, and what depends on its clock), writes the files
and prints. Each time its state takes a step, it sends an `Order` to the others, which follow it. The gradients are
summed over the workers, so that all of them have the same weights after every step.

In a run of one process there is one worker, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from charlstm.errors import CharlstmError, Field, UsageError
from charlstm.training.streams import Part

_ALIVE_SECONDS = 5.0  # that worker 0 waits for the reports of the workers that wait, too
_POLL_SECONDS = 0.01
_FAILED, _WAITING, _START = "charlstm/failed", "charlstm/waiting", "charlstm/start"

T = TypeVar("T")


class WorkerLost(CharlstmError):
    """Another worker has ended or does not answer, so that the run cannot continue."""


class Order(NamedTuple):
    """What worker 0 tells the others to do next.

    Attributes:
        name: "step", "gather" (send the carried state to worker 0), "restore" (take the state that follows) or "end".
        share: for a step, the share of the budget that is spent.
        factor: the factor on the learning rate of the step.
        dropout: the dropout of the step.
        weight_decay: the weight decay of the step.
    """

    name: str
    share: float = 0.0
    factor: float = 1.0
    dropout: float = 0.0
    weight_decay: float = 0.0


_ORDERS = ("step", "gather", "restore", "end")


class Workers:
    """A group of workers of which this process is one; without arguments, the only worker.

    Attributes:
        rank: the number of this worker, from 0.
        size: the number of workers.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this is worker 0, which decides, writes and prints."""
        return self.rank == 0

    def part(self, batch_size: int) -> Part:
        """Return the streams of this worker.

        Raises:
            UsageError: there are fewer streams than workers.
        """
        if batch_size < self.size:
            raise UsageError(
                Field("batch_size"),
                f" {batch_size} gives fewer streams than there are workers, {self.size}: start fewer workers, or use a "
                "larger batch or a longer text",
                value=batch_size,
                allowed=f"at least {self.size}",
            )
        ends = [worker * batch_size // self.size for worker in range(self.size + 1)]
        return Part(ends[self.rank], ends[self.rank + 1] - ends[self.rank], batch_size)

    def order(self, order: Order) -> None:
        """Send an order to the workers that follow; called by worker 0."""

    def next_order(self) -> Order:
        """Wait for an order of worker 0; called by the other workers, which a run of one process does not have."""
        return Order("end")

    def send(self, value: Any) -> None:
        """Send a value to the workers that follow, which `receive` it; called by worker 0."""

    def receive(self) -> Any:
        """Return the value that worker 0 sends; called by the workers that follow."""
        raise NotImplementedError("the only worker has no other to receive from")

    def from_leader(self, make: Callable[[], T]) -> T:
        """Return in every worker what `make` returns in worker 0, which alone calls it."""
        if not self.leads:
            received: T = self.receive()
            return received
        made = make()
        self.send(made)
        return made

    def sum_gradients(self, parameters: Iterable[Tensor], loss: Tensor, interrupted: bool) -> tuple[Tensor, bool]:
        """Sum the gradients of the parameters over all workers, in place.

        Args:
            parameters: those of the network, with gradients.
            loss: a scalar, the share of this worker in the loss of the whole batch.
            interrupted: whether this worker has received a signal to stop.

        Returns:
            The loss of the whole batch, and whether a worker has received a signal.
        """
        return loss, interrupted

    def gather(self, carried: Tensor) -> Tensor:
        """Return the carried state (L, S, B, H) of all streams in worker 0; elsewhere that of this worker."""
        return carried

    def check_equal(self, values: Mapping[str, str]) -> None:
        """Check that all workers have the same values.

        Args:
            values: what to compare, by its name in a message.

        Raises:
            UsageError: a worker has another value than worker 0.
        """


class ProcessGroup(Workers):
    """The group of processes that `torchrun` started. Make it by `join`.

    Args:
        timeout: seconds that a worker waits for the others.
    """

    def __init__(self, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._store = dist.distributed_c10d._get_default_store()
        self._timeout = timeout

    def order(self, order: Order) -> None:
        """Send an order to the workers that follow; called by worker 0."""
        numbers = torch.tensor([_ORDERS.index(order.name), *order[1:]], dtype=torch.float64)
        with self._named_if_lost():
            dist.broadcast(numbers, 0)

    def next_order(self) -> Order:
        """Wait for an order of worker 0."""
        numbers = torch.zeros(len(Order._fields), dtype=torch.float64)
        with self._named_if_lost():
            dist.broadcast(numbers, 0)
        name, *values = numbers.tolist()
        return Order(_ORDERS[int(name)], *values)

    def sum_gradients(self, parameters: Iterable[Tensor], loss: Tensor, interrupted: bool) -> tuple[Tensor, bool]:
        """Sum the gradients of the parameters over all workers, in place; see `Workers.sum_gradients`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flag = loss.new_tensor([float(interrupted)])
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.detach().reshape(1), flag])
        with self._named_if_lost():
            dist.all_reduce(flat)
        sums = flat.split([*(gradient.numel() for gradient in gradients), 1, 1])
        for gradient, total in zip(gradients, sums, strict=False):
            gradient.copy_(total.view_as(gradient))
        return sums[-2][0], bool(sums[-1])

    def send(self, value: Any) -> None:
        """Send a value to the workers that follow, which `receive` it; called by worker 0."""
        with self._named_if_lost():
            dist.broadcast_object_list([value], 0)

    def receive(self) -> Any:
        """Return the value that worker 0 sends; called by the workers that follow."""
        values: list[Any] = [None]
        with self._named_if_lost():
            dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, carried: Tensor) -> Tensor:
        """Return the carried state (L, S, B, H) of all streams in worker 0; elsewhere that of this worker."""
        parts: list[Any] = [None] * self.size if self.leads else []
        with self._named_if_lost():
            dist.gather_object(carried.cpu(), parts if self.leads else None)
        return torch.cat(parts, 2).to(carried.device) if self.leads else carried

    def check_equal(self, values: Mapping[str, str]) -> None:
        """Check that all workers have the same values; see `Workers.check_equal`."""
        found: list[Any] = [None] * self.size
        with self._named_if_lost():
            dist.all_gather_object(found, (platform.node(), dict(values)))
        _, expected = found[0]
        for worker, (host, theirs) in enumerate(found):
            for name, value in theirs.items():
                if value != expected[name]:
                    raise UsageError(
                        f"worker {worker} on {host} has another {name} ({value}) than worker 0 ({expected[name]}): "
                        "use the same files and the same versions on all hosts"
                    )

    def fails_first(self, message: str) -> bool:
        """Report that this worker fails; return whether it is the first one, which prints the message."""
        key = f"{self.rank}\0{message}"
        with contextlib.suppress(RuntimeError):  # the store has ended with a process that failed before
            return self._store.compare_set(_FAILED, "", key).decode() == key
        return self.leads

    @contextlib.contextmanager
    def _named_if_lost(self) -> Iterator[None]:
        """Turn an error of the communication into a `WorkerLost` that names the workers that do not answer."""
        try:
            yield
        except RuntimeError as error:  # torch.distributed has no narrower class for a lost connection
            reason = str(error).splitlines()[0] if str(error) else "the connection was lost"
            if "imed out" not in reason and "imeout" not in reason:
                raise WorkerLost(f"the connection to another worker was lost: {reason[:200]}") from error
            raise WorkerLost(f"{self._silent()} did not answer within {self._timeout:g} s") from error

    def _silent(self) -> str:
        """Return the workers that are not waiting, in words."""
        try:
            self._store.set(f"{_WAITING}/{self.rank}", "1")
            keys = {worker: f"{_WAITING}/{worker}" for worker in range(self.size)}
            wait = datetime.timedelta(seconds=_ALIVE_SECONDS)
            silent = []
            for worker, key in keys.items():
                try:
                    self._store.wait([key], wait)
                except RuntimeError:
                    silent.append(worker)
        except RuntimeError:
            return "a worker"
        if not silent:
            return "the network"
        return f"worker{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"


@contextlib.contextmanager
def join(device: str, timeout: float) -> Iterator[ProcessGroup]:
    """Join the group of workers that `torchrun` started, of which this process is one.

    Args:
        device: the type of the device that trains: "cuda" communicates by NCCL, others by Gloo.
        timeout: seconds that a worker waits for the others.

    Raises:
        WorkerLost: the other workers cannot be reached.
    """
    backend, wait = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", datetime.timedelta(seconds=timeout)
    try:
        shared, rank, size = next(iter(rendezvous("env://", timeout=wait)))
        store = _store_of_this_start(shared, rank, size, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    except (RuntimeError, ValueError) as error:  # ValueError: a variable of the environment is missing
        raise WorkerLost(f"cannot join the other workers: {str(error).splitlines()[0][:300]}") from error
    try:
        yield ProcessGroup(timeout)
    finally:
        dist.destroy_process_group()


def _store_of_this_start(store: Store, rank: int, size: int, timeout: float) -> Store:
    """Return the part of a store that only the workers of this start use.

    The store of torchrun outlives its workers. After a restart it still has the addresses of the workers that have
    ended, and Gloo would try to connect to them. So worker 0 chooses a new name for each start and tells it to each
    worker that asks. The name under which a worker asks is new, so that it cannot receive an old answer.

    Raises:
        WorkerLost: a worker does not start in time.
    """
    token = uuid.uuid4().hex
    ends = time.monotonic() + timeout
    if rank > 0:
        store.set(f"{_START}/ask/{rank}", token)
        store.wait([f"{_START}/answer/{token}"], datetime.timedelta(seconds=timeout))
        name = store.get(f"{_START}/answer/{token}").decode()
        store.set(f"{_START}/joined/{name}/{rank}", "")
        return PrefixStore(name, store)
    missing = {*range(1, size)}
    while missing:
        for worker in sorted(missing):
            if store.check([f"{_START}/ask/{worker}"]):
                store.set(f"{_START}/answer/{store.get(f'{_START}/ask/{worker}').decode()}", token)
            if store.check([f"{_START}/joined/{token}/{worker}"]):
                missing.remove(worker)
        if missing and time.monotonic() > ends:
            raise WorkerLost(f"worker {min(missing)} did not start within {timeout:g} s")
        time.sleep(_POLL_SECONDS)
    return PrefixStore(token, store)


def is_restarted() -> bool:
    """Return whether `torchrun` has restarted the workers."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def launch_name() -> str | None:
    """Return a name of the launch that stays the same when `torchrun` restarts its workers; None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} {platform.node()} {os.getppid()}"

"""Measure optimizer steps of charlstm and of the standard layers of torch: parity first, then medians in turn.

    python bench/train_speed.py                 the shapes of the README's table
    python bench/train_speed.py --cells         every cell at 1 x 512, against torch's own where it has one
                                                and against the lstm
    python bench/train_speed.py --precision bf16
                                                our bf16 in turn with our fp32, stock, and stock with autocast to bf16
    python bench/train_speed.py --sweep         H from 64 to 1024 by B from 16 to 128: is any shape behind stock?

Stock is nn.Embedding -> nn.LSTM (GRU, RNN) -> nn.Linear with the same fused AdamW and clipping; charlstm is the
`Network` and `Optimizer` that `charlstm train` uses, on the path that it chooses. Both start from the same weights and
must agree in loss and in every gradient before anything is timed. Each side runs in its own process, because charlstm
changes how its process returns memory to the system; `--stock-keeps-pages` applies that to stock, too.

`share` is the share of the machine's limit that a step reaches. The limit is the necessary arithmetic (products with
the recurrent, input and output matrices, once forward and twice backward; the first layer uses a table) at the speed of
the fastest 2048 x 2048 x 2048 product, of torch or of charlstm, that was measured in the same run; with
--precision bf16 that is a product in bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from charlstm import __version__
from charlstm.cells import GATES
from charlstm.config import Cell, ModelConfig, TrainingOptions
from charlstm.training import hardware, scan_native
from charlstm.training.defaults import choose
from charlstm.training.network import Network
from charlstm.training.optimizer import Optimizer

Shape = tuple[Cell, int, int, int, int]  # cell, L, H, B, T
SideName = Literal["ours", "ours in bf16", "stock", "autocast"]
VOCABULARY = 65
TABLE = [(1, 256, 64, 64), (1, 512, 64, 128), (2, 512, 64, 128), (1, 1024, 64, 128), (2, 128, 50, 50)]
SWEEP = [(1, hidden, batch, 64) for hidden in (64, 128, 256, 512, 1024) for batch in (16, 32, 64, 128)]


class Stock(nn.Module):
    """The model in standard torch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config.cell]
        self.embedding = nn.Embedding(config.vocab_size, config.embedding)
        self.recurrence = layer(config.embedding, config.hidden, config.layers)
        self.projection = nn.Linear(config.hidden, config.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        outputs, _ = self.recurrence(self.embedding(ids))
        logits: Tensor = self.projection(outputs)
        return logits


class Side:
    """A network and its optimizer, which make steps on one batch."""

    def __init__(self, network: nn.Module, run: Callable[[Tensor], Tensor], ids: Tensor, wanted: Tensor) -> None:
        self.network, self.run, self.ids, self.wanted = network, run, ids, wanted
        options = choose(TrainingOptions(lr=1e-3, steps=1, hidden=1, weight_decay=0.01), 10**6, VOCABULARY)
        self.optimizer = Optimizer(network, options)

    def loss(self) -> Tensor:
        loss = functional.cross_entropy(self.run(self.ids).flatten(0, 1), self.wanted.flatten())
        loss.backward()
        return loss

    def step(self) -> None:
        self.loss()
        self.optimizer.step(0.5, self.optimizer.clip())


def sides(cell: Cell, layers: int, hidden: int, batch: int, steps: int) -> list[Side]:
    """Return our side and, if torch has the cell, the stock side, with equal weights and an equal batch."""
    config = ModelConfig(VOCABULARY, hidden, layers, hidden, cell)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(VOCABULARY, (steps + 1, batch), generator=generator)
    network = Network(config)
    network.initialise(generator, 1.0)
    state = network.zero_state(batch)
    both = [Side(network, lambda ids: network(ids, state)[0], text[:-1], text[1:])]
    if cell in ("lstm", "gru", "rnn"):
        stock = Stock(config)
        stock.load_state_dict(network.state_dict())
        both.append(Side(stock, stock, text[:-1], text[1:]))
    return both


def job_side(shape: Shape, name: SideName) -> Side:
    """Return the side of a job."""
    ours, *stock = sides(*shape)
    if name == "ours":
        return ours
    if name == "ours in bf16":
        assert isinstance(ours.network, Network)
        ours.network.recurrence.requested_path = "native-bf16"
        return ours
    if name == "autocast":
        run = stock[0].run

        def cast(ids: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(ids).float()

        stock[0].run = cast
    return stock[0]


def check(both: list[Side]) -> None:
    """Compare loss and all gradients of both sides; exit if they differ."""
    ours, theirs = both
    losses = [float(side.loss().detach()) for side in both]
    pairs = list(zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True))
    worst = 0.0
    for (_, a), b in pairs:
        assert a.grad is not None
        assert b.grad is not None
        worst = max(worst, float((a.grad - b.grad).norm() / b.grad.norm()))
    if abs(losses[0] - losses[1]) > 1e-5 or worst > 1e-4:
        sys.exit(f"the two sides disagree: losses {losses}, gradients by {worst:.1e} of their norm")
    for side in both:
        side.network.zero_grad()


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def settings_of_training() -> contextlib.AbstractContextManager[None]:
    """Return a context with the settings of a training run on the CPU: the process keeps freed memory."""
    return hardware.run_settings(torch.device("cpu"), threads=None)


def work(orders: Connection, name: SideName, shape: Shape, keep: bool) -> None:
    """Serve as the process of a side: make steps on request, and send their seconds."""
    with settings_of_training() if keep else contextlib.nullcontext():
        side = job_side(shape, name)
        side.step()
        side.step()
        while orders.recv() == "step":
            time.sleep(0.02)  # until the threads of the other side have stopped spinning
            orders.send(seconds(side.step))


def compare(jobs: list[tuple[Shape, SideName, bool]], budget: float) -> list[float]:
    """Return the median seconds of a step of each job (shape, side, keeps pages), in turn, in at least five rounds."""
    spawn = multiprocessing.get_context("spawn")
    lines, workers = [], []
    for shape, name, keep in jobs:
        here, there = spawn.Pipe()
        workers.append(spawn.Process(target=work, args=(there, name, shape, keep)))
        workers[-1].start()
        lines.append(here)
    times: list[list[float]] = [[] for _ in jobs]
    began = None
    while len(times[0]) < 6 or (began and time.perf_counter() - began < budget and len(times[0]) < 300):
        for line, taken in zip(lines, times, strict=True):
            line.send("step")
            taken.append(line.recv())
        began = began or time.perf_counter()  # the first round waits until all processes have started
    for line, worker in zip(lines, workers, strict=True):
        line.send("stop")
        worker.join()
    return [statistics.median(taken[1:]) for taken in times]


def product_speed() -> float:
    """Return the operations per second of the fastest product of two 2048 x 2048 matrices."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    ways: list[Callable[[], object]] = [lambda: torch.mm(a, b), lambda: functional.linear(a, b)]
    if scan_native.NATIVE is not None:
        ways.append(lambda: scan_native.NATIVE.product(a, b))  # type: ignore[union-attr]
    if torch.backends.mkldnn.is_available():
        packed = a.to_mkldnn()
        ways.append(lambda: torch._C._nn.mkldnn_linear(packed, b, None))
    times = [statistics.median(seconds(way) for _ in range(7)) for way in ways]
    return 2 * 2048**3 / min(times)


def bf16_product_speed() -> float:
    """Return the operations per second of the fastest product in bf16 of two 2048 x 2048 matrices."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    short_a, short_b = a.bfloat16(), b.bfloat16()
    ways: list[Callable[[], object]] = [lambda: torch.mm(short_a, short_b)]
    if (native := scan_native.NATIVE_BF16) is not None:
        ways.append(lambda: native.product(a, b))
    return 2 * 2048**3 / min(statistics.median(seconds(way) for _ in range(7)) for way in ways)


def needed(cell: str, layers: int, hidden: int) -> int:
    """Return the operations per character: one product forward, and two for the gradients of input and weight."""
    matrix = len(GATES[cell]) * hidden * hidden
    return 3 * 2 * (matrix + (layers - 1) * 2 * matrix + hidden * VOCABULARY)


def parts(side: Side, rounds: int = 5) -> str:
    """Print which operations the time of our step is spent in, in percent."""
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            began = time.perf_counter()
            result = call(*args, **options)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
            return result

        return run

    native, optimizer = scan_native.NATIVE, side.optimizer
    assert native is not None
    run = native.run
    native.run = lambda name, *rest: timed(name, run)(name, *rest)  # type: ignore[method-assign, assignment]
    update, clip = optimizer.step, optimizer.clip
    optimizer.step = timed("update", update)  # type: ignore[method-assign, assignment]
    optimizer.clip = timed("clip", clip)  # type: ignore[method-assign, assignment]
    total = sum(seconds(side.step) for _ in range(rounds))
    del native.run, optimizer.step, optimizer.clip
    spent["rest"] = total - sum(spent.values())
    return ", ".join(f"{name} {100 * taken / total:.0f}" for name, taken in spent.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", action="store_true", help="every cell at 1 x 512")
    parser.add_argument("--sweep", action="store_true", help="H 64 to 1024, B 16 to 128")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: measure it beside fp32")
    parser.add_argument("--only", type=int, nargs=2, metavar=("L", "H"), help="only the rows of this shape")
    parser.add_argument("--stock-keeps-pages", action="store_true", help="let stock keep its memory as charlstm does")
    parser.add_argument("--seconds", type=float, default=10, help="for each row (default 10)")
    arguments = parser.parse_args()
    with settings_of_training():
        (measure_bf16 if arguments.precision == "bf16" else measure)(arguments)


def print_machine() -> None:
    """Print the versions, the processor and the command."""
    native = scan_native.NATIVE.name if scan_native.NATIVE else "none: plain torch"
    print(f"charlstm {__version__}, torch {torch.__version__}, Python {platform.python_version()}, kernels {native}")
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; {' '.join(sys.argv)}")


def measure_bf16(arguments: argparse.Namespace) -> None:
    """Measure and print our steps in bf16 beside those in fp32 and those of stock, with autocast and without."""
    print_machine()
    limit = bf16_product_speed()
    print(f"2048 x 2048 x 2048: {product_speed() / 1e9:.0f} GFLOP/s in float32, {limit / 1e9:.0f} in bf16\n")
    print("cell      L     H    B    T       bf16       fp32      stock   autocast  / fp32 / stock / autocast  share")
    names: tuple[SideName, ...] = ("ours in bf16", "ours", "stock", "autocast")
    for layers, hidden, batch, steps in TABLE:
        if arguments.only is not None and [layers, hidden] != arguments.only:
            continue
        shape: Shape = ("lstm", layers, hidden, batch, steps)
        check(sides(*shape))
        keeps = arguments.stock_keeps_pages
        taken = compare([(shape, name, name.startswith("ours") or keeps) for name in names], arguments.seconds)
        speeds = [batch * steps / median for median in taken]
        ratios = "  ".join(f"{speeds[0] / speed:6.2f}" for speed in speeds[1:])
        share = needed("lstm", layers, hidden) * speeds[0] / limit
        sizes = f"{layers:2} {hidden:5} {batch:4} {steps:4} "
        print(f"lstm     {sizes}{' '.join(f'{speed:10,.0f}' for speed in speeds)}  {ratios}  {share:6.0%}", flush=True)


def measure(arguments: argparse.Namespace) -> None:
    """Measure and print the rows that the arguments select."""
    print_machine()
    limit = product_speed()
    print(f"2048 x 2048 x 2048 in float32: {limit / 1e9:.0f} GFLOP/s\n")
    versus = "  over lstm" if arguments.cells else ""
    print(f"cell      L     H    B    T   charlstm      stock  ratio  share{versus}   of our step, percent")
    rows: list[Shape] = [("lstm", *shape) for shape in (SWEEP if arguments.sweep else TABLE)]
    if arguments.cells:
        rows = [(cell, 1, 512, 64, 128) for cell in get_args(Cell)]
    slower = 0
    for shape in rows:
        cell, layers, hidden, batch, steps = shape
        both = sides(*shape)
        jobs: list[tuple[Shape, SideName, bool]] = [(shape, "ours", True)]
        if len(both) == 2:
            check(both)
            jobs.append((shape, "stock", arguments.stock_keeps_pages))
        if arguments.cells:
            jobs.append((("lstm", *shape[1:]), "ours", True))
        taken = compare(jobs, arguments.seconds)
        speeds = [batch * steps / median for median in taken]
        stock = f"{speeds[1]:10,.0f} {speeds[0] / speeds[1]:6.2f}" if len(both) == 2 else f"{'-':>10}      -"
        slower += len(both) == 2 and speeds[0] < speeds[1]
        share = needed(cell, layers, hidden) * speeds[0] / limit
        versus = f"{speeds[0] / speeds[-1]:11.2f}" if arguments.cells else ""
        where = parts(both[0]) if scan_native.NATIVE else ""
        sizes = f"{layers:2} {hidden:5} {batch:4} {steps:4}"
        print(f"{cell:8} {sizes} {speeds[0]:10,.0f} {stock} {share:6.0%}{versus}   {where}", flush=True)
    print(f"\nrows slower than stock: {slower}; speeds in characters a second")


if __name__ == "__main__":
    main()

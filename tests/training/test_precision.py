"""Training in bf16: its kernels, the choice between bf16 and fp32, and what a run stores of that choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from charlstm import checkpoint
from charlstm.cells import GATES, STATES
from charlstm.config import ModelConfig, TrainingConfig, TrainingOptions, from_json, to_json
from charlstm.errors import UsageError
from charlstm.runs import BEST, LAST
from charlstm.text import corpus
from charlstm.text.corpus import Corpus
from charlstm.training import defaults, precision, scan_native, scan_torch
from charlstm.training.events import Started, Stopped, Warned
from charlstm.training.resume import TrainingRecord
from charlstm.training.scan_native import TrainingKernels
from charlstm.training.trainer import Trainer
from tests.helpers.models import interrupt

CELLS = tuple(GATES)
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(scan_native.NATIVE_BF16 is None, reason="the native library was not compiled")
VARIANTS = range(scan_native.NATIVE_BF16.variants if scan_native.NATIVE_BF16 else 0)
TEXT = "the quick brown fox jumps over the lazy dog; the dog sleeps. " * 40


def kernels(variant: int = -1, *, is_bf16: bool = True) -> TrainingKernels:
    assert scan_native.NATIVE_BF16 is not None
    return TrainingKernels(scan_native.NATIVE_BF16._library, variant, is_bf16=is_bf16)


def rounded(x: Tensor) -> Tensor:
    """Return x rounded to bf16 by torch, in float64."""
    return x.bfloat16().double()


# ---- the kernels ----


def deviation_of_product(used: TrainingKernels, a: Tensor, b: Tensor, layout: int) -> float:
    """Return the largest deviation from the product of rounded operands in float64, in multiples of the bound.

    The bound is that of K additions in float32 in any order, and of the one to the number that is already there:
    (K + 1) · 2⁻²⁴ · (1 + Σ|a·b|), where the product of two bf16 is exact in float32.
    """
    exact, size = rounded(a) @ rounded(b) + 1, rounded(a).abs() @ rounded(b).abs() + 1
    left = a.t().contiguous().t() if layout & 1 else a
    right = b.t().contiguous().t() if layout & 2 else b
    found = used.product(left, right, torch.ones(len(a), b.shape[1]), add=True)
    return float(((found.double() - exact).abs() / ((a.shape[1] + 1) * 2.0**-24 * size)).max())


SIZES = [(1, 1, 1), (7, 5, 3), (33, 65, 70), (70, 601, 530), (530, 3, 40)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_product_in_bf16_is_exact_but_for_the_rounding_of_float32(sizes: tuple[int, int, int], variant: int) -> None:
    m, k, n = sizes
    generator = torch.Generator().manual_seed(k)
    a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    for layout in range(4):
        assert deviation_of_product(kernels(variant), a, b, layout) <= 1
        if k > 1:  # the negative control: operands that are not rounded
            assert deviation_of_product(kernels(variant, is_bf16=False), a, b, layout) > 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_operands_are_rounded_to_the_nearest_and_to_even_like_those_of_torch(variant: int) -> None:
    middle = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 3.4e38, -3.4e38, torch.inf, -torch.inf, 0.0])
    bits = torch.randint(-(2**31), 2**31, (4000,), generator=torch.Generator().manual_seed(1)).int().view(torch.float32)
    x = torch.cat((middle, bits[bits.abs() > 2.0**-100]))[:, None]  # an instruction may take a subnormal number as 0
    found, wanted = kernels(variant).product(x, torch.ones(1, 1)), x.bfloat16().float()
    assert torch.equal(found, wanted)
    truncated = (x.view(torch.int32) & -65536).view(torch.float32)
    assert not torch.equal(found, truncated)  # the negative control


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_stays_nan(variant: int) -> None:
    """Rounding up the bits of the last NaN without a check would make it −0, and hide a divergence."""
    x = torch.tensor([0x7FC00000, -0x400000, 0x7FFFFFFF, -1, 0x7F800001]).int().view(torch.float32)[:, None]
    assert kernels(variant).product(x, torch.ones(1, 1)).isnan().all()


def scan(cell: str, used: TrainingKernels, *, with_boundary: bool) -> tuple[float, float]:
    """Return the largest deviation of the forward and of the backward pass from the equations in float64.

    The equations of every step get what the kernels computed for the step before, so that both round the same numbers,
    and what remains is the rounding of float32: sums of 41 terms, and e^x, whose relative error is below 2e-7.
    """
    steps, batch, hidden, gates = 5, 27, 41, len(GATES[cell])
    generator = torch.Generator().manual_seed(hidden)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    source, weight = normal(steps * batch, gates * hidden), normal(gates * hidden, hidden, std=hidden**-0.5)
    bias = normal((gates + (cell == "gru")) * hidden)
    peephole = normal(3, hidden) if cell == "peephole" else None
    state = normal(len(STATES[cell]), batch, hidden)
    fresh = torch.rand(steps, batch, generator=generator) < 0.2 if with_boundary else None
    forward = scan_native.forward(used, cell, (steps, batch), source, None, state, weight, bias, peephole, fresh)
    cache = forward[2]
    y, q = cache.gates.clone(), None if cache.candidate is None else cache.candidate.clone()
    double = [None if part is None else part.double() for part in (peephole, cache.c, cache.all_c, q)]
    p, c_begin, c_all, q_all = double
    size, worst = gates * hidden, 0.0
    for t, x_t in enumerate(source.double().view(steps, batch, -1)):
        z = bias[:size].double() + rounded(cache.h[t]) @ rounded(weight).t()
        h = cache.h[t].double()
        if cell == "gru":
            found, h, _ = scan_torch._gates_gru(x_t, z, h, bias[size:].double())
        elif cell == "rnn":
            found = h = torch.tanh(x_t + z)
        else:
            assert c_begin is not None
            assert c_all is not None
            found, h, c = scan_torch._GATES[cell](x_t + z, c_begin[t], p)
            worst = max(worst, float((c - c_all[t + 1]).abs().max()))
        worst = max(worst, float((found - y[t]).abs().max()), float((h - cache.all_h[t + 1]).abs().max()))

    d_output, d_state = normal(steps, batch, hidden), normal(*state.shape)
    found_gradients = scan_native.backward(used, cell, cache, None, steps * batch, d_output, d_state)
    d_h, d_c = d_state[0].double(), d_state[-1].double()
    worst_gradient = 0.0
    for t in reversed(range(steps)):
        d_h, through = d_output[t].double() + d_h, torch.zeros(())
        if cell == "gru":
            assert q_all is not None
            _, d_z, through = scan_torch._gate_gradients_gru(y[t].double(), q_all[t], cache.h[t].double(), d_h)
        elif cell == "rnn":
            d_z = d_h * (1 - y[t].double() ** 2)
        else:
            assert c_begin is not None
            assert c_all is not None
            d_z, d_c = scan_torch._GATE_GRADIENTS[cell](y[t].double(), c_begin[t], c_all[t + 1], d_h, d_c, p)
        worst_gradient = max(worst_gradient, float((d_z - found_gradients.gates[t]).abs().max()))
        d_h = through + rounded(found_gradients.gates[t]) @ rounded(weight)
        if fresh is not None:
            d_h, d_c = (part.masked_fill(fresh[t][:, None], 0) for part in (d_h, d_c))
    last = [d_h] if len(state) == 1 else [d_h, d_c]
    worst_gradient = max(worst_gradient, float((torch.stack(last) - found_gradients.state).abs().max()))
    return worst, worst_gradient


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_boundary", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_every_step_in_bf16_agrees_with_the_equations_on_rounded_operands(
    cell: str, with_boundary: bool, variant: int
) -> None:
    assert max(scan(cell, kernels(variant), with_boundary=with_boundary)) < 1e-5
    control = scan(cell, kernels(variant, is_bf16=False), with_boundary=with_boundary)  # in fp32: nothing is rounded
    assert min(control) > 5e-4


def test_the_number_of_threads_does_not_change_a_scan_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_native, "_threads", lambda _: 3)
    assert max(scan("lstm", kernels(), with_boundary=True)) < 1e-5


# ---- a run ----


SMALL: dict[str, Any] = {"hidden": 12, "embedding": 5, "batch_size": 3, "seq_len": 8, "validations": 2, "dropout": 0.2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    file = tmp_path_factory.mktemp("text") / "text"
    file.write_text(TEXT)
    return corpus.read([file])


def trained(text: Corpus, run: Path, **options: Any) -> Started:
    events = list(Trainer.start(text, run, TrainingOptions(**SMALL, **options)).events())
    assert isinstance(events[0], Started)
    return events[0]


def options_in(run: Path) -> TrainingConfig:
    return TrainingRecord.of(checkpoint.load(run / LAST, training=True)).options


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_a_run_that_was_stopped_and_resumed_ends_in_the_same_bytes(chosen: Any, text: Corpus, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trained(text, whole, steps=9, precision=chosen).precision == chosen
    trainer = Trainer.start(text, parts, TrainingOptions(**SMALL, steps=9, precision=chosen))
    interrupt(trainer, 4)
    *_, last = trainer.events()
    assert isinstance(last, Stopped)
    assert last.step == 4
    for event in Trainer.resume(text, parts).events():
        if isinstance(event, Started):
            assert event.kernels == ("native" if chosen == "fp32" else "native-bf16")
    for name in (BEST, LAST):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_bf16_is_stored_and_fp32_leaves_the_checkpoint_as_it_was(text: Corpus, tmp_path: Path) -> None:
    for run, chosen in (("fp32", "fp32"), ("bf16", "bf16"), ("auto", "auto")):
        trained(text, tmp_path / run, steps=3, precision=chosen)
    assert options_in(tmp_path / "bf16").precision == "bf16"
    record = checkpoint.load(tmp_path / "fp32" / LAST, training=True).training
    assert record is not None
    assert "precision" not in record["options"]
    # A budget in steps gives the same model on every machine, so that auto is fp32 for it.
    fp32, bf16, auto = ((tmp_path / run / LAST).read_bytes() for run in ("fp32", "bf16", "auto"))
    assert fp32 == auto
    assert fp32 != bf16


@pytest.mark.parametrize(("speedup", "chosen"), [(1.14, "fp32"), (1.15, "bf16")])
def test_auto_takes_bf16_if_a_step_is_fast_enough_and_a_resumed_run_keeps_it(
    speedup: float, chosen: str, text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda _: True)
    monkeypatch.setattr(precision, "speedup", lambda *_: speedup)
    started = trained(text, tmp_path / "run", seconds=0.5)
    assert (started.precision, started.bf16_speedup) == (chosen, speedup)
    assert options_in(tmp_path / "run").precision == chosen
    assert f'precision = "{chosen}"\n' in (tmp_path / "run" / "config.toml").read_text()
    monkeypatch.setattr(precision, "speedup", lambda *_: 1 / 0)  # a resumed run measures nothing
    for changes, expected in (({}, chosen), ({"precision": "auto"}, chosen), ({"precision": "fp32"}, "fp32")):
        first = next(iter(Trainer.resume(text, tmp_path / "run", {"seconds": 0.6, **changes}).events()))
        assert isinstance(first, Started)
        assert first.precision == expected


def test_auto_measures_nothing_without_instructions_for_bf16(
    text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda _: False)
    monkeypatch.setattr(precision, "speedup", lambda *_: 1 / 0)
    started = trained(text, tmp_path / "run", seconds=0.3)
    assert (started.precision, started.bf16_speedup) == ("fp32", None)


def test_the_measurement_makes_steps_in_both_precisions_and_changes_no_random_number() -> None:
    options = defaults.choose(TrainingOptions(steps=1, hidden=16, batch_size=2, seq_len=4), 1000, 9)
    before = torch.get_rng_state()
    assert 0.01 < precision.speedup(ModelConfig(9, 16), options) < 100
    assert torch.equal(torch.get_rng_state(), before)


def test_bf16_needs_a_cpu_and_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    precision.check("bf16", CPU)
    precision.check("fp32", torch.device("cuda"))
    with pytest.raises(UsageError, match="device cuda: use fp32"):
        precision.check("bf16", torch.device("cuda"))
    monkeypatch.setattr(scan_native, "NATIVE_BF16", None)
    with pytest.raises(UsageError, match="without the compiled library"):
        precision.check("bf16", CPU)


def test_emulated_bf16_is_reported(text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_fast", lambda _: False)
    events = list(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=1, precision="bf16")).events())
    assert [event.message for event in events if isinstance(event, Warned)] == precision.warnings("bf16")
    assert precision.warnings("fp32") == []


def test_a_record_without_a_precision_is_of_fp32_and_one_with_auto_is_invalid() -> None:
    values = to_json(defaults.choose(TrainingOptions(steps=1), 1000, 9))
    assert from_json(TrainingConfig, values).precision == "fp32"
    with pytest.raises(UsageError, match="no value for precision"):
        from_json(TrainingConfig, {**values, "precision": "auto"})


def test_a_faster_product_allows_a_larger_model() -> None:
    slow = defaults.choose(TrainingOptions(seconds=60), 10**6, 65, speed=1.2e11)
    fast = defaults.choose(TrainingOptions(seconds=60), 10**6, 65, speed=1.2e11, product_speed=2.4e11)
    assert slow.hidden < fast.hidden

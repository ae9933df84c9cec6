"""Every path of every cell against the equations, in outputs, last states and all gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from charlstm.cells import GATES
from charlstm.config import ModelConfig
from charlstm.training import recurrence, scan_native, scan_torch
from charlstm.training.recurrence import Recurrence

CELLS = tuple(GATES)
VENDOR = ("lstm", "gru", "rnn")
PATHS = [
    (path, cell)
    for path in ("plain", "native", "vendor")
    for cell in CELLS
    if (path != "vendor" or cell in VENDOR) and (path != "native" or scan_native.NATIVE is not None)
]
SHAPES = [  # T, B, V, E, H, L: all distinct; one step; one unit; more symbols than the window; beyond one tile each way
    (5, 3, 7, 4, 6, 2),
    (1, 3, 2, 4, 5, 2),
    (4, 2, 7, 3, 1, 1),
    (3, 2, 50, 4, 5, 1),
    (4, 27, 11, 9, 37, 2),
]


def problem(cell: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Recurrence, Tensor, Tensor, Tensor]:
    steps, batch, vocab, embedding, hidden, layers = shape
    generator = torch.Generator().manual_seed(hash(shape) % 2**31)
    config = ModelConfig(vocab, hidden, layers, embedding, cell)  # type: ignore[arg-type]
    layer = Recurrence(config, "reference").to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7 * hidden**-0.5, generator=generator)
    table = torch.randn(vocab, embedding, dtype=dtype, generator=generator).requires_grad_()
    ids = torch.randint(vocab, (steps, batch), generator=generator)
    state = torch.randn(config.state_shape(batch), dtype=dtype, generator=generator).requires_grad_()
    return layer, table, ids, state


def with_boundary(layer: Recurrence, boundary: int | None) -> Recurrence:
    layer.config = replace(layer.config, boundary=boundary)
    return layer


def outcome(layer: Recurrence, path: str, table: Tensor, ids: Tensor, state: Tensor) -> list[Tensor]:
    """Return outputs, last state and all gradients of a loss that weights every output differently."""
    layer.requested_path = path  # type: ignore[assignment]
    outputs, last = layer(table, ids, state)
    loss = (
        outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype, device=outputs.device).view_as(outputs)
    ).sum()
    loss = loss + (last * torch.linspace(2, -1, last.numel(), dtype=last.dtype, device=last.device).view_as(last)).sum()
    return [outputs, last, *torch.autograd.grad(loss, [table, state, *layer.parameters()])]


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference, relative to the size of the numbers."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    return max(
        float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("path", "cell"), PATHS)
def test_every_path_agrees_with_the_equations_in_float64(path: str, cell: str, shape: tuple[int, ...]) -> None:
    case = problem(cell, shape, torch.float64)
    assert worst(outcome(case[0], path, *case[1:]), outcome(case[0], "reference", *case[1:])) < 1e-10


@pytest.mark.parametrize(("path", "cell"), PATHS)
def test_every_path_agrees_in_float32_within_its_precision(path: str, cell: str) -> None:
    """The tolerance is four times the reference's own error, float32 against float64, and never below one rounding."""
    shape = (9, 21, 13, 8, 45, 2)
    exact = [
        tensor.float()
        for tensor in outcome(*_with_path(problem(cell, shape, torch.float64), problem(cell, shape, torch.float32)))
    ]
    case = problem(cell, shape, torch.float32)
    allowed = 4 * max(worst(outcome(case[0], "reference", *case[1:]), exact), 2.0**-22)
    assert worst(outcome(case[0], path, *case[1:]), exact) < allowed < 1e-4


def _with_path(double: tuple, single: tuple) -> tuple:  # type: ignore[type-arg]
    """Return the problem in float64 with exactly the numbers of the one in float32."""
    layer = double[0]
    layer.load_state_dict(single[0].state_dict())
    return (
        layer,
        "reference",
        single[1].detach().double().requires_grad_(),
        single[2],
        single[3].detach().double().requires_grad_(),
    )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("variant", range(scan_native.NATIVE.variants if scan_native.NATIVE else 0))
def test_every_instruction_set_agrees(cell: str, variant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scan_native.NATIVE is not None
    monkeypatch.setattr(scan_native.NATIVE, "variant", variant)
    for shape in ((4, 27, 11, 9, 37, 2), (3, 5, 7, 4, 70, 1)):
        for boundary in (None, 2):
            case = problem(cell, shape, torch.float64)
            with_boundary(case[0], boundary)
            assert worst(outcome(case[0], "native", *case[1:]), outcome(case[0], "reference", *case[1:])) < 1e-10
            case = problem(cell, shape, torch.float32)
            with_boundary(case[0], boundary)
            assert worst(outcome(case[0], "native", *case[1:]), outcome(case[0], "reference", *case[1:])) < 2e-5


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pool", ["torch's", "own"])
def test_the_number_of_threads_does_not_change_the_result(
    cell: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scan_native.NATIVE is None:
        pytest.skip("no compiler at install")
    if pool == "own":
        monkeypatch.setattr(scan_native, "_openmp_pool", lambda: None)
    monkeypatch.setattr(scan_native, "_threads", lambda _: 3)
    case = problem(cell, (4, 26, 11, 9, 37, 2), torch.float64)
    with_boundary(case[0], 3)
    assert worst(outcome(case[0], "native", *case[1:]), outcome(case[0], "reference", *case[1:])) < 1e-10


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("path", "cell"), [(path, cell) for path, cell in PATHS if path != "vendor"])
def test_every_path_resets_the_state_at_a_boundary_like_the_equations(
    path: str, cell: str, shape: tuple[int, ...]
) -> None:
    layer, *case = problem(cell, shape, torch.float64)
    boundary = int(case[1][-1, 0])  # it occurs
    layer = with_boundary(layer, boundary)
    assert worst(outcome(layer, path, *case), outcome(layer, "reference", *case)) < 1e-10
    single, *case_32 = problem(cell, shape, torch.float32)
    single = with_boundary(single, boundary)
    assert worst(outcome(single, path, *case_32), outcome(single, "reference", *case_32)) < 2e-5


@pytest.mark.parametrize("path", ["plain", "native"])
def test_ids_may_have_any_memory_layout(path: str) -> None:
    if path == "native" and scan_native.NATIVE is None:
        pytest.skip("no compiler at install")
    layer, table, ids, state = problem("lstm", (9, 4, 7, 4, 6, 2), torch.float32)
    turned = ids.t().contiguous().t()
    assert not turned.is_contiguous()
    assert turned.equal(ids)
    with_boundary(layer, 3)
    assert worst(outcome(layer, path, table, turned, state), outcome(layer, path, table, ids, state)) == 0


@pytest.mark.parametrize("cell", CELLS)
def test_a_window_with_a_boundary_equals_two_separate_texts(cell: str) -> None:
    """The reference itself: outputs and gradients behind a boundary are those of a text that begins with it."""
    layer, table, _, state = problem(cell, (7, 1, 6, 4, 5, 2), torch.float64)
    ids = torch.tensor([[1], [2], [4], [0], [3], [2], [5]])
    whole, last = with_boundary(layer, 0)(table, ids, state)
    with_boundary(layer, None)
    first, _ = layer(table, ids[:3], state)
    second, end = layer(table, ids[3:], torch.zeros_like(state))
    assert worst([whole, last], [torch.cat((first, second)), end]) < 1e-12
    (before,) = torch.autograd.grad(whole[3:].sum() + last.sum(), state, allow_unused=True, retain_graph=True)
    assert before is None or not before.any()
    carried, end = layer(table, ids, state)
    assert worst([carried[3:], end], [whole[3:], last]) > 1e-3  # negative control: the state that is carried differs


@pytest.mark.parametrize(("path", "cell"), [(path, cell) for path, cell in PATHS if path != "vendor"])
def test_no_gradient_crosses_a_boundary(path: str, cell: str) -> None:
    layer, table, _, state = problem(cell, (5, 2, 6, 4, 5, 2), torch.float64)
    layer = with_boundary(layer, 0)
    layer.requested_path = path  # type: ignore[assignment]
    ids = torch.tensor([[1, 1], [2, 3], [0, 4], [5, 5], [2, 2]])
    outputs, last = layer(table, ids, state)
    (gradient,) = torch.autograd.grad(outputs[2:].sum() + last.sum(), state)
    assert not gradient[:, :, 0].any()
    assert gradient[:, :, 1].any()


def test_a_layer_with_a_boundary_never_uses_a_vendor_kernel() -> None:
    for cell in CELLS:
        assert recurrence.choose_path(cell, "cuda", has_boundary=True) == "plain"
        assert recurrence.choose_path(cell, "cpu", has_boundary=True) in ("native", "plain")
    assert recurrence.choose_path("lstm", "cuda") == "vendor"


@pytest.mark.parametrize(("path", "cell"), [*PATHS, *(("reference", cell) for cell in CELLS)])
def test_chunked_sequence_with_carried_state_equals_whole_sequence(path: str, cell: str) -> None:
    layer, table, ids, state = problem(cell, (7, 5, 6, 4, 19, 2), torch.float64)
    layer.requested_path = path  # type: ignore[assignment]
    whole, last = layer(table, ids, state)
    first, between = layer(table, ids[:3], state)
    second, end = layer(table, ids[3:], between)
    assert worst([torch.cat((first, second)), end], [whole, last]) < 1e-12


@pytest.mark.parametrize("boundary", [None, 1])
@pytest.mark.parametrize(("path", "cell"), [(path, cell) for path, cell in PATHS if path != "vendor"])
def test_gradcheck_of_each_written_out_gradient(path: str, cell: str, boundary: int | None) -> None:
    layer, table, ids, state = problem(cell, (3, 2, 3, 2, 3, 1), torch.float64)
    ids[1, 0] = 1
    layer = with_boundary(layer, boundary)
    layer.requested_path = path  # type: ignore[assignment]
    names = [name for name, _ in layer.named_parameters()]

    def run(table: Tensor, state: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (table, ids, state)
        )
        return result

    assert torch.autograd.gradcheck(run, (table, state, *layer.parameters()))


@pytest.mark.parametrize("cell", VENDOR)
def test_weights_interchange_with_torch_by_plain_copy(cell: str) -> None:
    layer, table, ids, state = problem(cell, (6, 4, 9, 3, 8, 2), torch.float64)
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell](3, 8, 2).double()
    theirs.load_state_dict(layer.state_dict())
    hidden = (state[:, 0].contiguous(), state[:, 1].contiguous()) if cell == "lstm" else state[:, 0].contiguous()
    expected, last = theirs(table[ids], hidden)
    outputs, ours = layer(table, ids, state)
    assert worst([outputs, ours], [expected, torch.stack(last, 1) if cell == "lstm" else last[:, None]]) < 1e-12


@pytest.mark.parametrize("cell", [cell for cell in CELLS if len(GATES[cell]) > 1])
def test_two_swapped_gates_are_noticed(cell: str) -> None:
    """Negative control: a fast path with another gate order fails the parity tests."""
    layer, table, ids, state = problem(cell, SHAPES[0], torch.float64)
    expected = outcome(layer, "reference", table, ids, state)
    swapped = {
        name: torch.cat([parameter.chunk(len(GATES[cell]))[k] for k in (1, 0, *range(2, len(GATES[cell])))])
        for name, parameter in layer.state_dict().items()
        if not name.startswith("peephole")
    }
    layer.load_state_dict(swapped, strict=False)
    assert worst(outcome(layer, "plain", table, ids, state)[:2], expected[:2]) > 1e-3


@pytest.mark.parametrize("path", [path for path, cell in PATHS if cell == "lstm"])
def test_dropout_keeps_the_mean_and_repeats_with_its_generator(path: str) -> None:
    def drop(seed: int) -> Tensor:
        return recurrence._drop(path, x, 0.25, torch.Generator().manual_seed(seed))

    x = torch.ones(40, 50, 60, requires_grad=True)
    dropped = drop(3)
    assert torch.equal(dropped, drop(3))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(dropped.detach().mean()) == pytest.approx(1, abs=0.01)
    both = (dropped == 0) & (drop(4) == 0)
    assert float(both.float().mean()) == pytest.approx(0.25**2, abs=0.005)  # two masks know nothing of each other
    for axis in range(3):
        assert float(dropped.detach().mean(axis).std()) < 2 * (1 / 3 / (120_000 / dropped.mean(axis).numel())) ** 0.5
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient, dropped.detach())  # what was dropped has no gradient, the rest is scaled alike


@pytest.mark.parametrize("path", [path for path, cell in PATHS if cell == "lstm" and path != "vendor"])
def test_a_second_backward_pass_is_an_error(path: str) -> None:
    layer, table, ids, state = problem("lstm", SHAPES[0], torch.float32)
    layer.requested_path = path  # type: ignore[assignment]
    loss = layer(table, ids, state)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.skipif(scan_native.NATIVE is None, reason="no compiler at install")
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 5, 3), (33, 65, 70), (70, 300, 530), (530, 3, 40)], ids=str)
def test_native_product_equals_torch_for_every_layout(sizes: tuple[int, int, int]) -> None:
    assert scan_native.NATIVE is not None
    m, k, n = sizes
    a, b = torch.randn(m, k, dtype=torch.float64), torch.randn(k, n, dtype=torch.float64)
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            out = torch.ones(m, n, dtype=torch.float64)
            scan_native.NATIVE.product(left, right, out, add=True)
            torch.testing.assert_close(out, a @ b + 1, rtol=0, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "peephole", "coupled"])
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_the_steps_compiled_for_a_gpu_are_one_graph_and_agree(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, without code generation: torch.compile captures each step as one graph."""
    monkeypatch.setattr(
        scan_torch, "_fused", lambda function, _: torch.compile(function, fullgraph=True, backend="eager")
    )
    case = problem(cell, SHAPES[0], torch.float64)
    assert worst(outcome(case[0], "plain", *case[1:]), outcome(case[0], "reference", *case[1:])) < 1e-10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("path", ["plain", "vendor"])
def test_every_path_agrees_on_a_gpu(cell: str, path: str) -> None:
    if path == "vendor" and cell not in VENDOR:
        pytest.skip("torch has no such layer")
    layer, table, ids, state = problem(cell, SHAPES[0], torch.float64)
    expected = outcome(layer, "reference", table, ids, state)
    there = [tensor.detach().cuda() for tensor in (table, state)]
    found = outcome(layer.cuda(), path, there[0].requires_grad_(), ids.cuda(), there[1].requires_grad_())
    assert worst([tensor.cpu() for tensor in found], expected) < 1e-10


def test_a_wrong_sign_in_the_backward_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the gradients: the forward pass is correct, the derivative of one gate is not."""
    right = scan_torch._gate_gradients_lstm

    def wrong(*args: Tensor) -> tuple[Tensor, Tensor]:
        d_z, d_c = right(*args)
        return d_z * torch.tensor([1.0, 1, 1, -1]).repeat_interleave(d_z.shape[1] // 4), d_c

    monkeypatch.setitem(scan_torch._GATE_GRADIENTS, "lstm", wrong)
    case = problem("lstm", SHAPES[0], torch.float64)
    assert worst(outcome(case[0], "plain", *case[1:]), outcome(case[0], "reference", *case[1:])) > 1e-3

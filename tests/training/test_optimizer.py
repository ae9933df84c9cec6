"""Compare the optimizer with AdamW and clipping of torch, and with a hand-worked learning-rate schedule."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from charlstm.config import Cell, ModelConfig, TrainingConfig, TrainingOptions
from charlstm.training.defaults import choose
from charlstm.training.network import Network
from charlstm.training.optimizer import Optimizer

CELLS: tuple[Cell, ...] = ("lstm", "peephole", "gru")
MATRICES = ("embedding.weight", "weight_ih", "weight_hh", "projection.weight")


def options(**given: object) -> TrainingConfig:
    return choose(TrainingOptions(steps=100, **given), 10_000, 7)  # type: ignore[arg-type]


def network(cell: Cell = "peephole") -> Network:
    """Return a small network whose biases and peepholes are not zero, so that weight decay would change them."""
    made = Network(ModelConfig(7, hidden=5, layers=2, embedding=4, cell=cell))
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=generator)
    return made


def set_gradients(networks: list[Network], step: int, scale: float = 1.0) -> None:
    """Give all networks the same random gradients."""
    generator = torch.Generator().manual_seed(step)
    for name, parameter in networks[0].named_parameters():
        gradient = scale * torch.randn(parameter.shape, generator=generator)
        for one in networks:
            one.get_parameter(name).grad = gradient.clone()


def is_matrix(name: str) -> bool:
    return any(part in name for part in MATRICES)


def largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def torch_adamw(model: nn.Module, config: TrainingConfig, decay_everything: bool = False) -> torch.optim.AdamW:
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if is_matrix(name)], "weight_decay": config.weight_decay},
        {
            "params": [p for name, p in named if not is_matrix(name)],
            "weight_decay": config.weight_decay if decay_everything else 0.0,
        },
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-8)


def differences_after_steps(cell: Cell, config: TrainingConfig, decay_everything: bool) -> float:
    """Make ten clipped steps with our optimizer and with torch's, at the same rates."""
    ours = network(cell)
    theirs = copy.deepcopy(ours)
    optimizer, reference = Optimizer(ours, config), torch_adamw(theirs, config, decay_everything)
    for step in range(10):
        set_gradients([ours, theirs], step, scale=3.0)
        nn.utils.clip_grad_norm_(theirs.parameters(), config.clip)
        rate = optimizer.step(step / 10, optimizer.clip())
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    return largest_difference(ours, theirs)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("cell", CELLS)
def test_ten_steps_equal_those_of_torch_over_two_parameter_groups(cell: Cell, beta1: float) -> None:
    config = options(weight_decay=0.5, lr=0.05, beta1=beta1)
    assert differences_after_steps(cell, config, decay_everything=False) < 1e-6


@pytest.mark.parametrize("cell", CELLS)
def test_weight_decay_on_every_parameter_is_detected(cell: Cell) -> None:
    """Negative control: the comparison with torch fails if biases and peepholes decay, too."""
    config = options(weight_decay=0.5, lr=0.05)
    assert differences_after_steps(cell, config, decay_everything=True) > 1e-2


@pytest.mark.parametrize("cell", CELLS)
def test_weight_decay_scales_matrices_but_not_biases_and_peepholes(cell: Cell) -> None:
    """With a gradient of zero a step multiplies a matrix by 1 − rate · decay and changes nothing else."""
    model = network(cell)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, options(weight_decay=0.5, lr=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rate = optimizer.step(0.5, torch.tensor(0.0))
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * rate if is_matrix(name) else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-6, atol=0)
    assert sum(not is_matrix(name) for name in before) == (7 if cell == "peephole" else 5)  # 2 layers, 1 projection


def test_a_changed_weight_decay_applies_at_the_next_step() -> None:
    model = network()
    optimizer = Optimizer(model, options(weight_decay=0.5))
    optimizer.weight_decay = 0.0
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5, torch.tensor(0.0))
    assert largest_difference(model, before) == 0


def test_the_rate_rises_linearly_and_then_falls_with_the_square_of_the_share_to_zero() -> None:
    optimizer = Optimizer(network(), options(lr=0.1, warmup=0.2))
    by_hand = {0.0: 0.002, 0.1: 0.051, 0.2: 0.1, 0.4: 0.09375, 0.6: 0.075, 1.0: 0.0}
    for share, rate in by_hand.items():
        assert optimizer.rate(share) == pytest.approx(rate, abs=1e-12)


def test_a_warm_up_over_the_whole_budget_and_no_warm_up_are_possible() -> None:
    assert Optimizer(network(), options(lr=0.1, warmup=1.0)).rate(1.0) == pytest.approx(0.1)
    assert Optimizer(network(), options(lr=0.1, warmup=0.0)).rate(0.0) == pytest.approx(0.1)


def test_the_factor_scales_the_rate_of_a_step() -> None:
    model = network()
    optimizer = Optimizer(model, options(lr=0.1))
    set_gradients([model], 1)
    assert optimizer.step(0.5, optimizer.clip(), factor=0.25) == pytest.approx(0.25 * optimizer.rate(0.5))


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_clipping_equals_that_of_torch(scale: float) -> None:
    ours = network()
    theirs = copy.deepcopy(ours)
    set_gradients([ours, theirs], 1, scale)
    expected = torch.cat([p.grad.flatten() for p in theirs.parameters() if p.grad is not None]).norm()
    nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    norm = Optimizer(ours, options(clip=1.0)).clip()
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    after = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None]).norm()
    assert float(after) == pytest.approx(min(1.0, float(expected)), rel=1e-5)


def test_a_step_clears_the_gradients() -> None:
    model = network()
    optimizer = Optimizer(model, options())
    set_gradients([model], 1)
    optimizer.step(0.5, optimizer.clip())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_nan_or_infinite_changes_neither_weights_nor_moments(bad: float) -> None:
    model = network()
    optimizer = Optimizer(model, options())
    set_gradients([model], 1)
    optimizer.step(0.1, optimizer.clip())
    before, moments = copy.deepcopy(model), {name: t.clone() for name, t in optimizer.tensors().items()}
    set_gradients([model], 2)
    gradient = model.projection.bias.grad
    assert gradient is not None
    gradient[0] = bad
    optimizer.step(0.2, optimizer.clip())
    assert largest_difference(model, before) == 0
    assert all(torch.equal(tensor, moments[name]) for name, tensor in optimizer.tensors().items())


def continued(tensors: dict[str, Tensor], model: Network, step: int) -> Network:
    """Make three more steps with an optimizer that loads a saved state."""
    model = copy.deepcopy(model)
    optimizer = Optimizer(model, options(beta1=0.9))
    optimizer.load(tensors, step)
    for number in range(4, 7):
        set_gradients([model], number)
        optimizer.step(0.5, optimizer.clip())
    return model


def test_a_loaded_state_continues_bit_for_bit() -> None:
    model = network()
    optimizer = Optimizer(model, options(beta1=0.9))
    assert optimizer.tensors() == {}
    for number in range(1, 4):
        set_gradients([model], number)
        optimizer.step(0.5, optimizer.clip())
    saved, midway = {name: t.clone() for name, t in optimizer.tensors().items()}, copy.deepcopy(model)
    for number in range(4, 7):
        set_gradients([model], number)
        optimizer.step(0.5, optimizer.clip())
    assert largest_difference(continued(saved, midway, 3), model) == 0
    # Negative controls: another number of steps, and other moments, continue differently.
    assert largest_difference(continued(saved, midway, 2), model) > 0
    changed = {name: 2 * tensor for name, tensor in saved.items()}
    assert largest_difference(continued(changed, midway, 3), model) > 0


def test_a_state_before_the_first_step_is_empty() -> None:
    optimizer = Optimizer(network(), options())
    optimizer.load({}, 0)
    assert optimizer.tensors() == {}


def test_a_state_that_does_not_fit_is_refused() -> None:
    model = network()
    optimizer = Optimizer(model, options())
    set_gradients([model], 1)
    optimizer.step(0.5, optimizer.clip())
    state = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    name = "optim/exp_avg_sq/projection.bias"
    with pytest.raises(KeyError, match=r"projection\.bias"):
        optimizer.load({key: tensor for key, tensor in state.items() if key != name}, 1)
    for wrong in (state[name][:-1], state[name].double(), -torch.ones_like(state[name])):
        with pytest.raises(ValueError, match=r"projection\.bias"):
            optimizer.load({**state, name: wrong}, 1)
    optimizer.load(state, 1)
    np.testing.assert_array_equal(optimizer.tensors()[name].numpy(), state[name].numpy())

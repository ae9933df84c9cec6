"""The model at work, without torch: ids and state in, logits and state out.

Two backends stand behind one class: `native`, C compiled when charlstm was installed, and `numpy`, which is the
equations of `cells` themselves. Nothing is remembered between calls: the state is an array that goes in and comes out,
so it can be kept, copied, or saved, and one engine can serve many texts.

Letters: B batch of independent texts, T time, V vocabulary, L layers, S states of the cell (h, or h and c), H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charlstm.cells import STEP, Weights
from charlstm.config import ModelConfig, Precision
from charlstm.errors import CheckpointError, UsageError
from charlstm.kernels import drawing

Backend = Literal["auto", "native", "numpy"]
Ids = NDArray[np.int32]
State = NDArray[np.float32]


class Engine:
    """A model that is ready to run.

    Args:
        config: the model's shape.
        weights: name → array, exactly the names and shapes of `config.shapes()`.
        precision: 'fp32' is exact; 'int8' rounds weights and activations to 8 bits; 'auto' is int8 where it is faster.
        threads: at most so many; None chooses by the model's size and the machine. The results do not depend on it.
        backend: 'auto' is native where it was compiled, else numpy.

    Raises:
        UsageError: a precision or backend that this installation lacks.
        ValueError: weights that are not those of the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        precision: Precision = "auto",
        threads: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        self.config = config
        _check_weights(config, weights)
        if precision not in ("auto", "fp32", "int8"):
            raise UsageError(f"--precision must be one of auto, fp32, int8, not {precision!r}")
        if backend == "native":
            raise UsageError("the native engine was not compiled in this installation")
        if precision == "int8":
            raise UsageError("--precision int8 needs the native engine, which was not compiled in this installation")
        self.precision: Literal["fp32", "int8"] = "fp32"
        self.description = "numpy (fp32)"
        self._run = _Numpy(config, weights)

    def zero_state(self, batch: int = 1) -> State:
        """The state before any text: zeros, (L, S, B, H)."""
        return np.zeros(self.config.state_shape(batch), np.float32)

    def step(self, ids: ArrayLike, state: State) -> tuple[NDArray[np.float32], State]:
        """Let each text read one symbol: ids (B,) and state → logits (B, V) of what follows, and the new state."""
        return self._run.step(self._check(ids, 1, state), state)

    def read(self, ids: ArrayLike, state: State) -> State:
        """Let each text read the symbols ids (T, B), for what they leave in the state."""
        for row in self._check(ids, 2, state):
            state = self._run.step(row, state, project=False)[1]
        return state

    def score(self, ids: ArrayLike, state: State) -> tuple[NDArray[np.float64], State]:
        """Surprise of each text at its own symbols.

        Args:
            ids: (T + 1, B). T of them are read and T predicted: the first is only read, the last only predicted, so a
                long text is scored in chunks that overlap by one symbol.
            state: (L, S, B, H), before the first.

        Returns:
            nats (T, B): −log p of ids[t + 1] after ids[0 … t]; and the state after ids[T − 1].
        """
        symbols = self._check(ids, 2, state)
        nats = np.empty((max(0, len(symbols) - 1), symbols.shape[1]), np.float64)
        for t in range(len(nats)):
            logits, state = self._run.step(symbols[t], state)
            scores = logits.astype(np.float64)
            with np.errstate(invalid="ignore"):  # logits that are not finite give NaN
                scores -= scores.max(axis=1, keepdims=True)
            nats[t] = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), symbols[t + 1]]
        return nats, state

    def generate(
        self,
        ids: ArrayLike,
        state: State,
        length: int,
        *,
        temperature: float,
        seed: int,
        position: int = 0,
        streams: ArrayLike | None = None,
    ) -> tuple[Ids, State]:
        """Go on with each text by `length` symbols, each drawn from the softmax of logits / temperature.

        Args:
            ids: (B,), the symbol to read first; after it each drawn symbol is read in turn but the last.
            state: (L, S, B, H), before `ids`.
            temperature: 0 takes the likeliest symbol.
            seed, position, streams: the random numbers are a function of the seed, of each text's number in `streams`
                (B,) (None: 0, 1, …) and of the symbol's place, counted from `position`. A text that is drawn in blocks,
                each with its position, is the same as one drawn at once.

        Returns:
            symbols (length, B); and the state, into which the last of them has not been read.

        Raises:
            CheckpointError: logits that are not finite: weights out of all proportion.
        """
        read = self._check(ids, 1, state)
        numbers = np.arange(len(read)) if streams is None else np.asarray(streams)
        if numbers.shape != read.shape:
            raise ValueError(f"streams must be one number for each of {len(read)} texts, found shape {numbers.shape}")
        drawn = np.empty((length, len(read)), np.int32)
        for t in range(length):
            logits, state = self._run.step(read, state)
            try:
                drawn[t] = drawing.draw(logits, temperature, drawing.uniform(seed, numbers, position + t))
            except FloatingPointError as error:
                raise CheckpointError(f"{error}: its weights are out of all proportion") from error
            read = drawn[t]
        return drawn, state

    def _check(self, ids: ArrayLike, rank: int, state: State) -> Ids:
        """The ids as the backends want them, or a ValueError that says what was found and what was expected."""
        found = np.asarray(ids)
        if found.ndim != rank or found.dtype.kind not in "ui" or found.shape[-1] == 0:
            expected = "(T, B)" if rank == 2 else "(B,)"
            raise ValueError(f"ids must be whole numbers of shape {expected}, found {found.dtype} {found.shape}")
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < self.config.vocab_size:
            raise ValueError(f"ids must lie in 0 … {self.config.vocab_size - 1}, found {found.min()} … {found.max()}")
        expected_shape = self.config.state_shape(found.shape[-1])
        if not isinstance(state, np.ndarray) or state.dtype != np.float32 or state.shape != expected_shape:
            kind = f"{state.dtype} {state.shape}" if isinstance(state, np.ndarray) else type(state).__name__
            raise ValueError(f"the state must be float32 {expected_shape}, found {kind}")
        return np.ascontiguousarray(found, np.int32)


class _Numpy:
    """The equations of `cells`, a layer after the other. The batch of one is a matrix of one row."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any]) -> None:
        self._cell = STEP[config.cell]
        self._embedding = weights["embedding.weight"]
        self._layers = [layer_weights(config, weights, layer) for layer in range(config.layers)]
        self._projection, self._bias = weights["projection.weight"], weights["projection.bias"]

    def step(self, ids: Ids, state: State, project: bool = True) -> tuple[NDArray[np.float32], State]:
        x = self._embedding[ids]  # (B, E)
        new = np.empty_like(state)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # weights out of all proportion: told by whoever reads the logits
            for layer, weights in enumerate(self._layers):
                for s, value in enumerate(self._cell(x, tuple(state[layer]), weights)):
                    new[layer, s] = value
                x = new[layer, 0]
            return x @ self._projection.T + self._bias if project else x, new  # (B, V)


def layer_weights(config: ModelConfig, weights: Mapping[str, Any], layer: int) -> Weights:
    """One layer's weights, as the functions of `cells` want them."""
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *(["peephole"] if config.cell == "peephole" else [])]
    return Weights(*(weights[f"recurrence.{name}_l{layer}"] for name in names))


def _check_weights(config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
    shapes = config.shapes()
    if wrong := sorted(shapes.keys() ^ weights.keys()):
        raise ValueError(f"weights are not those of the config: {', '.join(wrong[:5])} missing or too many")
    for name, shape in shapes.items():
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            found = f"{weights[name].dtype} {weights[name].shape}"
            raise ValueError(f"{name} must be float32 {shape}, found {found}")

"""The model at work, without torch: ids and state in, logits and state out.

Two backends stand behind one class: `native`, C compiled when charlstm was installed, and `numpy`, which is the
equations of `cells` themselves. Nothing is remembered between calls: the state is an array that goes in and comes out,
so it can be kept, copied, or saved, and one engine can serve many texts.

Letters: B batch of independent texts, T time, V vocabulary, L layers, S states of the cell (h, or h and c), H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charlstm.cells import STEP, Weights
from charlstm.config import ModelConfig, Precision
from charlstm.errors import CheckpointError, UsageError
from charlstm.inference import filters, native
from charlstm.inference.filters import Rule
from charlstm.text.utf8 import NEVER

Backend = Literal["auto", "native", "numpy"]
Ids = NDArray[np.int32]
State = NDArray[np.float32]
CHUNK = 1024  # symbols read between two chances for Ctrl-C
_Array = TypeVar("_Array", bound=NDArray[Any])


class Engine:
    """A model that is ready to run.

    Args:
        config: the model's shape.
        weights: name → array, exactly the names and shapes of `config.shapes()`. They are copied.
        precision: 'fp32' is exact; 'int8' rounds weights and hidden activations to 8 bits; 'auto' is int8 where that is
            faster.
        threads: at most so many; None, as many as the machine has. A model too small for them uses fewer, and no result
            depends on it.
        backend: 'auto' is native where it was compiled, else numpy.
        isa: the native engine's instruction set by name, for tests and comparisons; None is the best.

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
        isa: str | None = None,
    ) -> None:
        _check_weights(config, weights)
        if precision not in get_args(Precision):
            raise UsageError(f"--precision must be one of auto, fp32, int8, not {precision!a}")
        is_native = backend != "numpy" and native.library() is not None
        if not is_native and (backend == "native" or precision == "int8"):
            wanted = "the native engine" if backend == "native" else "--precision int8"
            raise UsageError(f"{wanted} needs a C compiler when charlstm is installed, and there was none")
        self.config = config
        self.precision: Literal["fp32", "int8"] = "fp32"
        """What it computes in."""
        self._run: _Numpy | native.Native
        if is_native:
            if precision == "int8" or (precision == "auto" and native.has_int8()):
                self.precision = "int8"
            self._run = native.Native(config, weights, self.precision == "int8", threads, isa)
        else:
            self._run = _Numpy(config, weights)

    @property
    def description(self) -> str:
        """Such as 'native (avx512-vnni, int8, 2 threads)', as it draws one text, or 'numpy (fp32)'."""
        if isinstance(self._run, _Numpy):
            return "numpy (fp32)"
        threads = self._run.threads(1)
        return f"native ({self._run.isa}, {self.precision}, {threads} thread{'s' if threads > 1 else ''})"

    def zero_state(self, batch: int = 1) -> State:
        """The state before any text: zeros, (L, S, B, H)."""
        return np.zeros(self.config.state_shape(batch), np.float32)

    def step(self, ids: ArrayLike, state: State) -> tuple[NDArray[np.float32], State]:
        """Let each text read one symbol: ids (B,) and state → logits (B, V) of what follows, and the new state."""
        return self._in_parts(lambda rows, s: self._run.read(rows, s, True), self._check(ids, 1, state)[None], state, 0)

    def read(self, ids: ArrayLike, state: State) -> State:
        """Let each text read the symbols ids (T, B), for what they leave in the state."""
        checked = self._check(ids, 2, state)
        for first in range(0, len(checked), CHUNK):
            chunk = checked[first : first + CHUNK]
            state = self._in_parts(lambda rows, s: self._run.read(rows, s, False), chunk, state, 0)[1]
        return state

    def score(self, ids: ArrayLike, state: State) -> tuple[NDArray[np.float64], State]:
        """Surprise of each text at its own symbols.

        Args:
            ids: (T + 1, B). T of them are read and T predicted: the first is only read, the last only predicted, so a
                long text is scored in chunks that overlap by one symbol.
            state: (L, S, B, H), before the first.

        Returns:
            nats (T, B): −log p of ids[t + 1] after ids[0 … t], NaN where the logits are not finite; and the state after
            ids[T − 1].
        """
        return self._in_parts(self._run.score, self._check(ids, 2, state), state, 1)

    def generate(
        self,
        ids: ArrayLike,
        state: State,
        length: int,
        rule: Rule,
        *,
        seed: int,
        position: int = 0,
        streams: ArrayLike | None = None,
        recent: ArrayLike | None = None,
        phases: ArrayLike | None = None,
    ) -> tuple[Ids, State]:
        """Go on with each text by `length` symbols, each drawn as the rule says: `Rule(0.8)` is temperature 0.8.

        Args:
            ids: (B,), the symbol to read first; after it each drawn symbol is read in turn but the last.
            state: (L, S, B, H), before `ids`.
            length: at least 1.
            seed, position, streams: the random numbers are a function of the seed, of each text's number in `streams`
                (B,) (None: 0, 1, …) and of the symbol's place, counted from `position`. A text that is drawn in blocks,
                each with its position, is the same as one drawn at once.
            recent: (T, B), what a penalty looks back at: the symbols before the first draw, `ids` the last row of
                them, −1 where there is none. None: `ids` alone.
            phases: (B,), the state that the automaton of `rule.follows` is in before each text's first draw. None: 0.

        Returns:
            symbols (length, B); and the state, into which the last of them has not been read.

        Raises:
            CheckpointError: logits that are not finite: weights out of all proportion.
        """
        read = self._check(ids, 1, state)
        numbers = np.arange(len(read)) if streams is None else np.asarray(streams)
        behind = read[None] if recent is None else np.asarray(recent, np.int32)
        states = np.zeros(len(read), np.int64) if phases is None else np.asarray(phases, np.int64)
        vocabulary = self.config.vocab_size
        is_row = rule.allowed is None or rule.allowed.shape == (vocabulary,)
        is_row = is_row and (rule.follows is None or _lets_come(rule.follows, states, vocabulary))
        fits = numbers.shape == read.shape == states.shape and is_row
        fits = fits and behind.ndim == 2 and behind.shape[1] == len(read)
        if not fits or length < 1 or (behind.size and not -1 <= behind.min() <= behind.max() < vocabulary):
            found = f"length {length}, streams {numbers.shape}, recent {behind.shape} for {len(read)} texts"
            raise ValueError(f"cannot draw with {found} and {rule}")
        memory = np.full((rule.memory, len(read)), -1, np.int32)
        if kept := min(len(memory), len(behind)):
            memory[-kept:] = behind[-kept:]

        def draw(rows: NDArray[np.int64], state: State) -> tuple[Ids, State]:
            ids, streams, memory = rows.astype(np.int32)[0], rows[1].astype(np.uint64), rows[3:].astype(np.int32)
            return self._run.generate(ids, state, length, rule, seed, position, streams, memory, rows[2].astype("u1"))

        try:
            return self._in_parts(draw, np.stack([read, numbers.astype(np.int64), states, *memory]), state, 1)
        except FloatingPointError as error:
            raise CheckpointError(f"{error}: its weights are out of all proportion") from error

    def _in_parts(
        self,
        call: Callable[[NDArray[Any], State], tuple[_Array, State]],
        rows: NDArray[Any],
        state: State,
        axis: int,
    ) -> tuple[_Array, State]:
        """A call for rows (…, B) and state, cut along the batch into calls that a backend has room for."""
        size, batch = native.batch_of(self.config), rows.shape[1]
        if batch <= size:
            return call(rows, state)
        slices = [slice(first, first + size) for first in range(0, batch, size)]
        values, states = zip(*(call(rows[:, part], state[:, :, part]) for part in slices), strict=True)
        return np.concatenate(values, axis), np.concatenate(states, 2)  # type: ignore[return-value]

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
        return found.astype(np.int32)


class _Numpy:
    """The equations of `cells`, one layer after the other. Same methods as `native.Native`."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any]) -> None:
        self._cell = STEP[config.cell]
        self._boundary = config.boundary
        self._embedding = weights["embedding.weight"]
        self._layers = [layer_weights(config, weights, layer) for layer in range(config.layers)]
        self._projection, self._bias = weights["projection.weight"], weights["projection.bias"]

    def read(self, ids: Ids, state: State, project: bool) -> tuple[NDArray[np.float32], State]:
        h = state[-1, 0]
        with np.errstate(over="ignore", invalid="ignore"):  # whoever uses the logits tells that they are not finite
            for symbols in ids:
                x = self._embedding[symbols]  # (B, E)
                if self._boundary is not None:
                    state = np.where((symbols == self._boundary)[:, None], np.float32(0), state)
                old, state = state, np.empty_like(state)
                for layer, weights in enumerate(self._layers):
                    for s, value in enumerate(self._cell(x, tuple(old[layer]), weights)):
                        state[layer, s] = value
                    x = h = state[layer, 0]
            return h @ self._projection.T + self._bias if project else h[:, :0], state  # (B, V)

    def score(self, ids: Ids, state: State) -> tuple[NDArray[np.float64], State]:
        nats = np.full((max(0, len(ids) - 1), ids.shape[1]), np.nan)
        for t in range(len(nats)):
            logits, state = self.read(ids[t : t + 1], state, True)
            finite = np.isfinite(logits.max(axis=1))
            weights = filters.weights(logits[finite], 1.0)
            scores = logits[finite].astype(np.float64)
            surprises = np.log(weights.sum(axis=1)) + scores.max(axis=1)
            nats[t, finite] = surprises - scores[np.arange(len(scores)), ids[t + 1, finite]]
        return nats, state

    def generate(
        self,
        ids: Ids,
        state: State,
        length: int,
        rule: Rule,
        seed: int,
        position: int,
        streams: NDArray[np.uint64],
        recent: Ids,
        phases: NDArray[np.uint8],
    ) -> tuple[Ids, State]:
        symbols = np.concatenate([recent, np.empty((length, len(ids)), np.int32)])
        for t in range(length):
            logits, state = self.read(ids[None], state, True)
            behind, now = symbols[t : len(recent) + t], len(recent) + t
            symbols[now] = filters.draw(logits, rule, filters.uniform(seed, streams, position + t), behind, phases)
            ids = symbols[now]
            if rule.follows is not None:
                phases = rule.follows[phases, ids]
        return symbols[len(recent) :], state


def layer_weights(config: ModelConfig, weights: Mapping[str, Any], layer: int) -> Weights:
    """One layer's weights, as the functions of `cells` want them."""
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *(["peephole"] if config.cell == "peephole" else [])]
    return Weights(*(weights[f"recurrence.{name}_l{layer}"] for name in names))


def _lets_come(follows: NDArray[np.uint8], states: NDArray[np.int64], vocabulary: int) -> bool:
    """Whether an automaton's table (S, V) is one for the vocabulary, with a symbol that may come in these states."""
    if follows.shape[1] != vocabulary or not ((states >= 0) & (states < len(follows))).all():
        return False
    return bool(np.any(follows[states] != NEVER, axis=1).all())


def _check_weights(config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
    shapes = config.shapes()
    if wrong := sorted(shapes.keys() ^ weights.keys()):
        raise ValueError(f"weights are not those of the config: {', '.join(wrong[:5])} missing or too many")
    for name, shape in shapes.items():
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            found = f"{weights[name].dtype} {weights[name].shape}"
            raise ValueError(f"{name} must be float32 {shape}, found {found}")

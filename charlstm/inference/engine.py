"""Run a model without torch: ids and a state in, logits and a state out.

One class has two backends: `native` is C that was compiled when charlstm was installed, and `numpy` evaluates the
equations of `cells` directly. An engine keeps nothing between calls: the state is an argument and a result, so that it
can be stored, copied or saved, and one engine can process many texts.

Letters: B batch of independent texts, T time, V vocabulary, L layers, S states of the cell (h, or h and c), H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charlstm.cells import STEP, Weights
from charlstm.config import ModelConfig, Precision
from charlstm.errors import CheckpointError, Field, UsageError
from charlstm.inference import filters, native
from charlstm.inference.automaton import Automaton
from charlstm.inference.filters import SamplingRule

Backend = Literal["auto", "native", "numpy"]
Ids = NDArray[np.int32]
State = NDArray[np.float32]
CHUNK = 1024  # symbols per call of a backend in `advance`; Ctrl-C takes effect between calls
_Array = TypeVar("_Array", bound=NDArray[Any])


class Engine:
    """A model that is ready to run.

    Args:
        config: the shape of the model.
        weights: name → array, exactly the names and shapes of `config.shapes()`, float32. They are copied.
        precision: 'fp32' is exact; 'int8' rounds weights and hidden activations to 8 bits; 'auto' selects int8 if the
            processor computes it faster.
        threads: the largest number of threads; None allows one for each processor. Small models use fewer. Results do
            not depend on it.
        backend: 'auto' selects native if it was compiled, else numpy.
        isa: the instruction set of the native backend by name, for tests and comparisons; None selects the best.

    Attributes:
        config: the shape of the model.
        precision: the precision in use, 'fp32' or 'int8'.

    Raises:
        UsageError: the precision is invalid, or this installation lacks the precision or the backend.
        ValueError: the weights do not match the config.
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
            allowed = "one of auto, fp32, int8"
            raise UsageError(
                Field("precision"), f" must be {allowed}, got {precision!a}", value=precision, allowed=allowed
            )
        is_native = backend != "numpy" and native.library() is not None
        if not is_native and (backend == "native" or precision == "int8"):
            wanted = ("the native backend",) if backend == "native" else (Field("precision"), " int8")
            raise UsageError(*wanted, " needs the C engine: install a C compiler, then reinstall charlstm")
        self.config = config
        self.precision: Literal["fp32", "int8"] = "fp32"
        self._backend: StepByStep | native.NativeEngine
        if is_native:
            if precision == "int8" or (precision == "auto" and native.has_int8()):
                self.precision = "int8"
            self._backend = native.NativeEngine(config, weights, self.precision == "int8", threads, isa)
        else:
            self._backend = _Numpy(config, weights)

    @property
    def description(self) -> str:
        """The backend for one text in words, such as 'native (avx512-vnni, int8, 2 threads)' or 'numpy (fp32)'."""
        if isinstance(self._backend, StepByStep):
            return "numpy (fp32)"
        threads = self.threads(1)
        return f"native ({self._backend.isa}, {self.precision}, {threads} thread{'s' if threads > 1 else ''})"

    def threads(self, batch: int) -> int:
        """Return the largest number of threads that a call with `batch` texts uses."""
        return 1 if isinstance(self._backend, StepByStep) else self._backend.threads(batch)

    def zero_state(self, batch: int = 1) -> State:
        """Return the initial state of `batch` texts: zeros (L, S, B, H)."""
        return np.zeros(self.config.state_shape(batch), np.float32)

    def step(self, ids: ArrayLike, state: State) -> tuple[NDArray[np.float32], State]:
        """Feed one symbol to each text.

        Args:
            ids: (B,) the symbols.
            state: (L, S, B, H) the state before them.

        Returns:
            The logits (B, V) of the next symbol, and the new state.

        Raises:
            ValueError: ids or state have a wrong shape, type or range.
        """
        checked = self._check(ids, 1, state)[None]
        return self._in_parts(lambda rows, s: self._backend.advance(rows, s, True), checked, state, 0)

    def advance(self, ids: ArrayLike, state: State) -> State:
        """Feed symbols to each text and return the new state.

        Args:
            ids: (T, B) the symbols.
            state: (L, S, B, H) the state before them.

        Returns:
            The state (L, S, B, H) after the last symbol.

        Raises:
            ValueError: ids or state have a wrong shape, type or range.
        """
        checked = self._check(ids, 2, state)
        for first in range(0, len(checked), CHUNK):
            chunk = checked[first : first + CHUNK]
            state = self._in_parts(lambda rows, s: self._backend.advance(rows, s, False), chunk, state, 0)[1]
        return state

    def score(self, ids: ArrayLike, state: State) -> tuple[NDArray[np.float64], State]:
        """Return the surprisal of each symbol of each text but the first.

        Args:
            ids: (T + 1, B) the symbols. The first is fed but not scored, the last is scored but not fed: the chunks of
                a long text overlap by one symbol.
            state: (L, S, B, H) the state before the first.

        Returns:
            The surprisal (T, B) in nats: −ln p(ids[t + 1] | ids[0 … t]), NaN where the logits are NaN or infinite; and
            the state after ids[T − 1].

        Raises:
            ValueError: ids or state have a wrong shape, type or range.
        """
        return self._in_parts(self._backend.score, self._check(ids, 2, state), state, 1)

    def score_top(
        self, ids: ArrayLike, state: State, top: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], State]:
        """Score as `score`, and find the most probable symbols at each position.

        Args:
            ids: as in `score`.
            state: as in `score`.
            top: K, the number of symbols to find at each position, from 1 to V.

        Returns:
            The surprisal (T, B) as in `score`; the most probable symbols (T, B, K), the most probable first and of
            equal ones the first in the vocabulary, −1 where the logits are NaN or infinite; their probabilities
            (T, B, K); and the state.

        Raises:
            ValueError: ids, state or `top` have a wrong shape, type or range.
        """
        checked = self._check(ids, 2, state)
        if not 1 <= top <= self.config.vocab_size:
            raise ValueError(f"top must be from 1 to {self.config.vocab_size}, found {top}")

        def score(rows: Ids, state: State) -> tuple[NDArray[np.float64], State]:
            nats, best, shares, state = self._backend.score_top(rows, state, top)
            return np.concatenate([nats[..., None], best, shares], 2), state  # one array, which `_in_parts` can join

        found, state = self._in_parts(score, checked, state, 1)
        return found[..., 0], found[..., 1 : top + 1].astype(np.int64), found[..., top + 1 :], state

    def generate(
        self,
        ids: ArrayLike,
        state: State,
        length: int,
        rule: SamplingRule,
        *,
        seed: int,
        position: int = 0,
        streams: ArrayLike | None = None,
        recent: ArrayLike | None = None,
        phases: ArrayLike | None = None,
        remaining: int | None = None,
    ) -> tuple[Ids, State]:
        """Sample `length` symbols for each text: `SamplingRule(0.8)` samples at temperature 0.8.

        Args:
            ids: (B,) the symbols to feed first. Then each sampled symbol is fed, except the last.
            state: (L, S, B, H) the state before `ids`.
            length: number of symbols, at least 1.
            rule: the distribution to sample from.
            seed: seed of the random numbers. They depend on the seed, the stream and the position only.
            position: position of the first symbol within its stream of random numbers. A text that is generated in
                blocks, each with its position, is the same as one that is generated in one call.
            streams: (B,) the number of the stream of each text; None numbers them 0, 1, …
            recent: (T, B) the symbols before the first sampled one, for the repeat penalty; `ids` is the last row. −1
                means no symbol. None means `ids` alone.
            phases: (B,) the initial state of the automaton of the rule for each text; None means 0.
            remaining: the number of symbols that each text may still have, at least `length`, if the automaton of the
                rule has distances; None means no limit.

        Returns:
            The symbols (length, B); and the state, which does not include the last of them.

        Raises:
            CheckpointError: the logits are NaN or infinite, because the weights are too large.
            ValueError: an argument has a wrong shape, type or range.
        """
        first = self._check(ids, 1, state)
        batch = len(first)
        numbers = np.arange(batch) if streams is None else np.asarray(streams)
        previous = first[None] if recent is None else np.asarray(recent, np.int32)
        states = np.zeros(batch, np.int64) if phases is None else np.asarray(phases, np.int64)
        vocabulary = self.config.vocab_size
        is_row = rule.allowed is None or rule.allowed.shape == (vocabulary,)
        is_row = is_row and (rule.automaton is None or _allows_a_symbol(rule.automaton, states, vocabulary, remaining))
        is_row = is_row and (remaining is None or remaining >= length)
        fits = numbers.shape == first.shape == states.shape and is_row
        fits = fits and previous.ndim == 2 and previous.shape[1] == batch
        if not fits or length < 1 or (previous.size and not -1 <= previous.min() <= previous.max() < vocabulary):
            found = f"length {length}, streams {numbers.shape}, recent {previous.shape} for {batch} texts"
            raise ValueError(f"cannot sample with {rule} and {found}")
        window = np.full((rule.lookback, batch), -1, np.int32)
        if kept := min(len(window), len(previous)):
            window[-kept:] = previous[-kept:]

        def sample(rows: NDArray[np.int64], state: State) -> tuple[Ids, State]:
            ids, streams, recent = rows.astype(np.int32)[0], rows[1].astype(np.uint64), rows[3:].astype(np.int32)
            phases = rows[2].astype(np.int32)
            return self._backend.generate(ids, state, length, rule, seed, position, streams, recent, phases, remaining)

        try:
            return self._in_parts(sample, np.stack([first, numbers.astype(np.int64), states, *window]), state, 1)
        except FloatingPointError as error:
            raise CheckpointError(f"{error}: its weights are too large; train with a lower learning rate") from error

    def _in_parts(
        self,
        call: Callable[[NDArray[Any], State], tuple[_Array, State]],
        rows: NDArray[Any],
        state: State,
        axis: int,
    ) -> tuple[_Array, State]:
        """Call a function of a backend with rows (…, B) and a state, split along B into batches that it can process.

        The first results are concatenated along `axis`, the states along B.
        """
        size, batch = native.batch_of(self.config), rows.shape[1]
        if batch <= size:
            return call(rows, state)
        slices = [slice(first, first + size) for first in range(0, batch, size)]
        values, states = zip(*(call(rows[:, part], state[:, :, part]) for part in slices), strict=True)
        return np.concatenate(values, axis), np.concatenate(states, 2)  # type: ignore[return-value]

    def _check(self, ids: ArrayLike, rank: int, state: State) -> Ids:
        """Return the ids as int32, or raise a ValueError if they or the state have a wrong shape, type or range."""
        found = np.asarray(ids)
        if found.ndim != rank or found.dtype.kind not in "ui" or found.shape[-1] == 0:
            expected = "(T, B)" if rank == 2 else "(B,)"
            raise ValueError(f"ids must be whole numbers of shape {expected}, found {found.dtype} {found.shape}")
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < self.config.vocab_size:
            raise ValueError(f"ids must be in 0 … {self.config.vocab_size - 1}, found {found.min()} … {found.max()}")
        expected_shape = self.config.state_shape(found.shape[-1])
        if not isinstance(state, np.ndarray) or state.dtype != np.float32 or state.shape != expected_shape:
            kind = f"{state.dtype} {state.shape}" if isinstance(state, np.ndarray) else type(state).__name__
            raise ValueError(f"the state must be float32 {expected_shape}, found {kind}")
        return found.astype(np.int32)


class StepByStep:
    """A backend that scores and samples from the logits of one step after another. `native` has the same methods."""

    def advance(self, ids: Ids, state: State, project: bool) -> tuple[NDArray[np.float32], State]:
        """Feed ids (T, B); return the logits (B, V) after the last, or (B, 0) without `project`, and the state."""
        raise NotImplementedError

    def score(self, ids: Ids, state: State) -> tuple[NDArray[np.float64], State]:
        """Score ids (T + 1, B), as `Engine.score`."""
        nats = np.full((max(0, len(ids) - 1), ids.shape[1]), np.nan)
        for t in range(len(nats)):
            logits, state = self.advance(ids[t : t + 1], state, True)
            finite = np.isfinite(logits.max(axis=1))
            weights = filters.weights(logits[finite], 1.0)
            scores = logits[finite].astype(np.float64)
            log_sum = np.log(weights.sum(axis=1)) + scores.max(axis=1)
            nats[t, finite] = log_sum - scores[np.arange(len(scores)), ids[t + 1, finite]]
        return nats, state

    def score_top(
        self, ids: Ids, state: State, top: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64], State]:
        """Score ids (T + 1, B) and find the most probable symbols, as `Engine.score_top`."""
        shape = (max(0, len(ids) - 1), ids.shape[1])
        nats, shares = np.full(shape, np.nan), np.full((*shape, top), np.nan)
        best = np.full((*shape, top), -1, np.int32)
        for t in range(len(nats)):
            logits, after = self.advance(ids[t : t + 1], state, True)
            nats[t] = self.score(ids[t : t + 2], state)[0][0]
            finite = np.isfinite(logits.max(axis=1))
            weights = filters.weights(logits[finite], 1.0)
            order = np.argsort(-logits[finite], axis=1, kind="stable")[:, :top]
            best[t, finite] = order
            shares[t, finite] = np.take_along_axis(weights / weights.sum(axis=1, keepdims=True), order, 1)
            state = after
        return nats, best, shares, state

    def generate(
        self,
        ids: Ids,
        state: State,
        length: int,
        rule: SamplingRule,
        seed: int,
        position: int,
        streams: NDArray[np.uint64],
        recent: Ids,
        phases: NDArray[np.int32],
        remaining: int | None,
    ) -> tuple[Ids, State]:
        """Sample symbols (length, B) after ids (B,), as `Engine.generate`."""
        symbols = np.concatenate([recent, np.empty((length, len(ids)), np.int32)])
        for t in range(length):
            logits, state = self.advance(ids[None], state, True)
            previous, now = symbols[t : len(recent) + t], len(recent) + t
            numbers, left = filters.uniform(seed, streams, position + t), None if remaining is None else remaining - t
            symbols[now] = filters.sample(logits, rule, numbers, previous, phases, left)
            ids = symbols[now]
            if rule.automaton is not None:
                phases = rule.automaton.after(phases, ids, left)
        return symbols[len(recent) :], state


class _Numpy(StepByStep):
    """The numpy backend: the equations of `cells`, layer by layer."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any]) -> None:
        self._cell = STEP[config.cell]
        self._boundary = config.boundary
        self._embedding = weights["embedding.weight"]
        self._layers = [layer_weights(config, weights, layer) for layer in range(config.layers)]
        self._projection, self._bias = weights["projection.weight"], weights["projection.bias"]

    def advance(self, ids: Ids, state: State, project: bool) -> tuple[NDArray[np.float32], State]:
        h = state[-1, 0]
        with np.errstate(over="ignore", invalid="ignore"):  # the callers check the logits
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


def layer_weights(config: ModelConfig, weights: Mapping[str, Any], layer: int) -> Weights:
    """Return the weights of one layer as the argument of the functions of `cells`."""
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *(["peephole"] if config.cell == "peephole" else [])]
    return Weights(*(weights[f"recurrence.{name}_l{layer}"] for name in names))


def _allows_a_symbol(automaton: Automaton, states: NDArray[np.int64], vocabulary: int, remaining: int | None) -> bool:
    """Return whether an automaton fits the vocabulary and allows a symbol in each of these states."""
    if len(automaton.classes) != vocabulary or not ((states >= 0) & (states < len(automaton.follows))).all():
        return False
    return automaton.continues(states, remaining)


def _check_weights(config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
    shapes = config.shapes()
    if wrong := sorted(shapes.keys() ^ weights.keys()):
        raise ValueError(f"the weights do not match the config: {', '.join(wrong[:5])} missing or unexpected")
    for name, shape in shapes.items():
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            found = f"{weights[name].dtype} {weights[name].shape}"
            raise ValueError(f"{name} must be float32 {shape}, found {found}")

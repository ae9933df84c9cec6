"""Export a model as one ONNX graph, and compare it with the engine before the file is written.

The graph reads `symbols` int64 (T, B) from `state` float32 (L, S, B, H), and returns `logits` float32 (T, B, V) and the
new state `state_out`. T and B are free. The five cells are the operators LSTM, GRU and RNN:

    lstm      LSTM; ONNX has the rows i, o, f, g
    peephole  LSTM with its input P, rows i, o, f
    coupled   LSTM whose rows i are −1 times the rows f, since 1 − σ(z) = σ(−z)
    gru       GRU with linear_before_reset = 1; ONNX has the rows z, r, n
    rnn       RNN

A model of documents must set the state to zero before each boundary, which these operators cannot do. Its graph is a
Scan over time, whose body sets the state and runs the operators on one symbol.

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, S states of the cell (h, or h and c).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm import __version__, atomicfile
from charlstm.cells import STATES
from charlstm.config import ModelConfig
from charlstm.errors import CharlstmError
from charlstm.inference.engine import Engine
from charlstm.model import Model

OPSET = 17
IR_VERSION = 8  # of onnx 1.12, so that runtimes of 2022 and later load the file
TOLERANCE = 1e-5
"""The largest allowed difference from the engine, relative to the largest logit or state, or to 1 if all are less."""

OPERATOR = MappingProxyType({"lstm": "LSTM", "peephole": "LSTM", "coupled": "LSTM", "gru": "GRU", "rnn": "RNN"})
ROWS = MappingProxyType(
    {"lstm": (0, 3, 1, 2), "peephole": (0, 3, 1, 2), "coupled": (0, 2, 0, 1), "gru": (1, 0, 2), "rnn": (0,)}
)
"""For each block of H rows that the operator expects, its number in `cells.GATES`."""


@dataclass(frozen=True)
class OnnxExport:
    """The result of an export.

    Attributes:
        bytes: the size of the file.
        largest_difference: between the graph in onnxruntime and the engine, of logits and states, relative as in
            `TOLERANCE`.
    """

    bytes: int
    largest_difference: float


def export_onnx(model: Model, path: str | Path) -> OnnxExport:
    """Write a model as an ONNX file, after a comparison with the engine.

    Args:
        model: a trained model.
        path: the file to write; an existing one is replaced.

    Raises:
        CharlstmError: onnx or onnxruntime is not installed, or the graph differs from the engine. No file is written.
        OSError: the file cannot be written; an existing one is unchanged.
    """
    _require_packages()
    graph = onnx_model(model)
    content: bytes = graph.SerializeToString()
    difference = largest_difference(model, content)
    if not difference <= TOLERANCE:
        raise CharlstmError(
            f"the ONNX graph differs from the model by {difference:.2g}, more than {TOLERANCE:g}; nothing was written"
        )
    atomicfile.replace(Path(path), [content])
    return OnnxExport(len(content), difference)


def onnx_model(model: Model) -> Any:
    """Return a model as an `onnx.ModelProto`, checked by onnx's checker.

    Its metadata are `charlstm_version`, `cell`, `vocabulary` (a JSON array of the text of each symbol, which is one
    UTF-8 byte or a lone surrogate U+DC00 + byte in models of bytes), `symbols` ('chars' or 'bytes') and, in models of
    documents, `boundary` (the id of the boundary).
    """
    import onnx
    from onnx import TensorProto, helper

    config, vocabulary = model.config, model.vocabulary
    graph = _Graph()
    for name, values in _initializers(config, model.weights).items():
        graph.initializers.append(onnx.numpy_helper.from_array(values, name))
    if config.boundary is None:
        hidden, state = _recurrence(graph, config, "symbols", "state")
    else:
        hidden, state = _scan(graph, config)
    product = graph.add("MatMul", hidden, "projection")
    graph.add("Add", product, "projection_bias", outputs=("logits",))
    graph.add("Identity", state, outputs=("state_out",))
    state_shape = _state_shape(config)
    inputs = [
        helper.make_tensor_value_info("symbols", TensorProto.INT64, ["T", "B"]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, state_shape),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", "B", config.vocab_size]),
        helper.make_tensor_value_info("state_out", TensorProto.FLOAT, state_shape),
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "charlstm", inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="charlstm",
        producer_version=__version__,
    )
    metadata = {
        "charlstm_version": __version__,
        "cell": config.cell,
        "symbols": vocabulary.kind,
        "vocabulary": json.dumps([vocabulary.name(symbol) for symbol in range(len(vocabulary))]),
    }
    if config.boundary is not None:
        metadata["boundary"] = str(config.boundary)
    helper.set_model_props(made, metadata)
    onnx.checker.check_model(made, full_check=True)
    return made


def largest_difference(model: Model, content: bytes) -> float:
    """Return the largest difference between a graph in onnxruntime and the engine in fp32, relative as in `TOLERANCE`.

    Both read 7 random texts of 16 symbols from random states; in models of documents, one symbol in four is a boundary.

    Args:
        model: the model.
        content: the ONNX file of the model.
    """
    config, random = model.config, np.random.default_rng(0)
    ids = random.integers(0, config.vocab_size, (16, 7))
    if config.boundary is not None:
        ids[random.random(ids.shape) < 0.25] = config.boundary
    state = random.uniform(-1, 1, config.state_shape(7)).astype(np.float32)
    logits, state_out = session(content).run(["logits", "state_out"], {"symbols": ids, "state": state})
    engine, differences = Engine(config, model.weights, precision="fp32"), []
    for t, symbols in enumerate(ids):
        expected, state = engine.step(symbols, state)
        differences.append(_relative_difference(logits[t], expected))
    return float(np.max([*differences, _relative_difference(state_out, state)]))  # NaN if one is NaN


def session(content: bytes) -> Any:
    """Return an `onnxruntime.InferenceSession` of an ONNX file, on one thread and without warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise CharlstmError(
            f"this export requires onnx and onnxruntime, which cannot be imported ({error}): "
            "install them with pip install 'charlstm[onnx]'"
        ) from error


def _relative_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> np.float64:
    difference = np.abs(found.astype(np.float64) - expected).max()
    return np.float64(difference / max(1.0, np.abs(expected).max()))


class _Graph:
    """Nodes and constants of a graph or of the body of a Scan, in order of computation.

    Args:
        prefix: of the names of results, which must differ between a graph and the bodies within it.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, operator: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes: Any) -> str:
        """Append a node and return the name of its first output, which is a new name unless `outputs` gives it."""
        from onnx import helper

        outputs = outputs or (f"{self._prefix}{operator.lower()}_{len(self.nodes)}",)
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]


def _initializers(config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Return the constants of the graph: the weights as the operators expect them, and shapes."""
    states = len(STATES[config.cell])
    found: dict[str, NDArray[Any]] = {
        "embedding": weights["embedding.weight"],
        "projection": np.ascontiguousarray(weights["projection.weight"].T),
        "projection_bias": weights["projection.bias"],
        "pieces": np.array([config.layers * states, -1, config.hidden]),
        "state_shape": np.array([config.layers, states, -1, config.hidden]),
        "axis_0": np.array([0]),
        "axis_1": np.array([1]),
    }
    for k in range(config.layers):
        found[f"W_{k}"] = _operator_rows(config, weights[f"recurrence.weight_ih_l{k}"])
        found[f"R_{k}"] = _operator_rows(config, weights[f"recurrence.weight_hh_l{k}"])
        biases = [_operator_rows(config, weights[f"recurrence.bias_{part}_l{k}"]) for part in ("ih", "hh")]
        found[f"B_{k}"] = np.concatenate(biases, axis=1)
        if config.cell == "peephole":
            found[f"P_{k}"] = weights[f"recurrence.peephole_l{k}"][[0, 2, 1]].reshape(1, -1)
    if config.boundary is not None:
        found["boundary"] = np.array(config.boundary)
        found["zero"] = np.array(0, np.float32)
    return found


def _operator_rows(config: ModelConfig, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows (G·H, …) in the order of the operator: (1, blocks·H, …)."""
    blocks = rows.reshape(-1, config.hidden, *rows.shape[1:])[list(ROWS[config.cell])]
    if config.cell == "coupled":
        blocks[0] *= -1
    return blocks.reshape(1, -1, *rows.shape[1:])


def _recurrence(graph: _Graph, config: ModelConfig, symbols: str, state: str) -> tuple[str, str]:
    """Add the layers, which read symbols (T, B) from a state (L, S, B, H).

    Returns:
        The names of the hidden activations (T, B, H) of the last layer and of the new state.
    """
    states, operator = len(STATES[config.cell]), OPERATOR[config.cell]
    old = [f"old_{k}_{name}" for k in range(config.layers) for name in STATES[config.cell]]
    new = [f"new_{k}_{name}" for k in range(config.layers) for name in STATES[config.cell]]
    graph.add("Split", graph.add("Reshape", state, "pieces"), outputs=tuple(old), axis=0)
    x = graph.add("Gather", "embedding", symbols)  # (T, B, E)
    attributes = {"linear_before_reset": 1} if operator == "GRU" else {}
    for k in range(config.layers):
        layer = slice(states * k, states * (k + 1))
        inputs = [x, f"W_{k}", f"R_{k}", f"B_{k}", "", *old[layer]]
        if config.cell == "peephole":
            inputs.append(f"P_{k}")
        y = graph.add(operator, *inputs, outputs=(f"y_{k}", *new[layer]), hidden_size=config.hidden, **attributes)
        x = graph.add("Squeeze", y, "axis_1")  # (T, 1, B, H) → (T, B, H)
    return x, graph.add("Reshape", graph.add("Concat", *new, axis=0), "state_shape")


def _state_shape(config: ModelConfig) -> list[int | str]:
    layers, states, _, hidden = config.state_shape(1)
    return [layers, states, "B", hidden]


def _scan(graph: _Graph, config: ModelConfig) -> tuple[str, str]:
    """Add a Scan over time, which sets the state of a text to zero before each boundary; the rest as `_recurrence`."""
    from onnx import TensorProto, helper

    body = _Graph("step_")
    is_boundary = body.add("Equal", "now", "boundary")  # (B,)
    state = body.add("Where", body.add("Unsqueeze", is_boundary, "axis_1"), "zero", "before")
    x, state = _recurrence(body, config, body.add("Unsqueeze", "now", "axis_0"), state)
    body.add("Squeeze", x, "axis_0", outputs=("hidden",))
    body.add("Identity", state, outputs=("after",))
    shape = _state_shape(config)
    described = helper.make_graph(
        body.nodes,
        "step",
        [
            helper.make_tensor_value_info("before", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("now", TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info("after", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", config.hidden]),
        ],
    )
    outputs = ("last_state", "all_hidden")
    graph.add("Scan", "state", "symbols", outputs=outputs, body=described, num_scan_inputs=1)
    return outputs[1], outputs[0]

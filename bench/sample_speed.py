"""Measure the speed of sampling and scoring: the engine, stock torch, ONNX Runtime and the limit of the caches.

    python bench/sample_speed.py                 all parts, in some minutes
    python bench/sample_speed.py --only speed    one part: speed, throughput or start

The script needs torch. ONNX Runtime (`pip install charlstm[bench]`) and the limit, which needs a C compiler, are
omitted if they are not installed. Weights are random: the time does not depend on them. The sides take turns in one
process, so that a change of the processor's clock affects all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig, Precision
from charlstm.inference import native
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from charlstm.text.vocabulary import Vocabulary

SHAPES = [(1, 128), (1, 256), (2, 256), (1, 512), (2, 512), (2, 1024)]
V, E, B = 65, 128, 64
Side = Callable[[], int]  # processes some characters and returns their number
WITHOUT_ONEDNN = "oneDNN off"  # in the name of a side that runs without it

torch.set_grad_enabled(False)
warnings.filterwarnings("ignore", message="TF32")  # a warning of torch when oneDNN is switched off


def weights_of(config: ModelConfig) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    bound = config.hidden**-0.5
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in config.shapes().items()}


# ---- the sides ----


class Torch:
    """The model in standard torch: embedding, nn.LSTM, linear."""

    def __init__(self, config: ModelConfig, weights: dict[str, Any]) -> None:
        self.embedding = nn.Embedding(config.vocab_size, config.embedding)
        self.lstm = nn.LSTM(config.embedding, config.hidden, config.layers)
        self.projection = nn.Linear(config.hidden, config.vocab_size)
        for prefix, module in (
            ("embedding.", self.embedding),
            ("recurrence.", self.lstm),
            ("projection.", self.projection),
        ):
            own = {name.removeprefix(prefix): torch.tensor(w) for name, w in weights.items() if name.startswith(prefix)}
            module.load_state_dict(own)

    def __call__(self, ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Return the logits (T, B, V) after ids (T, B), and the state."""
        output, state = self.lstm(self.embedding(ids), state)
        return self.projection(output), state

    def stepper(self) -> Side:
        state, ids = None, torch.ones(1, 1, dtype=torch.int64)

        def step() -> int:
            nonlocal state
            _, state = self(ids, state)
            return 1

        return step

    def sampler(self) -> Side:
        """Return a side that samples B texts in parallel."""
        state, ids = None, torch.ones(1, B, dtype=torch.int64)

        def step() -> int:
            nonlocal state, ids
            logits, state = self(ids, state)
            ids = torch.multinomial(torch.softmax(logits[0] / 0.8, 1), 1).T
            return B

        return step

    def scorer(self, length: int) -> Side:
        ids = torch.randint(V, (length + 1, B))

        def score() -> int:
            logits, _ = self(ids[:-1], None)
            nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:].flatten(), reduction="sum")
            return length * B

        return score


def onnx_stepper(model: Torch, config: ModelConfig, threads: int) -> Side | None:
    """Return a side that runs the same model as one graph in ONNX Runtime, with the state as input and output."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    L, H = config.layers, config.hidden

    def gates(name: str) -> np.ndarray[Any, Any]:
        """Reorder the gates from i, f, g, o to the order of ONNX: i, o, f, c."""
        i, f, g, o = np.split(dict(model.lstm.named_parameters())[name].numpy(), 4)
        return np.concatenate([i, o, f, g])[None]

    constants = {"embedding": model.embedding.weight.numpy(), "p": model.projection.weight.numpy().T.copy()}
    constants["b"] = model.projection.bias.numpy()
    nodes = [helper.make_node("Gather", ["embedding", "ids"], ["x0"])]
    for layer in range(L):
        constants[f"w{layer}"] = gates(f"weight_ih_l{layer}")
        constants[f"r{layer}"] = gates(f"weight_hh_l{layer}")
        constants[f"b{layer}"] = np.concatenate([gates(f"bias_ih_l{layer}"), gates(f"bias_hh_l{layer}")], 1)
        inputs = [f"x{layer}", f"w{layer}", f"r{layer}", f"b{layer}", "", f"h{layer}", f"c{layer}"]
        outputs = [f"y{layer}", f"h{layer}_new", f"c{layer}_new"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=H))
        nodes.append(helper.make_node("Squeeze", [f"y{layer}", "one"], [f"x{layer + 1}"]))
    constants["one"] = np.array([1])
    nodes.append(helper.make_node("MatMul", [f"x{L}", "p"], ["product"]))
    nodes.append(helper.make_node("Add", ["product", "b"], ["logits"]))
    float_of, states = TensorProto.FLOAT, [f"{s}{layer}" for layer in range(L) for s in "hc"]
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 1])]
        + [helper.make_tensor_value_info(s, float_of, [1, 1, H]) for s in states],
        [helper.make_tensor_value_info("logits", float_of, [1, 1, V])]
        + [helper.make_tensor_value_info(f"{s}_new", float_of, [1, 1, H]) for s in states],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"ids": np.ones((1, 1), np.int64), **{s: np.zeros((1, 1, H), np.float32) for s in states}}

    def step() -> int:
        _, *new = session.run(None, feed)
        feed.update(zip(states, new, strict=True))
        return 1

    expected, _ = model(torch.ones(1, 1, dtype=torch.int64), None)  # the results are compared before anything is timed
    assert np.abs(session.run(None, feed)[0] - expected.numpy()).max() < 1e-4
    return step


def sampler(engine: Engine, length: int, texts: int = 1) -> Side:
    """Return a side that samples `length` more symbols of each text per call."""
    state, ids, position = engine.zero_state(texts), np.ones(texts, np.int32), 0

    def sample() -> int:
        nonlocal state, ids, position
        symbols, state = engine.generate(ids, state, length, SamplingRule(0.8), seed=1, position=position)
        ids, position = symbols[-1], position + length
        return length * texts

    return sample


def stepper(engine: Engine) -> Side:
    state = engine.zero_state()

    def step() -> int:
        nonlocal state
        _, state = engine.step([1], state)
        return 1

    return step


def scorer(engine: Engine, length: int, texts: int) -> Side:
    ids = np.random.default_rng(0).integers(0, V, (length + 1, texts))

    def score() -> int:
        engine.score(ids, engine.zero_state(texts))
        return length * texts

    return score


# ---- measuring ----


def measure(sides: dict[str, Side], seconds: float, rounds: int) -> dict[str, tuple[float, float]]:
    """Return median and 99th percentile of microseconds per character for each side; the sides take turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds):
        for name, side in sides.items():
            with torch.backends.mkldnn.flags(enabled=WITHOUT_ONEDNN not in name):
                for _ in range(3 if round_ == 0 else 1):  # to warm up
                    side()
                end = time.perf_counter() + seconds / rounds
                while (began := time.perf_counter()) < end:
                    chars = side()
                    times[name].append((time.perf_counter() - began) / chars * 1e6)
    return {name: (float(np.median(t)), float(np.quantile(t, 0.99))) for name, t in times.items()}


def bandwidth() -> Callable[[int, int], float] | None:
    """Return a function of bytes and threads: the microseconds of one of many repeated reads of that memory."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/bandwidth.so"
        source = str(Path(__file__).with_name("bandwidth.c"))
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", source, "-o", path, "-pthread"], check=True)
        library = ctypes.CDLL(path)
    library.read_seconds.restype = ctypes.c_double
    library.read_seconds.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    return lambda size, threads: (
        1e6 * min(library.read_seconds(size, threads, max(3, 200_000_000 // size)) for _ in range(5))
    )


def speed(seconds: float, threads: int) -> None:
    limit = bandwidth()
    print("\nOne character at a time, one stream: microseconds a character, median (99th percentile).")
    print("Only `text` also samples the symbol: the others stop at the logits, which favours them.\n")
    for layers, hidden in SHAPES:
        config = ModelConfig(V, hidden, layers, E)
        weights = weights_of(config)
        model = Torch(config, weights)
        sides: dict[str, Side] = {"torch nn.LSTM": model.stepper(), f"torch, {WITHOUT_ONEDNN}": model.stepper()}
        for count in sorted({1, threads}):
            if (onnx := onnx_stepper(model, config, count)) is not None:
                sides[f"onnxruntime, {count} thr."] = onnx
        sides["numpy engine, step"] = stepper(Engine(config, weights, backend="numpy", precision="fp32"))
        precisions: tuple[Precision, ...] = ("fp32", "int8") if native.isas() else ()
        for precision in precisions:
            engine = Engine(config, weights, precision=precision, threads=threads)
            sides[f"native {precision}, step"] = stepper(engine)
            sides[f"native {precision}, text, 1"] = sampler(engine, 1)
            sides[f"native {precision}, text"] = sampler(engine, 25)
        results = measure(sides, seconds, 5)
        best = min(median for name, (median, _) in results.items() if name.startswith(("torch", "onnx")))
        size = 4 * (config.parameters() - V * E - 4 * hidden * E)  # the first layer's input product is a table
        print(f"{layers} x {hidden}: {size / 1e6:.1f} MB in fp32; best of torch and ONNX Runtime {best:.1f}")
        for name, (median, late) in results.items():
            print(f"    {name:24} {median:9.1f} ({late:9.1f})   {best / median:6.2f} times the best of the others")
        if limit is not None:
            for precision, divisor in (("fp32", 1), ("int8", 4)):
                reads = [limit(size // divisor, count) for count in sorted({1, threads})]
                both = ", ".join(f"{t:.1f} with {n}" for n, t in zip(sorted({1, threads}), reads, strict=True))
                print(f"    limit, {precision}: reading {size / divisor / 1e6:.1f} MB takes {both} threads")
        print(flush=True)


def throughput(seconds: float, threads: int) -> None:
    print("\nMany at once: characters a second, median.\n")
    for layers, hidden in SHAPES:
        config = ModelConfig(V, hidden, layers, E)
        weights = weights_of(config)
        model = Torch(config, weights)
        sampling: dict[str, Side] = {f"torch, {B}": model.sampler(), f"torch, {B}, {WITHOUT_ONEDNN}": model.sampler()}
        scoring: dict[str, Side] = {f"torch, {B}": model.scorer(64), f"torch, {B}, {WITHOUT_ONEDNN}": model.scorer(64)}
        for precision in ("fp32", "int8") if native.isas() else ("fp32",):
            engine = Engine(config, weights, precision=precision, threads=threads)
            sampling[f"engine {precision}, 1"] = sampler(engine, 64)
            sampling[f"engine {precision}, {B}"] = sampler(engine, 16, B)
            scoring[f"engine {precision}, 1"] = scorer(engine, 64, 1)
            scoring[f"engine {precision}, {B}"] = scorer(engine, 64, B)
        print(f"{layers} x {hidden}")
        for title, sides in (("sampling", sampling), ("scoring", scoring)):
            results = measure(sides, seconds, 5)
            best = min(median for name, (median, _) in results.items() if "engine" not in name)
            for name, (median, _) in results.items():
                print(f"    {title} {name:24} {1e6 / median:12,.0f}   {best / median:6.2f} times the best of torch")
        print(flush=True)


# ---- processes ----

TORCH_SCRIPT = """
import sys, torch
from safetensors.torch import load_file
torch.set_grad_enabled(False)
w = {k.removeprefix("model/"): v for k, v in load_file(sys.argv[1]).items() if k.startswith("model/")}
e, p = torch.nn.Embedding(65, 128), torch.nn.Linear(512, 65)
lstm = torch.nn.LSTM(128, 512, 2)
lstm.load_state_dict({k.removeprefix("recurrence."): v for k, v in w.items() if k.startswith("recurrence")})
ids, state = torch.zeros(1, 1, dtype=torch.int64), None
for _ in range(int(sys.argv[2])):
    output, state = lstm(e(ids), state)
    ids = torch.multinomial(torch.softmax(p(output[0]) / 0.8, 1), 1)
"""


# The peak of a child starts at the memory of its parent. Therefore a small parent starts it.
STARTER = """
import os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - began, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def process(command: list[str]) -> tuple[float, float]:
    """Return the seconds from start to end, best of five, and the peak memory in MB."""
    times, peak = [], 0
    for _ in range(5):
        line = subprocess.check_output([sys.executable, "-S", "-c", STARTER, *command], text=True)
        seconds, kilobytes, status = line.split()
        assert status == "0", command
        times.append(float(seconds))
        peak = max(peak, int(kilobytes))
    return min(times), peak / 1024


def start() -> None:
    print("\nWhole processes, 2 x 512: seconds from start to end, best of five; peak of memory.\n")
    config = ModelConfig(V, 512, 2, E)
    vocabulary = Vocabulary("".join(chr(code) for code in range(32, 32 + V)))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.safetensors"
        checkpoint.save(path, Checkpoint(config, vocabulary, weights_of(config)))
        charlstm = [sys.executable, "-m", "charlstm"]
        for title, command in (
            ("python -c pass", [sys.executable, "-c", "pass"]),
            ("charlstm --help", [*charlstm, "--help"]),
            ("charlstm sample -n 1", [*charlstm, "sample", "-c", path, "-n", "1"]),
            ("charlstm sample -n 10000", [*charlstm, "sample", "-c", path, "-n", "10000"]),
            (
                "the same, fp32",
                [*charlstm, "sample", "-c", path, "-n", "10000", "--precision", "fp32"],
            ),
            ("torch, 1 character", [sys.executable, "-c", TORCH_SCRIPT, path, "1"]),
            ("torch, 100 characters", [sys.executable, "-c", TORCH_SCRIPT, path, "100"]),
        ):
            seconds, megabytes = process(command)
            print(f"    {title:28} {seconds:7.3f} s {megabytes:7.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=["speed", "throughput", "start"])
    parser.add_argument("--seconds", type=float, default=1.5, help="for each side of each shape")
    parser.add_argument("--threads", type=int, default=native.available_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("python", " ".join(sys.argv))
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, {platform.platform()}")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}; load {os.getloadavg()}"
    )
    print(f"native instruction sets: {', '.join(native.isas()) or 'not compiled'}")
    if options.only in (None, "speed"):
        speed(options.seconds, options.threads)
    if options.only in (None, "throughput"):
        throughput(options.seconds, options.threads)
    if options.only in (None, "start"):
        start()


if __name__ == "__main__":
    main()

"""Fuzz the readers of untrusted files, guided by coverage. Allowed results: success, or a CharlstmError of one line.

    pip install -e '.[fuzz]'
    python bench/fuzz.py checkpoint              # ten minutes or a million executions, whichever comes first
    python bench/fuzz.py corpus -max_total_time=60
    python bench/fuzz.py corpus kept             # read inputs from the directory `kept`, and add new ones
    python bench/fuzz.py state crash-0123abcd    # run one input that a run has found

Further arguments are those of libFuzzer. An input that crashes is stored as `crash-…` in the current directory. Atheris
observes the branches and comparisons of charlstm's Python code, and keeps inputs that reach new code.

The first byte of an input selects how the rest is used. For a checkpoint: unchanged, with a corrected length of the
header, or with a corrected length and sha256, so that mutants of the metadata pass the digest. Half of the mutations
change bytes, the other half values of the header. For a corpus: the encoding, the size of a block, and compression.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import signal
import struct
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

try:
    import atheris
except ImportError:
    sys.exit("bench/fuzz.py needs atheris: pip install -e '.[fuzz]'")

sys.path.insert(0, str(Path(__file__).parent.parent))  # for tests.helpers
with atheris.instrument_imports(include=["charlstm"]):
    from charlstm import checkpoint
    from charlstm.checkpoint import Checkpoint
    from charlstm.config import ModelConfig
    from charlstm.errors import CharlstmError
    from charlstm.model import Model
    from charlstm.text import corpus, reading
    from charlstm.text.vocabulary import Vocabulary
    from tests.helpers.faults import mutate_value

LIMITS = {"-max_total_time": "600", "-runs": "1000000", "-max_len": "4096", "-rss_limit_mb": "1024", "-timeout": "60"}
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-16", "latin-1", "utf-7", "gb18030", "utf-8-sig")
WORDS = """__metadata__ charlstm sha256 dtype shape data_offsets F64 F32 I64 U32 U8 model/ optim/ state/ rng/
    format_version model vocabulary kind symbols step training facts cell lstm peephole gru hidden layers embedding
    vocab_size null true NaN Infinity 1e999 9007199254740993 -1 \\ud800"""
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that a message must not contain
# Of category Cf, but visible:
SEEN = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\u200c\u200d"


def small() -> Checkpoint:
    """Return the smallest checkpoint with every kind of tensor."""
    model = ModelConfig(2, hidden=1, layers=1, embedding=1)
    weights = {name: np.ones(shape, np.float32) for name, shape in model.shapes().items()}
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "optim/mean": np.ones((1, 2)),
        "state/h": np.ones(1, np.float32),
        "rng/torch": np.ones(3, np.uint8),
    }
    return Checkpoint(model, Vocabulary("ab"), weights, 3, {"cursor": 1}, tensors, {"corpus": {"names": ["a"]}})


def repaired(data: bytes, with_digest: bool) -> bytes:
    """Return header and body after the length of the header; with `with_digest`, correct the documented sha256, too."""
    text, _, body = data[8:].partition(b"\n")
    if with_digest:
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
            header = json.loads(text)
            names = sorted(name for name in header if name != "__metadata__")
            described = [[name, header[name]["dtype"], header[name]["shape"]] for name in names]
            digest = hashlib.sha256(json.dumps([header["__metadata__"]["charlstm"], described]).encode())
            for name in names:
                digest.update(body[slice(*header[name]["data_offsets"])])
            header["__metadata__"]["sha256"] = digest.hexdigest()
            text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def mutate_checkpoint(data: bytes, max_size: int, seed: int) -> bytes:
    """Return a mutation by libFuzzer of the bytes, or a mutation of a value of the header."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    text, _, body = data[9:].partition(b"\n")
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        header = json.loads(text)
        if rng.random() < 0.5:
            document = json.loads(header["__metadata__"]["charlstm"])
            header["__metadata__"]["charlstm"] = json.dumps(mutate_value(document, rng))
        else:
            header = mutate_value(header, rng)
        return (b"\2" + bytes(8) + json.dumps(header).encode() + b"\n" + body)[:max_size]
    return bytes(atheris.Mutate(data, max_size))


def origin(error: BaseException) -> tuple[str, int]:
    """Return the file and the line at which the first of a chain of errors was raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    (*_, (frame, line)) = traceback.walk_tb(error.__traceback__)
    return os.path.basename(frame.f_code.co_filename), line


class Target:
    """A file that is rewritten for each input, and a method for each kind of file that reads it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "input"
        self.model = Model(small().model, small().vocabulary, small().weights)
        self.counts = {"read": 0, "refused": 0}
        self.places: set[tuple[str, int]] = set()  # lines of charlstm that refused inputs

    def run(self, read: Callable[[bytes], object], data: bytes) -> None:
        try:
            read(data)
        except CharlstmError as error:
            message = str(error)
            if any(unicodedata.category(c) in UNSAFE and c not in SEEN for c in message):
                raise AssertionError(f"a message that could drive a terminal: {message!a}") from error
            self.counts["refused"] += 1
            self.places.add(origin(error))
        else:
            self.counts["read"] += 1

    def checkpoint(self, data: bytes) -> None:
        how = data[0] if data else 0
        data = data[1:]
        self.path.write_bytes(data if how % 4 == 0 else repaired(data, how % 4 > 1))
        found = checkpoint.load(self.path, training=True)
        assert {name: array.shape for name, array in found.weights.items()} == found.model.shapes()
        assert len(found.vocabulary) == found.model.vocab_size
        checkpoint.save(self.path, found)  # an accepted checkpoint can be saved and loaded
        checkpoint.load(self.path)

    def corpus(self, data: bytes) -> None:
        how = data[0] if data else 0
        data = data[1:]
        encoding = ENCODINGS[how % 8]
        reading.BLOCK_BYTES = (2, 3, 16, 4096)[how // 8 % 4]
        self.path.write_bytes(gzip.compress(data, 1) if how & 64 else data)
        found = corpus.read([self.path], encoding=encoding, max_chars=5000)
        text = reading.read_text([self.path], reading.TextFormat(encoding))
        assert found.vocabulary.decode(found.ids) == text
        if encoding == "utf-8" and (how & 64 or data[:2] != b"\x1f\x8b"):
            assert text == data.decode()

    def state(self, data: bytes) -> None:
        self.path.write_bytes(data if data[:1] != b"!" else data[1:] + hashlib.sha256(data[1:]).digest())
        self.model.load_state(self.path)


def seeds(kind: str, folder: Path) -> list[bytes]:
    """Return the initial inputs."""
    path = folder / "seed"
    if kind == "checkpoint":
        checkpoint.save(path, small())
        whole = path.read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        text, body = whole[8 : 8 + length].rstrip(), whole[8 + length :]
        return [b"\0" + whole, *(how + bytes(8) + text + b"\n" + body for how in (b"\1", b"\2"))]
    if kind == "corpus":
        prose = "a\r\né☃😀\ufeff\x00\n" * 5
        plain = [bytes([n]) + prose.encode(codec, "ignore") for n, codec in enumerate(ENCODINGS)]
        return [*plain, b"\0" + gzip.compress(prose.encode()) * 2, b"\x58" + prose.encode(), b"\x08" + prose.encode()]
    model = Model(small().model, small().vocabulary, small().weights)
    model.save_state(path, model.advance("ab"))
    return [path.read_bytes(), b"!" + path.read_bytes()[:-32]]


def main() -> None:
    kind, *arguments = sys.argv[1:] or [""]
    if kind in ("-h", "--help"):
        print(__doc__)
        return
    if kind not in ("checkpoint", "corpus", "state"):
        sys.exit(__doc__)
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared, prefix="charlstm-fuzz-") as folder:
        child = os.fork()  # libFuzzer ends its process without any cleanup
        if not child:
            fuzz(kind, arguments, Path(folder))
            os._exit(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child, which then prints its summary
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def fuzz(kind: str, arguments: list[str], folder: Path) -> None:
    """Run on the given files, or until libFuzzer ends the process."""
    target = Target(folder)
    files = [word for word in arguments if not word.startswith("-") and not os.path.isdir(word)]
    if files:
        for file in files:
            target.run(getattr(target, kind), Path(file).read_bytes())
        print(target.counts, flush=True)
        return
    found = next((Path(word) for word in arguments if os.path.isdir(word)), folder / "found")
    found.mkdir(exist_ok=True)
    for n, seed in enumerate(seeds(kind, folder)):
        (found / str(n)).write_bytes(seed)
        target.run(getattr(target, kind), seed)
    words = folder / "words"
    words.write_text("".join(f'"{word}"\n' for word in WORDS.split()).replace("\\", "\\\\"))
    given = {word.split("=")[0]: word for word in arguments if word.startswith("-")}
    limits = [f"{name}={value}" for name, value in LIMITS.items() if name not in given]
    reader: Any = getattr(target, kind)

    def once(data: bytes) -> None:
        target.run(reader, data)
        done = sum(target.counts.values())
        if done % 10_000 == 0:
            print(f"{done}: {target.counts}, refused at {len(target.places)} lines", file=sys.stderr, flush=True)

    mutator = {"custom_mutator": mutate_checkpoint} if kind == "checkpoint" else {}
    atheris.Setup(["fuzz", str(found), f"-dict={words}", *limits, *given.values()], once, **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

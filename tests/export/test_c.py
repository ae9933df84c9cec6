"""The exported C computes the integers of `integer_model` with every compiler, for any model and vocabulary."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from charlstm.config import Cell, ModelConfig
from charlstm.errors import CheckpointError
from charlstm.export.c import c_source, footprint, rounding_loss
from charlstm.export.integer_model import IntegerModel, symbol_weights
from charlstm.model import Model
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.models import CELLS, random_weights, real_ids

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
HOSTILE = "\0\t\n\r \"'*/?\\%{}\x7f\x80\u2028\u202e\U0001f600"

# Prints the weights of each distribution while a text is fed, and then a sampled text.
HARNESS = """
#include "model.c"
#include <stdio.h>
#include <stdlib.h>
static charlstm model;
int main(int argc, char **argv)
{
    charlstm_init(&model, (uint32_t)strtoul(argv[1], NULL, 10));
    for (int k = 4; k < argc; k++) {
        charlstm_feed(&model, atoi(argv[k]));
        const uint32_t sum = charlstm_weights(&model, (uint16_t)atoi(argv[2]), (uint16_t)atoi(argv[3]));
        printf("%lu", (unsigned long)sum);
        for (int s = 0; s < CHARLSTM_VOCABULARY; s++) printf(" %lu", (unsigned long)model.of.weight[s]);
        printf("\\n");
    }
    for (int n = 0; n < 40; n++)
        printf("%d ", charlstm_next(&model, (uint16_t)atoi(argv[2]), (uint16_t)atoi(argv[3])));
    return 0;
}
"""

# Prints the text of every symbol, and of two that do not exist.
SPELLING = """
#include "model.c"
#include <stdio.h>
int main(void)
{
    char out[CHARLSTM_TEXT_MAX];
    for (int symbol = -1; symbol <= CHARLSTM_VOCABULARY; symbol++) fwrite(out, 1, charlstm_text(symbol, out), stdout);
    return 0;
}
"""


def compilers() -> list[str]:
    """Return which of gcc and clang are installed; in CI both must be."""
    found = [name for name in ("gcc", "clang") if shutil.which(name)]
    assert len(found) == 2 or "CI" not in os.environ, "CI needs gcc and clang"
    return found


has_no_compiler = "CI" not in os.environ and shutil.which("gcc") is None and shutil.which("clang") is None
needs_compiler = pytest.mark.skipif(has_no_compiler, reason="no C compiler")


def build(folder: Path, source: str, *flags: str, compiler: str | None = None, main: str = HARNESS) -> Path:
    (folder / "model.c").write_text(source, encoding="ascii")
    (folder / "main.c").write_text(main, encoding="ascii")
    program = folder / "program"
    command = [compiler or compilers()[0], *STRICT, *flags, str(folder / "main.c"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def run(command: Sequence[object]) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def mixed(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def expected(
    model: IntegerModel, vocabulary: Vocabulary, ids: Sequence[int], seed: int, temperature: int, top_k: int
) -> str:
    """What HARNESS prints, from the integers of `IntegerModel`."""
    lines, state, utf8 = [], model.zero_state(), 0
    bytes_follow = vocabulary.transitions

    def feed(symbol: int) -> NDArray[np.int64]:
        nonlocal state, utf8
        state = model.step(np.array([symbol]), state)
        logits = model.logits(state)[0]
        if bytes_follow is not None:
            utf8 = int(bytes_follow[0 if utf8 == 255 else utf8, symbol])
            never = bytes_follow[0 if utf8 == 255 else utf8] == 255
            logits = np.where(never, -32768, logits)
        return symbol_weights(logits, temperature, top_k)

    for symbol in ids:
        weights = feed(symbol)
        lines.append(" ".join(map(str, [weights.sum(), *weights])))
    text = ""
    for n in range(40):
        chosen = mixed(mixed(n) ^ mixed(seed)) * int(weights.sum()) >> 32
        symbol = int((np.cumsum(weights) <= chosen).sum())
        text += f"{symbol} "
        weights = feed(symbol)
    return "".join(f"{line}\n" for line in lines) + text


CASES = [
    pytest.param(cell, layers, hidden, embedding, id=f"{cell}-{layers}x{hidden}-{embedding}")
    for cell in CELLS
    for layers, hidden, embedding in ((1, 13, 3), (2, 8, 40), (3, 5, 2))
]


@needs_compiler
@pytest.mark.parametrize(("cell", "layers", "hidden", "embedding"), CASES)
def test_every_cell_computes_the_same_integers(
    cell: Cell, layers: int, hidden: int, embedding: int, tmp_path: Path
) -> None:
    vocabulary = Vocabulary.of("abcdefghijklmnop")
    config = ModelConfig(16, hidden, layers, embedding, cell)
    model = IntegerModel(config, random_weights(config, scale=3))
    program = build(tmp_path, c_source(config, vocabulary, model))
    ids = np.random.default_rng(1).integers(0, 16, 30).tolist()
    for seed, temperature, top_k in ((1, 1000, 0), (2**32 - 1, 800, 5), (7, 0, 0), (3, 65535, 16), (3, 1, 1)):
        found = run([program, seed, temperature, top_k, *ids])
        assert found == expected(model, vocabulary, ids, seed, temperature, top_k)


@needs_compiler
def test_a_changed_rounding_is_detected(tmp_path: Path) -> None:
    """Negative control: the comparison above fails when the C rounds in another way."""
    vocabulary = Vocabulary.of("abcdefghijklmnop")
    config = ModelConfig(16, 13, 1, 3)
    model = IntegerModel(config, random_weights(config, scale=3))
    source = c_source(config, vocabulary, model)
    assert source.count("+ 64u) >> 7") == 1
    program = build(tmp_path, source.replace("+ 64u) >> 7", ") >> 7"))
    ids = list(range(16)) * 4
    assert run([program, 1, 1000, 0, *ids]) != expected(model, vocabulary, ids, 1, 1000, 0)


@needs_compiler
def test_all_compilers_and_optimisation_levels_give_the_same_text(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of("abcdefghijklmnop")
    config = ModelConfig(16, 24, 2, 6, "peephole")
    source = c_source(config, vocabulary, IntegerModel(config, random_weights(config, scale=3)))
    texts = set()
    for compiler in compilers():
        for level in ("-O0", "-O1", "-O2", "-O3", "-Os"):
            (tmp_path / "model.c").write_text(source)
            program = tmp_path / "poet"
            command = [compiler, *STRICT, level, "-DCHARLSTM_MAIN", str(tmp_path / "model.c"), "-o", str(program)]
            subprocess.run(command, check=True)
            texts.add(run([program, 2000, 0.8, 7, "abc"]))
    assert len(texts) == 1
    assert len(texts.pop()) == 2000


@needs_compiler
@pytest.mark.parametrize("kind", ["documents", "bytes", "hostile", "large"])
def test_a_program_of_any_vocabulary_compiles_and_prints_its_symbols(kind: str, tmp_path: Path) -> None:
    vocabulary: Vocabulary = Vocabulary.of(HOSTILE)
    if kind == "documents":
        vocabulary = vocabulary.with_boundary("*/ <|end|> ??/\\")
    elif kind == "bytes":
        vocabulary = ByteVocabulary()
    elif kind == "large":
        vocabulary = Vocabulary.of("".join(map(chr, range(0x4E00, 0x4E00 + 6784))))
    config = ModelConfig(len(vocabulary), 6, embedding=4, boundary=vocabulary.boundary_id)
    model = IntegerModel(config, random_weights(config))
    source = c_source(config, vocabulary, model, "*/ int main(void) { /* ??/\n")
    program = build(tmp_path, source, main=SPELLING)
    spelled = subprocess.run([str(program)], capture_output=True, check=True).stdout
    texts = [vocabulary.name(symbol).encode("utf-8", "surrogateescape") for symbol in range(len(vocabulary))]
    assert spelled == b"".join(texts)
    program = build(tmp_path, source)
    ids = np.random.default_rng(2).integers(0, len(vocabulary), 20).tolist()
    assert run([program, 5, 900, 0, *ids]) == expected(model, vocabulary, ids, 5, 900, 0)


# Calls the functions in a random order with random arguments, and checks the bounds that the comments in the C promise.
FUZZ = """
#include "model.c"
#include <stdlib.h>
static uint32_t state = 1;
static uint32_t any(void) { return state = mixed(state + UINT32_C(0x9e3779b9)); }
static int any_symbol(void) { return any() % 4 ? (int)(any() % (CHARLSTM_VOCABULARY + 4)) - 2 : (int)any(); }
static uint16_t any_setting(void)
{
    const uint32_t x = any();
    return (uint16_t)(x % 4 ? x >> 8 : x % 8 ? 65535 : x >> 31);
}
static void require(int holds) { if (!holds) abort(); }
int main(int argc, char **argv)
{
    charlstm *model = malloc(sizeof *model); /* on the heap, so that the sanitizer sees an access beside it */
    charlstm_init(model, 0);
    for (long n = argc > 1 ? atol(argv[1]) : 0; n > 0; n--) {
        char *text = malloc(CHARLSTM_TEXT_MAX);
        const int symbol = any_symbol();
        if (any() % 50 == 0) charlstm_init(model, any());
        if (any() % 2) charlstm_feed(model, symbol);
        require(charlstm_text(symbol, text) <= CHARLSTM_TEXT_MAX);
        if (any() % 2) {
            const int next = charlstm_next(model, any_setting(), any_setting());
            require(next >= 0 && next < CHARLSTM_VOCABULARY);
        } else {
            const uint32_t sum = charlstm_weights(model, any_setting(), any_setting());
            uint64_t expected = 0;
            for (int k = 0; k < CHARLSTM_VOCABULARY; k++) expected += model->of.weight[k];
            require(sum > 0 && sum == expected);
        }
        free(text);
    }
    free(model);
    (void)argv;
    return 0;
}
"""
SANITIZED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@needs_compiler
@pytest.mark.parametrize("cell", CELLS)
def test_any_calls_are_safe_under_the_sanitizers(cell: Cell, tmp_path: Path) -> None:
    """20,000 random calls; the weights are so large that every number reaches its limits."""
    vocabulary = ByteVocabulary().with_boundary("\n") if cell in ("lstm", "gru") else Vocabulary.of("\nabcdefg")
    config = ModelConfig(len(vocabulary), 9, 2, 4, cell, vocabulary.boundary_id)
    model = IntegerModel(config, random_weights(config, scale=50))
    assert model.rows[0].unit > 1
    run([build(tmp_path, c_source(config, vocabulary, model), *SANITIZED, main=FUZZ), 20_000])


@needs_compiler
def test_a_wrong_sum_is_detected_by_the_random_calls(tmp_path: Path) -> None:
    """Negative control: the driver of the test above checks what the functions return."""
    vocabulary = Vocabulary.of("\nabcdefg")
    config = ModelConfig(8, 9, 2, 4)
    source = c_source(config, vocabulary, IntegerModel(config, random_weights(config, scale=50)))
    assert "        sum += weight;" in source
    program = build(tmp_path, source.replace("        sum += weight;", "        sum |= weight;"), *SANITIZED, main=FUZZ)
    assert subprocess.run([str(program), "20000"], capture_output=True, check=False).returncode != 0


@needs_compiler
def test_the_text_does_not_depend_on_floating_point(tmp_path: Path) -> None:
    """The library has integers only, and the text is the same if the compiler may contract and reorder operations."""
    vocabulary = Vocabulary.of("abcdefghijklmnop")
    config = ModelConfig(16, 24, 2, 6, "gru")
    source = c_source(config, vocabulary, IntegerModel(config, random_weights(config, scale=3)))
    library, program = source.split("#ifdef CHARLSTM_MAIN\n")
    assert re.search(r"\b(float|double)\b|\d\.\d+f?[^\w]", re.sub(r"/\*.*?\*/", "", library, flags=re.DOTALL)) is None
    assert "double" in program, "the search finds the conversion of the temperature from the command line"
    texts = set()
    for flags in (["-ffp-contract=off"], ["-ffast-math", "-ffp-contract=fast", "-march=native", "-O3"]):
        (tmp_path / "model.c").write_text(source)
        command = [compilers()[0], *STRICT, *flags, "-DCHARLSTM_MAIN", str(tmp_path / "model.c")]
        subprocess.run([*command, "-o", str(tmp_path / "poet")], check=True)
        texts.add(run([tmp_path / "poet", 2000, 0.8, 7]))
    assert len(texts) == 1


@needs_compiler
def test_an_overflow_is_detected_by_the_sanitizers(tmp_path: Path) -> None:
    """Negative control: without the bound on the symbol, the program reads outside of its tables."""
    vocabulary = Vocabulary.of("abc")
    config = ModelConfig(3, 4, embedding=2)
    source = c_source(config, vocabulary, IntegerModel(config, random_weights(config)))
    bound = "    if (symbol < 0 || symbol >= CHARLSTM_VOCABULARY) return;\n"
    assert bound in source
    program = build(tmp_path, source.replace(bound, ""), "-g", "-fsanitize=address,undefined")
    done = subprocess.run([str(program), "1", "800", "0", "100000"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr or "runtime error" in done.stderr


def test_weights_that_are_too_large_for_32_bits_are_refused() -> None:
    config = ModelConfig(8, 9, 2, 4)
    with pytest.raises(CheckpointError, match="the weights are too large for integer arithmetic"):
        IntegerModel(config, random_weights(config, scale=3000))
    weights = random_weights(config)
    weights["projection.bias"][:] = np.nan
    with pytest.raises(CheckpointError, match="the weights are too large for integer arithmetic"):
        IntegerModel(config, weights)


def test_rounding_raises_the_loss_only_slightly() -> None:
    ids, vocabulary = real_ids(3000)
    for cell in CELLS:
        config = ModelConfig(len(vocabulary), 32, embedding=16, cell=cell)
        weights = random_weights(config, scale=2)
        loss = rounding_loss(Model(config, vocabulary, weights), IntegerModel(config, weights), ids)
        assert loss.chars == len(ids) - 1
        assert abs(loss.rounded_bits_per_char - loss.exact_bits_per_char) < 0.01


def test_the_memory_of_a_model_equals_the_report_of_the_compiler(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of("abcdefghij\n")
    config = ModelConfig(11, 20, 2, 6, "gru")
    model = IntegerModel(config, random_weights(config))
    main = (
        '#include "model.c"\n#include <stdio.h>\nint main(void) { printf("%u", (unsigned)sizeof(charlstm)); return 0; }'
    )
    program = build(tmp_path, c_source(config, vocabulary, model), main=main)
    assert int(run([program])) == footprint(config, vocabulary, model).ram_bytes

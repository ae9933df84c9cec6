"""Export a model as one file of C99: `engine.c.in` behind the model's constants.

The file needs no library but <string.h>, allocates nothing and has no global state. Everything is integer arithmetic,
which `integer_model` defines and computes, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from charlstm import atomicfile
from charlstm.cells import GATES
from charlstm.config import ModelConfig
from charlstm.export.integer_model import POWER, SIGMOID, IntegerModel, Rows, weight_bits
from charlstm.inference import evaluation
from charlstm.inference.engine import Engine
from charlstm.model import Model
from charlstm.text.corpus import Symbols
from charlstm.text.vocabulary import Vocabulary

COLUMNS = 118  # of a line of numbers

HEAD = """\
/* A character-level language model, exported by charlstm: a library in one file of C99.
 *
 * @DESCRIPTION@
 *
 * To use it in a program:
 *
 *     charlstm model;                                  all of the memory that it needs
 *     charlstm_init(&model, 7);                        seed
 *     charlstm_feed(&model, CHARLSTM_START);           or the symbols of a text to continue
 *     int symbol = charlstm_next(&model, 800, 0);      temperature 0.8; the symbol is fed as well
 *     char text[CHARLSTM_TEXT_MAX];
 *     unsigned length = charlstm_text(symbol, text);   UTF-8, without a zero at its end
 *
 * With -DCHARLSTM_MAIN it is a program: ./poet [length] [temperature] [seed] [prime]
 *
 * It allocates nothing, has no global state, and needs no library but <string.h>.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef CHARLSTM_FLASH /* where the constants are: on an AVR in program memory, else they would be copied to RAM */
#ifdef __AVR__
#define CHARLSTM_FLASH __flash
#else
#define CHARLSTM_FLASH
#endif
#endif

#define CHARLSTM_LSTM 0
#define CHARLSTM_PEEPHOLE 1
#define CHARLSTM_COUPLED 2
#define CHARLSTM_GRU 3
#define CHARLSTM_RNN 4

@DEFINITIONS@
typedef struct {
    int32_t c[CHARLSTM_LAYERS][CHARLSTM_HIDDEN]; /* cell state, Q16; of a GRU the hidden state, Q15 */
    uint8_t x[CHARLSTM_ACTIVATIONS]; /* the symbol's embedding, and the hidden activations of each layer */
    uint8_t next[CHARLSTM_HIDDEN];   /* the new activations of a layer */
    uint32_t seed, sampled;                      /* of the random numbers; symbols sampled so far */
    union {
        int32_t logit[CHARLSTM_VOCABULARY];
        uint32_t weight[CHARLSTM_VOCABULARY];
    } of; /* the last distribution */
#if CHARLSTM_BYTES
    uint8_t utf8; /* state of the automaton of well-formed UTF-8 */
#endif
} charlstm;

/* Begin: the state is zero, and the random numbers depend on the seed alone. */
void charlstm_init(charlstm *m, uint32_t seed);

/* Let the model read one symbol, from 0 to CHARLSTM_VOCABULARY - 1. Others are ignored. */
void charlstm_feed(charlstm *m, int symbol);

/* Compute the distribution of the next symbol: m->of.weight[k] / sum is the probability of symbol k; returns the sum.
 * temperature is in thousandths, 0 is greedy; of the symbols only the top_k most likely are kept, 0 keeps all. */
uint32_t charlstm_weights(charlstm *m, uint16_t temperature, uint16_t top_k);

/* Sample the next symbol, and feed it. */
int charlstm_next(charlstm *m, uint16_t temperature, uint16_t top_k);

/* Copy a symbol's text, at most CHARLSTM_TEXT_MAX bytes of UTF-8; returns its length in bytes. */
unsigned charlstm_text(int symbol, char *out);

/* ---- The model ---- */

"""

UTF8 = """\
#define UTF8_NEVER 255

/* The state after a byte of well-formed UTF-8, by table 3-7 of the Unicode Standard; 0 is the end of a character. */
static uint8_t utf8_after(uint8_t state, int byte)
{
    static const CHARLSTM_FLASH uint8_t first[9][3] = {{0x00, 0x7f, 0}, {0xc2, 0xdf, 1}, {0xe0, 0xe0, 3},
        {0xe1, 0xec, 2}, {0xed, 0xed, 4}, {0xee, 0xef, 2}, {0xf0, 0xf0, 5}, {0xf1, 0xf3, 6}, {0xf4, 0xf4, 7}};
    static const CHARLSTM_FLASH uint8_t later[7][3] = {{0x80, 0xbf, 0}, {0x80, 0xbf, 1}, {0xa0, 0xbf, 1},
        {0x80, 0x9f, 1}, {0x90, 0xbf, 2}, {0x80, 0xbf, 2}, {0x80, 0x8f, 2}};
    if (state == UTF8_NEVER) state = 0;
    if (state > 0) return byte >= later[state - 1][0] && byte <= later[state - 1][1] ? later[state - 1][2] : UTF8_NEVER;
    for (unsigned k = 0; k < 9; k++)
        if (byte >= first[k][0] && byte <= first[k][1]) return first[k][2];
    return UTF8_NEVER;
}

"""


@dataclass(frozen=True)
class Footprint:
    """What an exported model needs on a device.

    Attributes:
        flash_bytes: the constants of the model, without the code (3 to 6 kB).
        ram_bytes: the state, one object of the type `charlstm`; the stack needs about 1.5 bytes a hidden unit besides.
        multiply_adds: products to compute one character.
    """

    flash_bytes: int
    ram_bytes: int
    multiply_adds: int


@dataclass(frozen=True)
class RoundingLoss:
    """What rounding the weights to 8 bits costs, on one text.

    Attributes:
        chars: scored characters.
        exact_bits_per_char: of the model in float32.
        rounded_bits_per_char: of the exported model, at temperature 1.
    """

    chars: int
    exact_bits_per_char: float
    rounded_bits_per_char: float


def export_c(model: Model, rounded: IntegerModel, path: str | Path) -> Footprint:
    """Write a model as one file of C99.

    Args:
        model: a trained model.
        rounded: the model with rounded weights, `IntegerModel(model.config, model.weights)`.
        path: the file to write; an existing one is replaced.

    Returns:
        The memory and arithmetic that the exported model needs.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    config = model.config
    description = f"{config.cell}, {config.layers} x {config.hidden}, {config.vocab_size} symbols, from {model.path}"
    source = c_source(config, model.vocabulary, rounded, description)
    atomicfile.replace(Path(path), [source.encode("ascii")])
    return footprint(config, model.vocabulary, rounded)


def rounding_loss(model: Model, rounded: IntegerModel, ids: Symbols) -> RoundingLoss:
    """Measure what rounding the weights costs.

    Args:
        model: a trained model.
        rounded: the model with rounded weights, as in `export_c`.
        ids: (N,) symbols of a text. A million take some minutes.

    Raises:
        CorpusError: fewer than two symbols.
    """
    exact = evaluation.evaluate(Engine(model.config, model.weights, precision="fp32"), ids)
    score = evaluation.evaluate(cast(evaluation.ScoringModel, rounded), ids)
    return RoundingLoss(exact.transitions, exact.bits_per_char, score.bits_per_char)


def c_source(config: ModelConfig, vocabulary: Vocabulary, model: IntegerModel, description: str = "") -> str:
    """Return the C99 source of a model.

    Args:
        config: the shape of the model.
        vocabulary: its symbols.
        model: its rounded weights.
        description: a line about the model for the comment at the top.
    """
    engine = (resources.files("charlstm.export") / "engine.c.in").read_text(encoding="utf-8")
    definitions = "".join(f"#define {name} {value}\n" for name, value in _definitions(config, vocabulary, model))
    head = HEAD.replace("@DESCRIPTION@", _comment(description)).replace("@DEFINITIONS@", definitions)
    tables = "".join(_table(name, values) for name, values in _tables(config, vocabulary, model))
    return head + tables + "\n" + (UTF8 if vocabulary.kind == "bytes" else "") + engine


def footprint(config: ModelConfig, vocabulary: Vocabulary, model: IntegerModel) -> Footprint:
    """Return the memory and the arithmetic that the exported model needs."""
    flash = sum(values.nbytes for _, values in _tables(config, vocabulary, model))
    activations = _padded(model.inputs) + config.layers * _padded(config.hidden)
    state = 4 * config.layers * config.hidden + -(-(activations + config.hidden) // 4) * 4
    state += 8 + 4 * config.vocab_size + (vocabulary.kind == "bytes")
    multiply_adds = sum(rows.weights.size for rows in [*model.rows, model.output])
    return Footprint(flash, -(-state // 4) * 4, multiply_adds)


def _definitions(config: ModelConfig, vocabulary: Vocabulary, model: IntegerModel) -> Iterator[tuple[str, int | str]]:
    texts = [_bytes_of(vocabulary, symbol) for symbol in range(len(vocabulary))]
    gates = len(GATES[config.cell])
    yield "CHARLSTM_CELL", f"CHARLSTM_{config.cell.upper()}"
    yield "CHARLSTM_VOCABULARY", config.vocab_size
    yield "CHARLSTM_HIDDEN", config.hidden
    yield "CHARLSTM_LAYERS", config.layers
    yield "CHARLSTM_BOUNDARY", "(-1)" if config.boundary is None else config.boundary
    yield "CHARLSTM_BYTES", int(vocabulary.kind == "bytes")
    yield "CHARLSTM_TABLE", int(model.table is not None)
    yield "CHARLSTM_START", _start(vocabulary)
    yield "CHARLSTM_TEXT_MAX", max(1, *map(len, texts))
    if len({*map(len, texts)}) == 1:
        yield "CHARLSTM_TEXT_LENGTH", len(texts[0])
    yield "CHARLSTM_ACTIVATIONS", _padded(model.inputs) + config.layers * _padded(config.hidden)
    yield "INPUTS", model.inputs
    yield "GATES", gates
    yield "UNIT_ROWS", gates + (config.cell == "gru")
    yield "WEIGHT_BITS", weight_bits(config.vocab_size)
    if model.table is not None:
        yield "TABLE_UNIT", model.table.unit
    yield "UNIT", model.rows[0].unit
    yield "PROJECTION_UNIT", model.output.unit


def _start(vocabulary: Vocabulary) -> int:
    """The symbol that a text without a prime begins after, as in `Sampler`."""
    if vocabulary.boundary_id is not None:
        return vocabulary.boundary_id
    return vocabulary.symbols.index(next((s for s in "\n " if s in vocabulary.symbols), vocabulary.symbols[0]))


def _bytes_of(vocabulary: Vocabulary, symbol: int) -> bytes:
    return vocabulary.name(symbol).encode("utf-8", "surrogateescape")


def _tables(
    config: ModelConfig, vocabulary: Vocabulary, model: IntegerModel
) -> Iterator[tuple[str, NDArray[np.integer]]]:
    yield "SIGMOID", SIGMOID.astype(np.uint16)
    yield "POWER", POWER.astype(np.uint16)
    texts = [_bytes_of(vocabulary, symbol) for symbol in range(len(vocabulary))]
    begins = np.cumsum([0, *map(len, texts)])
    yield "TEXT", np.frombuffer(b"".join(texts), np.uint8)
    if len({*map(len, texts)}) > 1:
        yield "TEXT_BEGIN", begins.astype(np.uint16 if begins[-1] < 65536 else np.uint32)
    hidden, layer_rows = config.hidden, len(model.rows) // config.layers
    if model.table is not None:
        yield "TABLE", model.table.rounded.reshape(config.vocab_size, -1, hidden).swapaxes(1, 2)
        yield "TABLE_FACTOR", model.table.factor.reshape(-1, hidden).T
    if model.embedding is not None:
        yield "EMBEDDING", _unsigned(model.embedding)
    layers = [model.rows[first : first + layer_rows] for first in range(0, len(model.rows), layer_rows)]
    columns = [(model.inputs if k == 0 else hidden, hidden) for k in range(config.layers)]
    yield "WEIGHT", np.concatenate([_unit_weights(*layer) for layer in zip(layers, columns, strict=True)])
    yield "ROW", np.concatenate([_row_constants(layer, hidden) for layer in layers])
    if model.peephole is not None:
        yield "PEEPHOLE", model.peephole.swapaxes(1, 2).astype(np.int16)
    groups = -(-config.vocab_size // 4)
    output = np.zeros((groups * 4, hidden), np.uint8)
    output[: config.vocab_size] = _unsigned(model.output.weights)
    yield "PROJECTION", _columns_by_four(output.reshape(groups, 4, hidden)).ravel()
    yield "PROJECTION_ROW", np.stack([model.output.start, model.output.factor], axis=1)


def _unit_weights(layer: Sequence[Rows], columns: tuple[int, int]) -> NDArray[np.uint8]:
    """The weights of all units of a layer, in the order in which the program reads them.

    Args:
        layer: the rows of the layer, each part on the columns of x, of h, or of both.
        columns: the number of columns of x and of h.
    """
    parts = []
    for rows in layer:
        count, width = rows.weights.shape
        by_unit = _unsigned(rows.weights).reshape(count // columns[1], columns[1], width).swapaxes(0, 1)  # (H, rows, K)
        is_joint = width == sum(columns)
        vectors = np.split(by_unit, columns[:1], axis=2) if is_joint else [by_unit]
        parts += [_columns_by_four(vector) for vector in vectors]
    return np.concatenate(parts, axis=1).ravel()


def _row_constants(layer: Sequence[Rows], hidden: int) -> NDArray[np.int16]:
    """The start and the factor of each row, unit by unit: flat."""
    pairs = [np.stack([rows.start, rows.factor], axis=1).reshape(-1, hidden, 2) for rows in layer]
    return np.concatenate(pairs).swapaxes(0, 1).ravel()


def _unsigned(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    return (weights.astype(np.int16) + 128).astype(np.uint8)


def _columns_by_four(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Groups of rows (N, R, K) in the order in which `products` reads them: (N, K/4 · R · 4), K padded with zeros."""
    groups, count, columns = rows.shape
    padded = np.zeros((groups, count, _padded(columns)), np.uint8)
    padded[:, :, :columns] = rows
    by_four = padded.reshape(groups, count, _padded(columns) // 4, 4).swapaxes(1, 2)
    return by_four.reshape(groups, count * _padded(columns))


def _padded(columns: int) -> int:
    return -(-columns // 4) * 4


def _table(name: str, values: NDArray[np.integer]) -> str:
    kind = f"{'u' if values.dtype.kind == 'u' else ''}int{8 * values.itemsize}_t"
    lines, line = [], "   "
    for number in map(str, values.ravel().tolist()):
        if len(line) + len(number) + 2 > COLUMNS:
            lines.append(line)
            line = "   "
        line += f" {number},"
    lines.append(line)
    return f"static const CHARLSTM_FLASH {kind} {name}[{values.size}] = {{\n" + "\n".join(lines) + "\n};\n"


def _comment(text: str) -> str:
    """A line within a comment: ASCII, and nothing that could end the comment or splice lines."""
    plain = "".join(char if " " <= char <= "~" and char not in "*/\\?" else "_" for char in text)
    return plain[:200]

"""Where the model is better than counting: n-gram models of the training text on the same text.

The n-gram models are interpolated by the method of Witten & Bell (1991), as Chen & Goodman (1998) give it. For a
context h of n − 1 symbols that occurs N(h) times, followed by D(h) different symbols, and the same context without its
first symbol h':

    p(w | h) = (N(h w) + D(h) · p(w | h')) / (N(h) + D(h))        p(w | h) = p(w | h') if h does not occur

and below the unigrams p is uniform. Only the contexts that occur in the evaluated text are counted, which takes a few
passes over the training text.

Letters: T evaluated symbols, N training symbols, V vocabulary, K kinds of characters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.explain import features
from charlstm.explain.lookup import MAX_TABLE, index_in
from charlstm.explain.trace import Ids
from charlstm.text.vocabulary import Vocabulary

MAX_ORDER = 8
KINDS = (
    "letter within a word",
    "first letter of a word",
    "space",
    "line break",
    "digit",
    "closing bracket",
    "closing quotation mark",
    "punctuation",
    "other",
)
DISTANCES = (4, 8, 16, 32, 64, 128)  # upper ends of the ranges of a distance; the last range is open


@dataclass(frozen=True)
class Distances:
    """Surprisal of characters that close something, by the distance to its beginning.

    Attributes:
        name: which characters: closing quotation marks, closing brackets or line breaks.
        most: (D,) the largest distance of each range, in symbols; −1 for the last, which has no limit.
        count: (D,) number of characters.
        bits: (D, O + 1) mean surprisal in bits of the O n-gram models and of the model; NaN for an empty range.
    """

    name: str
    most: NDArray[np.int64]
    count: NDArray[np.int64]
    bits: NDArray[np.float64]


@dataclass(frozen=True)
class NgramComparison:
    """The surprisal of n-gram models and of the model on one text. The first symbol is not scored.

    Attributes:
        orders: (O,) the values of n.
        train_chars: number of symbols of the training text.
        bits_per_char: (O + 1,) mean surprisal in bits of each order; the last entry is the model.
        kinds: the kinds of characters, as in KINDS.
        kind_count: (K,) number of scored characters of each kind.
        kind_bits: (K, O + 1) mean surprisal of each kind; NaN for a kind that does not occur.
        distances: the surprisal by distance.
        bits: (O, T) surprisal of each symbol; the first is NaN.
    """

    orders: NDArray[np.int64]
    train_chars: int
    bits_per_char: NDArray[np.float64]
    kinds: tuple[str, ...]
    kind_count: NDArray[np.int64]
    kind_bits: NDArray[np.float64]
    distances: tuple[Distances, ...]
    bits: NDArray[np.float64]


def comparison(
    vocabulary: Vocabulary, training: Ids, ids: Ids, bits: NDArray[np.float64], max_order: int = MAX_ORDER
) -> NgramComparison:
    """Compare the model with n-gram models, by kind of character and by distance.

    Args:
        vocabulary: the vocabulary of both texts.
        training: (N,) the training text, N > 0.
        ids: (T,) the evaluated text, T > 1.
        bits: (T,) its surprisal in the model, in bits.
        max_order: the largest n.
    """
    ours = surprisal(training, ids, len(vocabulary), max_order)
    both = np.concatenate([ours, bits[None]])[:, 1:]
    chars, sizes = features.characters(vocabulary, ids)
    kind, distance = (np.repeat(values, sizes)[1:] for values in _kinds(chars))
    counts = np.bincount(kind, minlength=len(KINDS))
    means = np.array([_mean(both, kind == k) for k in range(len(KINDS))])
    tables = []
    for name in ("closing quotation mark", "closing bracket", "line break"):
        is_kind = kind == KINDS.index(name)
        place = np.searchsorted(DISTANCES, distance)
        chosen = [is_kind & (distance > 0) & (place == d) for d in range(len(DISTANCES) + 1)]
        tables.append(
            Distances(
                name,
                np.array([*DISTANCES, -1]),
                np.array([rows.sum() for rows in chosen]),
                np.array([_mean(both, rows) for rows in chosen]),
            )
        )
    orders = np.arange(1, max_order + 1)
    return NgramComparison(orders, len(training), both.mean(axis=1), KINDS, counts, means, tuple(tables), ours)


def surprisal(training: Ids, ids: Ids, size: int, max_order: int = MAX_ORDER) -> NDArray[np.float64]:
    """Return the surprisal (max_order, T) in bits of a text in the n-gram models of a training text, n = 1, 2, ….

    The first symbol has no context and is NaN. A symbol with fewer than n − 1 symbols before it is predicted from
    these.

    Args:
        training: (N,) the training text.
        ids: (T,) the evaluated text.
        size: V, the number of symbols of the vocabulary.
        max_order: the largest n.
    """
    training, ids = training.astype(np.int64), ids.astype(np.int64)
    targets = ids[1:]
    shares = np.full(len(targets), 1 / size)
    result = np.full((max_order, len(ids)), np.nan)
    # The class of a context is its index among the contexts of the evaluated text. `places` are the positions of the
    # training text after a context of the present length that has a class.
    ours = np.zeros(len(targets), np.int64)
    is_full = np.ones(len(targets), bool)  # contexts of the present length; the others begin before the text
    places, theirs = np.arange(len(training)), np.zeros(len(training), np.int64)
    for order in range(1, max_order + 1):
        if order > 1:
            is_full &= np.arange(len(targets)) >= order - 2
            keys = ours * size + ids[np.maximum(np.arange(len(targets)) - (order - 2), 0)]
            known = np.unique(keys[is_full])
            inside = places >= order - 1
            places, theirs = places[inside], theirs[inside]
            found = theirs * size + training[places - (order - 1)]
            index = index_in(known, found)
            places, theirs = places[index >= 0], index[index >= 0].astype(np.int64)
            ours = np.maximum(index_in(known, keys), 0).astype(np.int64)
        classes = int(ours.max(initial=0)) + 1
        total, distinct, joint = _counts(theirs, training[places], ours, targets, classes, size)
        seen = is_full & (total > 0)
        shares = np.where(seen, (joint + distinct * shares) / np.maximum(total + distinct, 1), shares)
        result[order - 1, 1:] = -np.log2(shares)
    return result


def _counts(
    contexts: NDArray[np.int64],
    symbols: NDArray[np.int64],
    ours: NDArray[np.int64],
    targets: NDArray[np.int64],
    classes: int,
    size: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return N(h), D(h) and N(h w) for each context h and target w, (T − 1,) each.

    Args:
        contexts: the class of the context at places of the training text.
        symbols: the symbols there.
        ours: (T − 1,) the classes of the contexts of the evaluated text.
        targets: (T − 1,) its symbols.
        classes: number of classes.
        size: V.
    """
    pairs, wanted = contexts * size + symbols, ours * size + targets
    if classes * size <= MAX_TABLE:
        table = np.bincount(pairs, minlength=classes * size)
        rows = table.reshape(classes, size)
        return rows.sum(axis=1)[ours], (rows > 0).sum(axis=1)[ours], table[wanted]
    known, counts = np.unique(pairs, return_counts=True)
    total = np.bincount(contexts, minlength=classes)
    distinct = np.bincount(known // size, minlength=classes)
    index = index_in(known, wanted)
    joint = np.where(index >= 0, np.append(counts, 0)[index], 0)
    return total[ours], distinct[ours], joint


def _mean(values: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over the chosen columns; NaN if no column is chosen."""
    return values[:, rows].mean(axis=1) if rows.any() else np.full(len(values), np.nan)


def _kinds(chars: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the index in KINDS of each character, and the distance from a closing character to its beginning.

    The distance is the number of characters since the opening quotation mark or bracket, or since the last line break;
    0 for all other characters and where there is no beginning.
    """
    kinds, distances = [], []
    brackets: list[int] = []
    quote, close, line, previous = 0, "", 0, ""
    for place, char in enumerate(chars):
        distance = 0
        if close and char == close:
            kind, distance, close = "closing quotation mark", place - quote, ""
        elif char in features.CLOSING and char:
            kind = "closing bracket"
            distance = place - brackets.pop() if brackets else 0
        elif char in ("\n", ""):
            kind = "line break" if char else "other"
            distance, line = (place - line if char else 0), place
        elif char.isalpha():
            kind = "letter within a word" if previous.isalpha() else "first letter of a word"
        elif char.isspace():
            kind = "space"
        elif char.isdigit():
            kind = "digit"
        else:
            kind = "other" if char.isalnum() else "punctuation"
            if char in features.OPENING:
                brackets.append(place)
            elif not close and char in features.QUOTES and not (char == "'" and previous.isalnum()):
                quote, close = place, features.QUOTES[char]
        if char == "" or (char == "\n" and previous == "\n") or place - quote > features.MAX_QUOTE:
            close = ""
        if char == "":
            brackets.clear()
        kinds.append(KINDS.index(kind))
        distances.append(distance)
        previous = char
    return np.array(kinds, np.int64), np.array(distances, np.int64)

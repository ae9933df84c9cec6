r"""Compile a regular expression to an `Automaton` over the symbols of a vocabulary.

The expression is parsed by the parser of Python's own `re`, and `re` also decides which symbols each of its character
classes contains. So the syntax, the Unicode classes and the case-insensitive comparison are those of `re.fullmatch`,
and every text that the automaton accepts is a full match. The construction is that of Glushkov (1961): every occurrence
of a character class in the expression is a position, and a state of the automaton is the set of positions that may come
next. Bounded repeats are copied. Back-references, look-around, word boundaries, atomic groups and possessive
quantifiers are not supported, because they are not, or not simply, those of a finite automaton. Anchors are supported
at the beginning and at the end.

For a model of bytes the automaton over characters is expanded to one over the bytes of their UTF-8 encoding.

Letters: V vocabulary, S states, C classes, P positions.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charlstm.errors import Field, UsageError
from charlstm.inference.automaton import FAR, NEVER, Automaton
from charlstm.terminal import shortened
from charlstm.text import utf8
from charlstm.text.vocabulary import Vocabulary, code_points

MAX_POSITIONS = 20_000  # character classes in the expression, after repeats have been copied
MAX_STATES = 20_000  # of the automaton over characters
MAX_ENTRIES = 1 << 24  # of the table of an automaton: 64 MB
MAX_WORK = 5_000_000  # positions that are visited to find the states: some seconds

Runs = tuple[tuple[int, int], ...]  # ranges of symbols: first, and last + 1

_CATEGORIES = {"DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W"}
_UNSUPPORTED = {
    "GROUPREF": "a back-reference",
    "GROUPREF_EXISTS": "a condition on a group",
    "ASSERT": "a look-ahead or look-behind",
    "ASSERT_NOT": "a look-ahead or look-behind",
    "FAILURE": "a look-ahead or look-behind",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive quantifier",
}


def automaton(
    pattern: str,
    vocabulary: Vocabulary,
    allowed: NDArray[np.bool_] | None = None,
    transitions: NDArray[np.uint8] | None = None,
) -> Automaton:
    """Return the automaton of the texts that match a regular expression as a whole.

    The state 0 is that of an empty text. In a model of bytes, the state `end` + k is that in which the bytes of a
    character are still incomplete before the text begins, where k is the state of `transitions`.

    Args:
        pattern: the expression, as for `re.fullmatch`.
        vocabulary: the symbols. The boundary between documents never matches.
        allowed: (V,) which symbols may be sampled; None means all.
        transitions: for a model of bytes, the valid sequences of the bytes that may be sampled, as in
            `Vocabulary.transitions`; None means those of the vocabulary.

    Raises:
        UsageError: the expression is invalid or too complex, uses syntax that is not supported, or matches no text of
            the vocabulary.
    """
    is_bytes = vocabulary.kind == "bytes"
    symbols = _all_characters() if is_bytes else vocabulary.symbols
    try:
        states = _states(_Positions(pattern), symbols)
    except RecursionError:
        raise _error("has too many nested groups") from None
    if is_bytes:
        found = _over_bytes(states, utf8.TRANSITIONS if transitions is None else transitions, vocabulary.boundary_id)
    else:
        found = _over_characters(states, allowed, vocabulary.boundary_id)
    assert found.distances is not None
    if found.distances[0] == FAR:
        raise UsageError(Field("match"), f" '{shortened(pattern)}' matches no text of characters that may be generated")
    return found


def _error(problem: str) -> UsageError:
    return UsageError(Field("match"), " ", problem)


# ---- from the expression to positions ----


class _Part(NamedTuple):
    """A part of an expression."""

    nullable: bool  # whether it matches the empty text
    first: tuple[int, ...]  # the positions at which a match can begin
    last: tuple[int, ...]  # those at which it can end


_EMPTY = _Part(True, (), ())


class _Positions:
    """The positions of an expression.

    Args:
        pattern: the expression.

    Attributes:
        atoms: (P,) for each position the source and the flags of a regular expression for its character class.
        follow: (P,) the positions that may come after each.
        whole: the whole expression as a part.

    Raises:
        UsageError: the expression is invalid, uses unsupported syntax, or has too many positions.
    """

    def __init__(self, pattern: str) -> None:
        self.atoms: list[tuple[str, int]] = []
        self.follow: list[set[int]] = []
        parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about syntax that future versions of Python may read differently
                tree = parser.parse(pattern)
        except (re.error, OverflowError) as error:
            raise UsageError(
                Field("match"), f" '{shortened(pattern)}' is not a valid regular expression: {error}", value=pattern
            ) from None
        self.whole = self._sequence(list(tree), tree.state.flags, True, True)

    def _sequence(self, items: Sequence[Any], flags: int, is_first: bool, is_last: bool) -> _Part:
        """Return a sequence of items. `is_first`, `is_last`: nothing is before it, or after it."""
        begin, end = 0, len(items)
        while is_first and begin < end and _name(items[begin]) == "AT" and "BEGINNING" in str(items[begin][1]):
            begin += 1
        while is_last and begin < end and _name(items[end - 1]) == "AT" and "END" in str(items[end - 1][1]):
            end -= 1
        parts = [
            self._item(item, flags, is_first and k == begin, is_last and k == end - 1)
            for k, item in enumerate(items[begin:end], begin)
        ]
        return functools.reduce(lambda after, before: self._joined(before, after), reversed(parts), _EMPTY)

    def _item(self, item: Any, flags: int, is_first: bool, is_last: bool) -> _Part:
        name, value = _name(item), item[1]
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._position(_source(name, value), flags)
        if name == "BRANCH":
            parts = [self._sequence(list(branch), flags, is_first, is_last) for branch in value[1]]
            return _Part(
                any(part.nullable for part in parts),
                tuple(p for part in parts for p in part.first),
                tuple(p for part in parts for p in part.last),
            )
        if name == "SUBPATTERN":
            _, added, removed, inner = value
            return self._sequence(list(inner), (flags | added) & ~removed, is_first, is_last)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, inner = value
            return self._repeat(low, high, inner, flags)
        if name == "AT":
            is_boundary = "BOUNDARY" in str(value)
            what = "a word boundary" if is_boundary else "an anchor that is not at its beginning or end"
        else:
            what = _UNSUPPORTED.get(name, f"the unknown construct {name}")
        raise _error(f"has {what}, which is not supported")

    def _position(self, source: str, flags: int) -> _Part:
        if len(self.atoms) == MAX_POSITIONS:
            raise _error(
                f"is too long: with its repeats written out it has more than {MAX_POSITIONS:,} characters and classes"
            )
        self.atoms.append((source, flags & (re.IGNORECASE | re.DOTALL | re.ASCII)))
        self.follow.append(set())
        return _Part(False, (len(self.atoms) - 1,), (len(self.atoms) - 1,))

    def _joined(self, before: _Part, after: _Part) -> _Part:
        for p in before.last:
            self.follow[p].update(after.first)
        return _Part(
            before.nullable and after.nullable,
            before.first + after.first if before.nullable else before.first,
            after.last + before.last if after.nullable else after.last,
        )

    def _repeat(self, low: Any, high: Any, items: Any, flags: int) -> _Part:
        """Return x{low,high} as low copies, followed by x* or by nested optional copies."""
        low = int(low)
        is_unbounded = str(high) == "MAXREPEAT"
        repeated = _EMPTY
        if is_unbounded:
            loop = self._sequence(list(items), flags, False, False)
            for p in loop.last:
                self.follow[p].update(loop.first)
            repeated = loop._replace(nullable=loop.nullable or low == 0)
            low -= 1  # the loop itself is one copy
        else:
            for _ in range(int(high) - low):
                copy = self._sequence(list(items), flags, False, False)
                if not copy.first:
                    break
                repeated = self._joined(copy, repeated)._replace(nullable=True)
        for _ in range(low):
            copy = self._sequence(list(items), flags, False, False)
            if not copy.first:
                break
            repeated = self._joined(copy, repeated)
        return repeated


def _name(item: Any) -> str:
    return str(item[0])


def _source(name: str, value: Any) -> str:
    """Return the source of a regular expression for one character from its node in the tree of the parser."""
    if name == "ANY":
        return "."
    if name != "IN":
        return f"[{'^' if name == 'NOT_LITERAL' else ''}\\U{value:08x}]"
    source = ""
    for kind, content in value:
        if str(kind) == "NEGATE":
            source += "^"
        elif str(kind) == "LITERAL":
            source += f"\\U{content:08x}"
        elif str(kind) == "RANGE":
            source += f"\\U{content[0]:08x}-\\U{content[1]:08x}"
        else:
            source += _CATEGORIES[str(content).removeprefix("CATEGORY_")]
    return f"[{source}]"


@functools.cache
def _all_characters() -> str:
    """Return all code points except surrogates: the characters of valid UTF-8."""
    codes = np.arange(0x110000, dtype="<u4")
    return codes[(codes < 0xD800) | (codes > 0xDFFF)].tobytes().decode("utf-32-le")


def _members(source: str, flags: int, symbols: str) -> Runs:
    """Return the ranges of symbols that a regular expression for one character matches."""
    literal = re.fullmatch(r"\[\\U([0-9a-f]{8})\]", source)
    if literal and not flags & re.IGNORECASE:
        at = symbols.find(chr(int(literal[1], 16)))
        return ((at, at + 1),) if at >= 0 else ()
    return tuple(match.span() for match in re.compile(f"(?:{source})+", flags).finditer(symbols))


# ---- from positions to states over characters ----


@dataclass(frozen=True)
class _States:
    """An automaton over characters. The state 0 is the initial one.

    Attributes:
        targets: (S, C) int32, the state after a character of each class, or NEVER. The last class has the characters
            that the expression does not contain.
        accepting: (S,) in which states a text matches.
        classes: (number of symbols,) int32, the class of each.
    """

    targets: NDArray[np.int32]
    accepting: NDArray[np.bool_]
    classes: NDArray[np.int32]


def _classes(atoms: Sequence[tuple[str, int]], symbols: str) -> tuple[list[list[int]], NDArray[np.int32], int]:
    """Divide the symbols into classes that no atom distinguishes.

    Returns:
        The classes of each atom; the class of each symbol; the number of classes, of which the last has the symbols
        that no atom contains.
    """
    members = [_members(source, flags, symbols) for source, flags in atoms]
    cuts = np.unique([0, len(symbols), *(at for runs in members for run in runs for at in run)])
    columns: list[list[int]] = [[] for _ in range(len(cuts) - 1)]
    for atom, runs in enumerate(members):
        for first, end in runs:
            for column in range(*np.searchsorted(cuts, (first, end)).tolist()):
                columns[column].append(atom)
    numbers: dict[tuple[int, ...], int] = {}
    of_column = [numbers.setdefault(tuple(column), len(numbers)) for column in columns if column]
    found = iter(of_column)
    of_range = [next(found) if column else len(numbers) for column in columns]
    of_atom: list[list[int]] = [[] for _ in atoms]
    for atoms_of_class, number in numbers.items():
        for atom in atoms_of_class:
            of_atom[atom].append(number)
    return of_atom, np.repeat(np.array(of_range, np.int32), np.diff(cuts)), len(numbers) + 1


def _states(positions: _Positions, symbols: str) -> _States:
    """Return the states of an expression: the sets of positions that may come next, and whether the text matches."""
    atoms = list(dict.fromkeys(positions.atoms))
    classes_of, classes, count = _classes(atoms, symbols)
    numbers = {atom: k for k, atom in enumerate(atoms)}
    atom_of = [numbers[atom] for atom in positions.atoms]
    last = set(positions.whole.last)
    start = (frozenset(positions.whole.first), positions.whole.nullable)
    found = {start: 0}
    rows: list[NDArray[np.int32]] = []
    waiting, work = deque([start]), 0
    while waiting:
        following: dict[int, set[int]] = {}  # class → the positions after a character of the class
        ends: set[int] = set()
        for p in waiting.popleft()[0]:
            for number in classes_of[atom_of[p]]:
                following.setdefault(number, set()).update(positions.follow[p])
                work += 1 + len(positions.follow[p])
                if p in last:
                    ends.add(number)
        row = np.full(count, NEVER, np.int32)
        for number, after in following.items():
            state = (frozenset(after), number in ends)
            if state not in found:
                found[state] = len(found)
                waiting.append(state)
            row[number] = found[state]
        rows.append(row)
        if len(found) > MAX_STATES or len(found) * count > MAX_ENTRIES or work > MAX_WORK:
            raise _error("is too complex: use fewer or shorter repeats")
    return _States(np.array(rows), np.array([accepts for _, accepts in found]), classes)


# ---- from states to an automaton over the symbols of the vocabulary ----


def _over_characters(states: _States, allowed: NDArray[np.bool_] | None, boundary: int | None) -> Automaton:
    other = states.targets.shape[1] - 1
    classes = states.classes.copy()
    if boundary is not None:
        classes[boundary] = other
    if allowed is not None:
        classes[~allowed] = other + 1
    banned = np.full((len(states.targets), 1), NEVER, np.int32)
    may = np.ones(other + 2, bool)
    may[other + 1] = False
    return _finished(np.concatenate([states.targets, banned], 1), states.accepting, classes, may)


def _over_bytes(states: _States, transitions: NDArray[np.uint8], boundary: int | None) -> Automaton:
    """Return the automaton over the bytes of the characters.

    The table of a state has 64 entries for each byte that begins a character of several bytes. Equal tables are one
    state, so that the automaton stays small.
    """
    count = len(states.targets)
    code_classes = np.full(0x110000, states.targets.shape[1] - 1, np.int32)
    code_classes[code_points(_all_characters())] = states.classes
    blocks, block_of = _distinct(code_classes.reshape(-1, 64))
    pages, page_of = _distinct(block_of.reshape(-1, 64))  # rows of 64 blocks
    table: list[NDArray[np.int32]] = []  # the rows of the states after `count` + 8
    numbers: dict[bytes, int] = {}

    def state_of(row: NDArray[np.int32]) -> int:
        """Return the state with these transitions (64,) for the bytes 0x80 to 0xBF."""
        if (row == NEVER).all():
            return NEVER
        number = numbers.setdefault(row.tobytes(), count + 8 + len(numbers))
        if number == count + 8 + len(table):
            table.append(np.full(256, NEVER, np.int32))
            table[-1][0x80:0xC0] = row
            if 256 * len(table) > MAX_ENTRIES:
                raise _error("is too complex for a model of bytes: use fewer or shorter repeats")
        return number

    follows = np.full((count + 8, 256), NEVER, np.int32)
    for state, target in enumerate(states.targets):
        of_block = np.array([state_of(row) for row in target[blocks]], np.int32)
        of_page = np.array([state_of(row) for row in of_block[pages]], np.int32)
        follows[state, :0x80] = target[code_classes[:0x80]]
        follows[state, 0xC2:0xE0] = of_block[block_of[2:0x20]]
        follows[state, 0xE0:0xF0] = of_page[page_of[:16]]
        follows[state, 0xE0] = state_of(np.where(np.arange(64) < 32, NEVER, of_block[pages[page_of[0]]]))
        of_plane = np.full((5, 64), NEVER, np.int32)
        of_plane.ravel()[16 : len(page_of)] = of_page[page_of[16:]]  # the first 16 would be overlong
        follows[state, 0xF0:0xF5] = [state_of(row) for row in of_plane]
    begun = np.where(transitions == utf8.NEVER, NEVER, transitions.astype(np.int32) + count)[1:]
    follows[count + 1 :] = np.where(begun == count, 0, begun)
    follows = np.concatenate([follows, np.array(table, np.int32).reshape(-1, 256)])
    may = (transitions != utf8.NEVER).any(axis=0)
    follows[:, ~may] = NEVER
    if boundary is not None:
        follows[:count, boundary] = NEVER
    accepting = np.zeros(len(follows), bool)
    accepting[:count] = states.accepting
    return _finished(follows, accepting, np.arange(256, dtype=np.int32), transitions[0] != utf8.NEVER, end=count)


def _distinct(rows: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the distinct rows of a table, and for each row the number of the distinct row that equals it."""
    numbers: dict[bytes, int] = {}
    found = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
    return np.frombuffer(b"".join(numbers), rows.dtype).reshape(len(numbers), -1), np.array(found, rows.dtype)


def _finished(
    follows: NDArray[np.int32],
    accepting: NDArray[np.bool_],
    classes: NDArray[np.int32],
    may: NDArray[np.bool_],
    end: int | None = None,
) -> Automaton:
    """Add the state `end`, and remove what leads to no accepting state.

    Args:
        follows: (S, C) the states after symbols of each class.
        accepting: (S,) in which states a text matches.
        classes: (V,) the class of each symbol.
        may: (C,) the classes that may be sampled where a text may end.
        end: the number of the state `end`, whose row in `follows` is not used; None adds a row.
    """
    if end is None:
        end = len(follows)
        follows = np.concatenate([follows, np.full((1, follows.shape[1]), NEVER, np.int32)])
        accepting = np.append(accepting, False)
    used = np.zeros(follows.shape[1], bool)
    used[classes] = True
    follows[:, ~used] = NEVER
    distances = _distances(follows, accepting)
    follows = np.where((follows != NEVER) & (distances[follows] != FAR), follows, np.int32(NEVER))
    ending = accepting.copy()
    ending[end] = True
    follows[np.ix_(ending, may)] = np.where(follows[np.ix_(ending, may)] == NEVER, end, follows[np.ix_(ending, may)])
    distances[end] = 0
    return Automaton(follows.astype(np.int32), classes, distances, end)


def _distances(follows: NDArray[np.int32], accepting: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the fewest symbols from each state to an accepting one, (S,); FAR if there is no way."""
    before: list[list[int]] = [[] for _ in follows]
    for state, row in enumerate(follows):
        for after in np.unique(row[row != NEVER]).tolist():
            before[after].append(state)
    distances = np.full(len(follows), FAR, np.int32)
    distances[accepting] = 0
    waiting = deque(np.flatnonzero(accepting).tolist())
    while waiting:
        state = waiting.popleft()
        for previous in before[state]:
            if distances[previous] == FAR:
                distances[previous] = distances[state] + 1
                waiting.append(previous)
    return distances

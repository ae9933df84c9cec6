"""Vocabularies, compared with sorted(set(text)) and str.index of Python."""

from __future__ import annotations

import re
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlstm.errors import CorpusError, UnknownSymbols
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
EVERY = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)


@given(TEXTS)
def test_symbols_are_the_sorted_code_points_and_ids_their_ranks(text: str) -> None:
    vocabulary = Vocabulary.of(text)
    symbols = "".join(sorted(set(text)))
    assert vocabulary.symbols == symbols
    assert len(vocabulary) == len(symbols)
    ids = vocabulary.encode(text)
    assert ids.tolist() == [symbols.index(c) for c in text]
    assert ids.dtype == vocabulary.dtype


@pytest.mark.fault("R65")
@given(TEXTS)
def test_decoding_the_encoded_text_gives_the_same_text(text: str) -> None:
    vocabulary = Vocabulary.of(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.decode(vocabulary.encode(text).tolist()) == text


@pytest.mark.fault("R65")
def test_characters_that_look_alike_have_different_ids() -> None:
    text = "\ufeffé e\u0301\r\n\n\r\x00\u2028\u2029 ﬁ fi Å Å 👩‍👩‍👧 \U0010ffff"
    vocabulary = Vocabulary.of(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert set(vocabulary.symbols) == set(text)


@pytest.mark.parametrize(("size", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_ids_have_the_smallest_type_that_holds_them(size: int, dtype: str) -> None:
    text = EVERY[:size]
    ids = Vocabulary.of(text).encode(text)
    assert ids.dtype == np.dtype(dtype)
    assert np.array_equal(ids, np.arange(size))


@pytest.mark.fault("R67")
def test_all_of_unicode_is_a_vocabulary() -> None:
    vocabulary = Vocabulary.of(EVERY)
    assert len(vocabulary) == 1_112_064
    assert vocabulary.symbols == EVERY
    assert vocabulary.decode(vocabulary.encode(EVERY[::-1])) == EVERY[::-1]


@pytest.mark.fault("R71")
@given(TEXTS, TEXTS)
def test_a_character_outside_the_vocabulary_is_always_an_error(known: str, text: str) -> None:
    vocabulary = Vocabulary.of(known)
    if set(text) <= set(known):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    else:
        with pytest.raises(UnknownSymbols):
            vocabulary.encode(text)


@pytest.mark.fault("R71")
def test_unknown_symbols_are_listed_escaped_with_their_counts() -> None:
    vocabulary = Vocabulary.of("abc")
    with pytest.raises(UnknownSymbols) as caught:
        vocabulary.encode("a\x1b\x1bb\n☃c☃☃\u202e")
    assert str(caught.value) == (
        "4 different characters are not in the model's vocabulary: '☃' × 3, '\\x1b' × 2, '\\x0a' × 1, '\\u202e' × 1;"
        " choose unknown skip or replace"
    )
    with pytest.raises(UnknownSymbols, match=r"^1 character is not in .* vocabulary: 'd' × 300000;"):
        vocabulary.encode("abcd" * 300_000)
    with pytest.raises(UnknownSymbols, match=r"26 different .*'A' × 1, .*'J' × 1 and 16 more;"):
        vocabulary.encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    with pytest.raises(UnknownSymbols, match=r"'\\udc80' × 1"):  # from a command line that is not UTF-8
        vocabulary.encode("a\udc80")


@pytest.mark.fault("R71")
@given(st.text("abcxyz☃", max_size=40))
def test_unknown_symbols_are_skipped_or_replaced_and_counted(text: str) -> None:
    vocabulary = Vocabulary.of(" abc")
    expected = {symbol: text.count(symbol) for symbol in "xyz☃" if symbol in text}
    ids, foreign = vocabulary.encode_known(text, "skip")
    assert (vocabulary.decode(ids), foreign) == (re.sub("[^abc]", "", text), expected)
    ids, foreign = vocabulary.encode_known(text, "replace")
    assert (vocabulary.decode(ids), foreign) == (re.sub("[^abc]", " ", text), expected)


def test_unknown_symbols_are_skipped_across_blocks() -> None:
    ids, foreign = Vocabulary.of("ab").encode_known("axb" * 200_000, "skip")
    np.testing.assert_array_equal(ids, np.tile([0, 1], 200_000))
    assert foreign == {"x": 200_000}


def test_the_replacement_is_the_first_of_replacement_character_question_mark_and_space() -> None:
    for symbols, expected in (("\n ?a\ufffd", "\ufffd"), ("\n ?a", "?"), ("\n a", " "), ("\na", "\n")):
        assert Vocabulary.of(symbols).replacement == expected


def test_the_symbol_beyond_the_last_is_unknown_in_every_type() -> None:
    for size in (1, 255, 256, 257, 65535, 65536, 65537):
        vocabulary = Vocabulary.of(EVERY[:size])
        for unknown in (EVERY[size], EVERY[-1]):
            with pytest.raises(UnknownSymbols):
                vocabulary.encode(unknown)


@pytest.mark.parametrize("ids", [[3], [-1], [0, 1, 2, 3], [2**40], np.array([255], dtype=np.uint8)])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        Vocabulary.of("abc").decode(ids)


def test_an_empty_text_has_no_ids() -> None:
    assert Vocabulary.of("abc").decode([]) == ""
    assert Vocabulary.of("abc").encode("").tolist() == []


@pytest.mark.parametrize("text", ["", "\ud800", "a\udfffb"])
def test_an_empty_text_and_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(CorpusError):
        Vocabulary.of(text)


@given(TEXTS)
def test_a_vocabulary_is_equal_after_a_round_trip_through_json(text: str) -> None:
    vocabulary = Vocabulary.of(text)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again == vocabulary
    assert hash(again) == hash(vocabulary)
    assert again != Vocabulary.of(text + EVERY[:200] + "\U0010fffe")


@pytest.mark.fault("R25")
@pytest.mark.parametrize(
    "values",
    [
        None,
        "abc",
        {},
        {"symbols": "abc"},
        {"kind": "bytes", "symbols": "abc"},
        {"kind": "code points", "symbols": "abc", "more": 1},
        {"kind": "code points", "symbols": ["a", "b"]},
        {"kind": "code points", "symbols": ""},
        {"kind": "code points", "symbols": "aab"},
        {"kind": "code points", "symbols": "ba"},
        {"kind": "code points", "symbols": "a\ud800"},
        {"kind": "code points", "symbols": EVERY + EVERY},
    ],
)
def test_an_invalid_json_value_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary.from_json(values)


def test_encoding_needs_little_more_than_the_ids() -> None:
    text = "0123456789" * 400_000
    vocabulary = Vocabulary.of(text)
    tracemalloc.start()
    vocabulary.encode(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 * len(text) + 8_000_000


def test_a_union_has_every_symbol_once() -> None:
    assert Vocabulary.of("db").union(Vocabulary.of("bca"), Vocabulary.of("é")).symbols == "abcdé"
    assert Vocabulary.of("ab").union().symbols == "ab"


def test_the_byte_vocabulary_of_a_text_has_all_bytes_and_no_boundary() -> None:
    found = ByteVocabulary.of("abc")
    assert isinstance(found, ByteVocabulary)
    assert (len(found), found.boundary) == (256, None)
    assert found == ByteVocabulary.of("") == ByteVocabulary.of_seen(np.zeros(1_114_112, bool)) == ByteVocabulary()

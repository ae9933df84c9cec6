"""Each feature has the values that a reader of the text expects."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm.explain import features
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary


def marks(text: str, name: str) -> str:
    """Return the values of a feature below the characters of a text, 0 as a dot."""
    values = dict(features._all(["" if char == "|" else char for char in text]))[name]
    return "".join("." if not value else str(int(value)) for value in values)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("inside quotes", 'a "bc" d', "..111..."),
        ("inside quotes", "it's 'so' x", ".....111..."),
        ("inside quotes", "“a” «b»", "11..11."),
        ("inside quotes", '"a|b"c', "11..11"),  # a document ends a quotation, and so does an empty line
        ("inside quotes", '"a\n\nb', "111.."),
        ("bracket depth", "f(a[1])x)", ".11221..."),
        ("inside ( )", "f(a[1])x", ".11111.."),
        ("inside [ ]", "f(a[1])x", "...11..."),
        ("bracket depth", "((|a", "12.."),
        ("column", "ab\ncde\n", "12.123."),
        ("column", "ab|cd", "12.12"),
        ("indentation", "  a\n\tb\nc", "122.88.."),
        ("in the indentation", "  a b\n c", "11....1."),
        ("empty line", "a\n\n\nb", "..11."),
        ("start of a line", "a\nb\n\nc", "1.1..1"),
        ("in a word", "ab 1c", "11..1"),
        ("position in the word", "abc de", "123.12"),
        ("first letter of a word", "abc de", "1...1."),
        ("in a word with a capital", "Abc de", "111..."),
        ("in a word of capitals", "ABc DE F", ".1...1.."),
        ("in a number", "a12 3", ".11.1"),
        ("in a comment", "a # b\nc // d\ne", "..111....111.."),
        ("in a comment", "a/*b\n*/c", "..11111."),
        ("words since the start of the sentence", "a b. c", "112..1"),
        ("capital letter", "aBC", ".11"),
        ("vowel", "abE", "1.1"),
        ("punctuation", "a,b!", ".1.1"),
        ("white space", "a b\n", ".1.1"),
        ("hiragana", "aあ猫", ".1."),
        ("han character", "aあ猫", "..1"),
        ("before a space", "ab c", ".1.."),
        ("before a line break", "ab\n", ".1."),
        ("character b", "abb", ".11"),
        ("position in the document", "ab|cd", "12.12"),
        ("boundary of documents", "ab|cd", "..1.."),
    ],
)
def test_a_feature_has_the_expected_values(name: str, text: str, expected: str) -> None:
    assert marks(text, name) == expected


def test_only_features_that_vary_in_both_halves_are_kept() -> None:
    vocabulary = Vocabulary.of("ab \n")
    text = "ab a" * 50 + "\n" + "ab a" * 50
    found = features.features(vocabulary, vocabulary.encode(text))
    assert "space" in found.names
    assert "line break" not in found.names, "it occurs once"
    assert "inside quotes" not in found.names, "it never occurs"
    assert found.values.shape == (len(found.names), len(text))
    nothing = features.features(vocabulary, vocabulary.encode("a" * 100))
    assert "column" in nothing.names
    assert "character a" not in nothing.names, "it is constant"


def test_the_symbols_of_a_character_of_several_bytes_have_its_features() -> None:
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode("(é) \udcff" * 50)
    chars, sizes = features.characters(vocabulary, ids)
    assert (chars[:5], sizes[:5].tolist()) == (["(", "é", ")", " ", "\udcff"], [1, 2, 1, 1, 1])
    found = features.features(vocabulary, ids)
    values = dict(zip(found.names, found.values, strict=True))
    assert values["inside ( )"][:6].tolist() == [1, 1, 1, 0, 0, 0]
    assert values["byte of a longer character"][:6].tolist() == [0, 1, 1, 0, 0, 0]
    assert values["position in the bytes of a character"][:6].tolist() == [0, 0, 1, 0, 0, 0]


def test_boundaries_of_documents_are_single_symbols() -> None:
    for boundary in ("\n", "<end>"):
        vocabulary = Vocabulary.of("ab").with_boundary(boundary)
        ids = vocabulary.encode(f"{boundary}ab{boundary}b{boundary}")
        assert features.characters(vocabulary, ids)[0] == ["", "a", "b", "", "b", ""]
    vocabulary = ByteVocabulary("\n")
    assert features.characters(vocabulary, vocabulary.encode("\né\n"))[1].tolist() == [1, 2, 1]


def test_an_empty_text_has_no_feature() -> None:
    vocabulary = Vocabulary.of("ab")
    assert features.features(vocabulary, np.zeros(0, int)).values.shape == (0, 0)

"""The n-gram models give the probabilities of a naive implementation, and each character has the right kind."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from charlstm.explain import lookup, ngram
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.models import real_ids


def naive(training: str, text: str, size: int, order: int) -> list[float]:
    """Return the surprisals in bits of all characters but the first, by Witten-Bell interpolation with dictionaries."""
    following: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for n in range(order):
        for i in range(n, len(training)):
            following[training[i - n : i]][training[i]] += 1

    def share(context: str, char: str) -> float:
        lower = share(context[1:], char) if context else 1 / size
        counts = following[context]
        return (counts[char] + len(counts) * lower) / (counts.total() + len(counts)) if counts else lower

    return [-float(np.log2(share(text[max(0, i - order + 1) : i], text[i]))) for i in range(1, len(text))]


@pytest.mark.parametrize("table", [lookup.MAX_TABLE, 0])
def test_surprisals_are_those_of_a_naive_implementation(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MAX_TABLE", table)
    monkeypatch.setattr(ngram, "MAX_TABLE", table)
    ids, vocabulary = real_ids(6000)
    training, text = ids[:5000], ids[5000:5600]
    found = ngram.surprisal(training, text, len(vocabulary), 6)
    assert found.shape == (6, 600)
    assert np.isnan(found[:, 0]).all()
    for order in range(1, 7):
        expected = naive(vocabulary.decode(training), vocabulary.decode(text), len(vocabulary), order)
        np.testing.assert_allclose(found[order - 1, 1:], expected, rtol=1e-9)
    wrong = naive(vocabulary.decode(training), vocabulary.decode(text), len(vocabulary), 4)
    assert not np.allclose(found[4, 1:], wrong), "another order is told apart"


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_all_symbols_sum_to_one(order: int) -> None:
    training = np.random.default_rng(1).integers(0, 5, 300)
    total = 0.0
    for symbol in range(6):  # symbol 5 does not occur in the training text
        text = np.array([1, 2, 3, 4, 0, symbol])
        total += 2 ** -ngram.surprisal(training, text, 6, order)[order - 1, -1]
    assert total == pytest.approx(1)


def test_a_text_with_unseen_contexts_and_one_with_two_symbols_are_scored() -> None:
    found = ngram.surprisal(np.array([0, 0, 0]), np.array([1, 1, 1]), 4, 3)
    np.testing.assert_allclose(found[:, 1:], -np.log2(0.25 / 4), rtol=1e-12)  # N = 3, D = 1: (0 + 1/4) / 4
    assert ngram.surprisal(np.array([0]), np.array([0, 1]), 2).shape == (8, 2)


def kinds_of(text: str) -> list[str]:
    return [ngram.KINDS[k] for k in ngram._kinds(list(text))[0]]


def test_each_character_has_the_right_kind_and_distance() -> None:
    text = 'He (27) said "no"\n, 猫'
    kinds = kinds_of(text)
    expected = {
        0: "first letter of a word",
        1: "letter within a word",
        2: "space",
        3: "punctuation",
        4: "digit",
        6: "closing bracket",
        13: "punctuation",
        14: "first letter of a word",
        16: "closing quotation mark",
        17: "line break",
        18: "punctuation",
    }
    assert {place: kinds[place] for place in expected} == expected
    distances = ngram._kinds(list(text))[1]
    assert {place: int(distances[place]) for place in (6, 16, 17, 0, 18)} == {6: 3, 16: 3, 17: 17, 0: 0, 18: 0}
    assert "closing quotation mark" not in kinds_of("it's John's")
    assert kinds_of("say 'it' now")[7] == "closing quotation mark"


def test_means_by_kind_and_distance_cover_every_scored_character() -> None:
    ids, vocabulary = real_ids(8000)
    bits = np.random.default_rng(1).random(1000)
    found = ngram.comparison(vocabulary, ids[:7000], ids[7000:], bits, 3)
    assert found.train_chars == 7000
    assert found.kind_count.sum() == 999
    total = np.nansum(found.kind_bits * found.kind_count[:, None], axis=0)
    np.testing.assert_allclose(total / 999, found.bits_per_char)
    np.testing.assert_allclose(found.bits_per_char[-1], bits[1:].mean())
    breaks = found.distances[2]
    assert breaks.name == "line break"
    assert breaks.count.sum() == found.kind_count[ngram.KINDS.index("line break")]


def test_bytes_have_the_kind_of_their_character() -> None:
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode("aé (ß)\n")
    found = ngram.comparison(vocabulary, ids, ids, np.zeros(len(ids)), 2)
    counts = dict(zip(found.kinds, found.kind_count.tolist(), strict=True))
    assert counts["letter within a word"] == 2
    assert counts["first letter of a word"] == 2
    assert counts["closing bracket"] == counts["line break"] == 1


def test_boundaries_of_documents_end_quotations_and_brackets() -> None:
    vocabulary = Vocabulary.of('ab"()').with_boundary("\n")
    ids = vocabulary.encode('\n(a"b\n)"ab\n')
    found = ngram.comparison(vocabulary, ids, ids, np.zeros(len(ids)), 1)
    assert found.distances[0].count.sum() == found.distances[1].count.sum() == 0

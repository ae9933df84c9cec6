"""Records of texts and base models: what is written is read again, and invalid entries never raise an error."""

from __future__ import annotations

from typing import Any

import pytest

from charlstm.provenance import BaseRecord, CorpusRecord, TextRecord

DEV = TextRecord(("dev.txt",), 50, "1" * 64, "latin-1")
RECORD = CorpusRecord(("a.txt", "-"), 1000, "0" * 64, valid_share=0.2, valid_chars=300, validation=DEV)


def test_a_written_record_is_read_unchanged() -> None:
    assert CorpusRecord.from_json(RECORD.to_json()) == RECORD
    assert BaseRecord.from_json(BaseRecord("run/best", "2" * 64).to_json()) == BaseRecord("run/best", "2" * 64)


def test_the_default_encoding_is_not_written() -> None:
    """Files keep the bytes that earlier versions wrote."""
    assert "encoding" not in RECORD.to_json()
    assert RECORD.to_json()["validation"]["encoding"] == "latin-1"


def test_entries_that_older_versions_did_not_store_get_default_values() -> None:
    found = CorpusRecord.from_json({"names": ["a.txt"], "chars": 9, "sha256": "0"})
    assert (found.valid_share, found.valid_chars, found.validation, found.encoding) == (0.1, 0, None, "utf-8")


@pytest.mark.parametrize("value", [None, 3, "x", [], {}])
def test_a_record_of_another_type_is_empty(value: object) -> None:
    assert CorpusRecord.from_json(value) == CorpusRecord()
    assert TextRecord.from_json(value) == TextRecord()
    assert BaseRecord.from_json(value) == BaseRecord(None, None)


@pytest.mark.parametrize(
    ("entry", "value", "name", "expected"),
    [
        ("names", "a.txt", "names", ()),
        ("names", ["a.txt", 7], "names", ()),
        ("chars", "many", "chars", None),
        ("chars", True, "chars", None),
        ("chars", -1, "chars", None),
        ("chars", 2**60, "chars", None),
        ("sha256", 5, "sha256", None),
        ("encoding", ["utf-8"], "encoding", "utf-8"),
        ("valid_share", "\x1b", "valid_share", None),
        ("valid_share", 0.95, "valid_share", None),
        ("valid_chars", -1, "valid_chars", None),
        ("validation", "dev.txt", "validation", TextRecord()),  # a separate text, which is unknown; not None
    ],
)
def test_an_invalid_entry_is_ignored_and_the_others_are_kept(
    entry: str, value: Any, name: str, expected: object
) -> None:
    found = CorpusRecord.from_json({**RECORD.to_json(), entry: value})
    assert getattr(found, name) == expected
    kept = "chars" if entry == "names" else "names"
    assert getattr(found, kept) == getattr(RECORD, kept)

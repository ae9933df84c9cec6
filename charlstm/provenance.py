"""What a checkpoint records of its origin: the texts that a model was trained on, and the model that it was tuned from.

A checkpoint stores these records as JSON objects among its facts. An untrusted file may hold anything there, and
its model can still be used. Therefore reading a record never fails: an entry that is missing or has a wrong type
is None (or empty), and code that needs the entry reports it as missing. All strings are unescaped: use
`terminal.escape` before you print one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from charlstm.config import TrainingOptions
from charlstm.errors import UsageError

if TYPE_CHECKING:
    from charlstm.text.corpus import Corpus

ENCODING = "utf-8"  # of a text whose record names no encoding


@dataclass(frozen=True)
class TextRecord:
    """The identity of a text.

    Attributes:
        names: the sources as the user gave them: files, folders, named corpora, or "-" for stdin. Empty if unknown.
        chars: number of symbols (characters or bytes), or None if unknown.
        sha256: hexadecimal digest of the text in UTF-8 or of its bytes, or None if unknown.
        encoding: the encoding that the sources were decoded with.
    """

    names: tuple[str, ...] = ()
    chars: int | None = None
    sha256: str | None = None
    encoding: str = ENCODING

    @classmethod
    def of(cls, corpus: Corpus) -> TextRecord:
        """Return the record of a text that has been read."""
        return cls(corpus.names, len(corpus.ids), corpus.sha256, corpus.encoding)

    @classmethod
    def from_json(cls, values: object) -> TextRecord:
        """Return the record that a JSON value describes. A value that is not an object gives an empty record."""
        return cls(**_text_entries(values if isinstance(values, Mapping) else {}))

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object. UTF-8 is the default encoding and is left out."""
        encoding = {} if self.encoding == ENCODING else {"encoding": self.encoding}
        return {"names": list(self.names), "chars": self.chars, "sha256": self.sha256, **encoding}


@dataclass(frozen=True)
class CorpusRecord(TextRecord):
    """The identity of a training text, and of the text that the validations of its run scored.

    Attributes:
        valid_share: share of the text, at its end, that was held out for validation, from 0 to 0.9.
        valid_chars: number of symbols that a validation scores at most; 0 means all. If this entry or `valid_share` is
            invalid, both are None.
        validation: a separate validation text, or None if the validations scored the held-out part.
    """

    valid_share: float | None = TrainingOptions.valid_share
    valid_chars: int | None = 0
    validation: TextRecord | None = None

    @classmethod
    def from_json(cls, values: object) -> CorpusRecord:
        """Return the record that a JSON value describes.

        Entries that older versions did not store have the values that those versions used: a `valid_share` of 0.1 and a
        `valid_chars` of 0.
        """
        values = values if isinstance(values, Mapping) else {}
        validation = values.get("validation")
        share, chars = values.get("valid_share", cls.valid_share), values.get("valid_chars", cls.valid_chars)
        try:
            TrainingOptions(valid_share=share, valid_chars=chars)
        except UsageError:
            share = chars = None
        return cls(
            **_text_entries(values),
            valid_share=share,
            valid_chars=chars,
            validation=None if validation is None else TextRecord.from_json(validation),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {
            **super().to_json(),
            "valid_share": self.valid_share,
            "valid_chars": self.valid_chars,
            "validation": None if self.validation is None else self.validation.to_json(),
        }


@dataclass(frozen=True)
class BaseRecord:
    """The identity of the model that a run was fine-tuned from.

    Attributes:
        checkpoint: path of its file as the user gave it, or None for a model that was not loaded from a file.
        sha256: hexadecimal `Model.digest`, or None if unknown.
    """

    checkpoint: str | None
    sha256: str | None

    @classmethod
    def from_json(cls, values: object) -> BaseRecord:
        """Return the record that a JSON value describes. A value that is not an object gives an empty record."""
        values = values if isinstance(values, Mapping) else {}
        return cls(_string(values.get("checkpoint")), _string(values.get("sha256")))

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {"checkpoint": self.checkpoint, "sha256": self.sha256}


def _text_entries(values: Mapping[str, Any]) -> dict[str, Any]:
    names, chars = values.get("names"), values.get("chars")
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return {
        "names": tuple(names) if are_names and names else (),
        "chars": chars if type(chars) is int and 0 <= chars <= 2**53 else None,
        "sha256": _string(values.get("sha256")),
        "encoding": _string(values.get("encoding")) or ENCODING,
    }


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None

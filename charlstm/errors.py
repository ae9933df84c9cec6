"""The exceptions of charlstm.

    CharlstmError            base class; the command line prints the message and exits with status 1
    ├── UsageError           an invalid argument or option, or options that exclude each other (exit status 2)
    ├── CorpusError          a text that cannot be read, decoded or split
    │   └── UnknownSymbols   a text or prompt with characters outside the vocabulary of the model
    ├── CheckpointError      a checkpoint that cannot be written or read, or that is invalid
    │   └── RunBusy          another process is training into the same run directory
    ├── ResumeError          a saved run that cannot be continued with the given text or options
    ├── DivergenceError      a loss or gradient that is NaN or infinite
    └── DownloadError        a named corpus that could not be downloaded

A message is one line: what is wrong, the value as it was given, and what to do next. Text that comes from a file
(names, symbols) must be escaped with `terminal.escape` before it becomes part of a message.

A library module does not know how its caller spells an option. Where a message names an option, the name is passed as
a `Field`. `str(error)` shows the name of the field; the command line shows its flag.
"""

from __future__ import annotations

from collections.abc import Callable


class Field(str):
    """The name of an option within a message: a field of a config dataclass, or a parameter of a public function."""

    __slots__ = ()


class CharlstmError(Exception):
    """Base class of errors caused by user input or by the environment, not by bugs.

    Args:
        *message: the parts of the message, joined without a separator. Names of options are `Field` objects.
        value: the invalid value, where one value is to blame.
        allowed: the allowed values in words, such as "a whole number from 1 to 64".

    Attributes:
        parts: the parts of the message, as given.
        fields: the options that the message names, in order.
        value: as given.
        allowed: as given.
    """

    def __init__(self, *message: str, value: object = None, allowed: str | None = None) -> None:
        super().__init__("".join(message))
        self.parts = message
        self.fields = tuple(part for part in message if isinstance(part, Field))
        self.value = value
        self.allowed = allowed

    def spelled(self, spell: Callable[[Field], str]) -> str:
        """Return the message with each option named by `spell`, which takes the name of a field."""
        return "".join(spell(part) if isinstance(part, Field) else part for part in self.parts)


class UsageError(CharlstmError, ValueError):
    """An argument outside its range, or arguments that contradict each other."""


class CorpusError(CharlstmError):
    """A text that cannot be read or decoded, or that is too short."""


class UnknownSymbols(CorpusError):
    """Characters that are not in the vocabulary of the model."""


class CheckpointError(CharlstmError):
    """A checkpoint that could not be written, or a file that is not a valid checkpoint."""


class RunBusy(CheckpointError):
    """The run directory is locked by a training process that is still running."""


class ResumeError(CharlstmError):
    """A saved training state that does not fit the text or the options that it is resumed with."""


class DivergenceError(CharlstmError):
    """A loss or gradient that is NaN or infinite. The step is not applied: weights and files are unchanged.

    Args:
        *message: as in `CharlstmError`.
        step: the training step, or None outside of training.
        loss: in nats per symbol, if it is known.
        grad_norm: the global norm of the gradient, if it is known.
        value, allowed: as in `CharlstmError`.

    Attributes:
        step, loss, grad_norm: as given.
    """

    def __init__(
        self,
        *message: str,
        step: int | None = None,
        loss: float | None = None,
        grad_norm: float | None = None,
        value: object = None,
        allowed: str | None = None,
    ) -> None:
        super().__init__(*message, value=value, allowed=allowed)
        self.step, self.loss, self.grad_norm = step, loss, grad_norm


class DownloadError(CharlstmError):
    """A named corpus that could not be downloaded, or whose checksum is wrong."""

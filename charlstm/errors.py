"""What charlstm raises when something outside its own code is wrong.

    CharlstmError            every error a user can cause or meet; the command line prints it and exits with 1
    ├── UsageError           an argument or an option that makes no sense (exit status 2); also a ValueError
    ├── CorpusError          a text that cannot be read, decoded or split
    │   └── UnknownSymbols   a text or prompt with characters that the model's vocabulary lacks
    ├── CheckpointError      a checkpoint that cannot be written, read or trusted
    │   └── RunBusy          another process is training into the same run
    ├── ResumeError          a run that cannot go on: other text, other architecture
    ├── DivergenceError      a loss or gradient that is not finite
    └── DownloadError        a named corpus that could not be fetched

Every message is one line that names what was found, what was expected and what to do next. Text that comes from a
file (names, symbols) is escaped by whoever puts it into a message, with `terminal.escape`.
"""


class CharlstmError(Exception):
    """Base of all errors that are the world's and not charlstm's. `str(error)` is one line for the user."""


class UsageError(CharlstmError, ValueError):
    """An argument out of its range, or arguments that contradict each other."""


class CorpusError(CharlstmError):
    """A text that cannot be read as strict UTF-8, or that is too short for what was asked."""


class UnknownSymbols(CorpusError):
    """Characters that are not in the vocabulary."""


class CheckpointError(CharlstmError):
    """A checkpoint that could not be written, or a file that is not a whole and trustworthy checkpoint."""


class RunBusy(CheckpointError):
    """The run's folder is locked by a living trainer."""


class ResumeError(CharlstmError):
    """The saved training state does not fit what it is asked to go on with."""


class DivergenceError(CharlstmError):
    """Training met a loss or a gradient that is not finite; weights and files are as before that step."""


class DownloadError(CharlstmError):
    """A named corpus could not be fetched, or did not have the checksum that it should have."""

"""charlstm: a character-level language model trained in minutes."""

__version__ = "0.1.0"

"""Loads a model of LSTM cells into torch's own modules: `embedding, lstm, projection = load("runs/book")`."""

import torch
from torch import nn

import charlstm


def load(path: str) -> tuple[nn.Embedding, nn.LSTM, nn.Linear]:
    """Return the three modules of a checkpoint; logits = projection(lstm(embedding(ids))[0]) for ids (T, B)."""
    model = charlstm.load(path)
    vocabulary, size, hidden = model.config.vocab_size, model.config.embedding, model.config.hidden
    modules = nn.Embedding(vocabulary, size), nn.LSTM(size, hidden, model.config.layers), nn.Linear(hidden, vocabulary)
    for module, prefix in zip(modules, ("embedding.", "recurrence.", "projection."), strict=True):
        found = {name: values for name, values in model.weights.items() if name.startswith(prefix)}
        module.load_state_dict({name.removeprefix(prefix): torch.tensor(values) for name, values in found.items()})
    return modules

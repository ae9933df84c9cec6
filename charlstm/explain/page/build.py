"""Build the page of an explanation: one HTML file in which the model runs.

The assets in this folder are the body, the style and one script per group of elements. The page reads its data from
the element `charlstm-explain`: base64 of JSON that zlib compressed. It is the object that `Explanation.to_json`
describes, in which

* `text` and `connectivity` are left out, because the page computes them;
* `traces` has only the activation by which the text is coloured first: {layer, unit, quantity, values};
* `top` is {ids, shares, width, count} of the first EARLY symbols: bytes in base64, `width` bytes for each id
  (little-endian) and one for each share;
* `page` is {version, path, parameters, first_bias, checkpoints}. `first_bias` (G·H) is the bias of the first layer if
  the weights of the page contain its sums in a table. `checkpoints` has {step, mean, bits} of each kept checkpoint,
  where `bits` has one byte per symbol, in units of 1/BITS_SCALE.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from charlstm import __version__, terminal
from charlstm.config import UNITS, Precision
from charlstm.errors import CharlstmError
from charlstm.web import page
from charlstm.web.weights import PageModel, page_model

if TYPE_CHECKING:
    from pathlib import Path

    from charlstm.explain.explanation import Explanation
    from charlstm.model import Model

SCRIPTS = (
    "core",
    "charts",
    "trace",
    "read",
    "reader",
    "predictions",
    "units",
    "gates",
    "saturation",
    "gradients",
    "influence",
    "phrase",
    "intervene",
    "sampling",
    "ngrams",
    "history",
    "copying",
    "tour",
    "main",
)
"""The scripts of the page in the order in which they run."""

BITS_SCALE = 24  # one byte of the surprisal of a kept checkpoint is 1/24 bit; the largest is 10.6 bits
MAX_CHECKPOINTS = 6
EARLY = 800  # symbols whose predictions are shown before the page has computed them
_PACKAGE = "charlstm.explain.page"


def build(found: Explanation, model: Model, precision: Precision = "auto") -> str:
    """Return the text of the page, which is to be written as UTF-8.

    Args:
        found: the explanation of a text.
        model: the model that was explained.
        precision: of the weights in the page; 'auto' selects fp32 if they take at most 4 MB, else int8.

    Raises:
        CheckpointError: weights that are NaN or infinite, or too many for a page.
    """
    weights = page_model(model.config, model.vocabulary, model.weights, precision)
    return page.assemble(
        title=f"{found.name}: what the model has learned",
        body=page.asset("page.html", _PACKAGE),
        scripts=[
            *(_without_indentation(page.asset(name)) for name in page.ENGINE),
            *(_without_indentation(page.asset(f"{name}.js", _PACKAGE)) for name in SCRIPTS),
        ],
        styles=[page.asset("style.css", _PACKAGE)],
        data={"charlstm-explain": _compressed(_data(found, model, weights))},
        model=weights,
    )


def _compressed(values: dict[str, Any]) -> str:
    return base64.b64encode(zlib.compress(page.to_json(values).encode(), 9)).decode("ascii")


def _without_indentation(script: str) -> str:
    """Return a script without indentation and lines of comments; no string of the assets spans several lines."""
    lines, is_comment = [], False
    for line in map(str.strip, script.splitlines()):
        is_comment = is_comment or line.startswith("/*")
        if line and not is_comment and not line.startswith("//"):
            lines.append(line)
        is_comment = is_comment and not line.endswith("*/")
    return "\n".join(lines) + "\n"


def _data(found: Explanation, model: Model, weights: PageModel) -> dict[str, Any]:
    values = found.to_json(traced_units=1)
    del values["text"], values["connectivity"]
    quantity = "h" if found.trace.c is None else "c"
    values["traces"] = [
        {"layer": unit["layer"], "unit": unit["unit"], "quantity": quantity, "values": unit[quantity]}
        for unit in values["traces"]
    ]
    for norms in values["gradients"]:
        del norms["c"], norms["positions"]
    if values["units"] is not None:
        del values["units"]["features"]
    values["unit"] = UNITS[values["unit"]]
    top = found.predictions
    kind = np.min_scalar_type(max(1, model.config.vocab_size - 1))
    values["top"] = {
        "ids": _base64(top.top_ids[:EARLY].astype(kind.newbyteorder("<"))),
        "shares": _base64(np.rint(top.top_shares[:EARLY] * 255).astype(np.uint8)),
        "width": kind.itemsize,
        "count": top.top_ids.shape[1],
    }
    values["page"] = {
        "version": __version__,
        "path": "" if model.path is None else terminal.shortened(model.path),
        "parameters": model.config.parameters(),
        "first_bias": _first_bias(model) if weights.header["table"] else [],
        "checkpoints": _checkpoints(found, model),
    }
    return values


def _first_bias(model: Model) -> list[float]:
    """Return the bias (G·H) that `web.weights` adds to the products of the first layer."""
    bias = model.weights["recurrence.bias_ih_l0"].astype(np.float64)
    hidden = model.weights["recurrence.bias_hh_l0"].astype(np.float64)
    if model.config.cell == "gru":  # its last block is multiplied by the reset gate
        hidden = np.where(np.arange(len(hidden)) < 2 * model.config.hidden, hidden, 0)
    return [float(f"{value:.7g}") for value in bias + hidden]


def _checkpoints(found: Explanation, model: Model) -> list[dict[str, Any]]:
    """Return the surprisal of the text in each checkpoint that the run kept, at most MAX_CHECKPOINTS of them."""
    kept = () if found.learning is None else found.learning.kept
    chosen = sorted({round(k) for k in np.linspace(0, len(kept) - 1, MAX_CHECKPOINTS)}) if kept else []
    scored = [(kept[k][0], _bits(kept[k][1], found, model)) for k in chosen]
    return [
        {
            "step": step,
            "mean": round(float(bits.mean()), 4),
            "bits": _base64(np.clip(np.rint(bits * BITS_SCALE), 0, 255).astype(np.uint8)),
        }
        for step, bits in scored
        if bits is not None and np.isfinite(bits).all()
    ]


def _bits(path: Path, found: Explanation, model: Model) -> NDArray[np.float64] | None:
    """Return the surprisal (T − 1,) of the text in an earlier checkpoint; None if it cannot be used."""
    from charlstm.inference import surprisal
    from charlstm.model import load

    try:
        earlier = load(path, precision="fp32")
    except CharlstmError:
        return None
    if earlier.vocabulary != model.vocabulary:
        return None
    return surprisal.bits(earlier.scorer, found.trace.ids)


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")

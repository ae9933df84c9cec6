"""Assemble one HTML file that needs no other file and no network.

A Content-Security-Policy in the page allows its own scripts and styles by their sha256, and nothing else: no request,
no script from a text, no form. Everything that comes from a model or a text is data in JSON, and the scripts insert it
as text, never as HTML. The body is an asset of the package and is written as it is, so no template engine is needed:
the standard library suffices, and the page can be made where only numpy and typer are installed.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from charlstm.web.weights import PageModel

ENGINE = ("text.js", "engine.js", "sampler.js")
"""The scripts of this package that every page with a model contains, in order."""

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def asset(name: str, package: str = "charlstm.web") -> str:
    """Return the text of a file of a package."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


def assemble(
    *,
    title: str,
    body: str,
    scripts: Sequence[str],
    styles: Sequence[str] = (),
    data: Mapping[str, Any],
    model: PageModel | None = None,
) -> str:
    """Return the text of a page, which is to be written as UTF-8.

    Args:
        title: the title of the page. It is escaped.
        body: trusted HTML without scripts and styles.
        scripts: trusted JavaScript. The scripts run in order after the body and the data.
        styles: trusted CSS.
        data: values for JSON by the id of the element that contains them; a script reads one with
            `JSON.parse(document.getElementById(id).textContent)`.
        model: a model for `charlstmEngine.load()`; its elements have the ids charlstm-model and charlstm-weights.

    Raises:
        ValueError: a script or style contains the end tag of its element, or data contains NaN or infinity.
    """
    for tag, sources in (("script", scripts), ("style", styles)):
        for source in sources:
            if f"</{tag}" in source.lower() or "<!--" in source:
                raise ValueError(f"a {tag} must not contain its own end tag or a comment of HTML")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(scripts)}",
            f"style-src {_hashes(styles)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    values = dict(data) if model is None else {**data, "charlstm-model": model.header}
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{html.escape(title)}</title>",
        *(f"<style>{style}</style>" for style in styles),
        "</head>",
        "<body>",
        body,
        *(
            f'<script type="application/json" id="{html.escape(name)}">{to_json(value)}</script>'
            for name, value in values.items()
        ),
    ]
    if model is not None:
        parts.append(f'<script type="text/plain" id="charlstm-weights">{base_85(model.weights)}</script>')
    parts += [*(f"<script>{script}</script>" for script in scripts), "</body>", "</html>", ""]
    return "\n".join(parts)


def to_json(value: Any) -> str:
    """Return a value as JSON that cannot end a script element, in ASCII characters.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def base_85(block: bytes) -> str:
    """Return bytes as text for a script element: five characters for each four bytes, where base64 needs 5⅓.

    A little-endian word of four bytes is five digits, the highest first. The digits 0 to 84 are the characters from
    "(" to "|", with "!" in place of "<".

    Args:
        block: bytes; their number is a multiple of four.
    """
    words = np.frombuffer(block, "<u4")
    digits = np.stack([words // 85**place % 85 for place in (4, 3, 2, 1, 0)], axis=1)
    codes = digits.astype(np.uint8) + ord("(")
    codes[codes == ord("<")] = ord("!")
    return codes.tobytes().decode("ascii")


def _hashes(sources: Iterable[str]) -> str:
    """Return the source expression of a Content-Security-Policy that allows exactly these texts."""
    digests = (base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii") for source in sources)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

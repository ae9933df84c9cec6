"""Put what --help prints into docs/cli.md: `python docs/refresh.py`. A test holds the file to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parent / "cli.md"
BLOCK = re.compile(r"```console\n\$ (charlstm [^\n]*--help)\n.*?```", re.DOTALL)


def page(text: str) -> str:
    """The document with each block of a command replaced by what the command prints in 80 columns."""

    def printed(match: re.Match[str]) -> str:
        command = [sys.executable, "-m", *match[1].split()]
        done = subprocess.run(
            command,
            env={**os.environ, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=True,
            cwd=FILE.parents[1],
        )
        return f"```console\n$ {match[1]}\n{done.stdout.rstrip()}\n```"

    return BLOCK.sub(printed, text)


if __name__ == "__main__":
    FILE.write_text(page(FILE.read_text(encoding="utf-8")), encoding="utf-8")

"""Run charlstm with saves every 0.2 seconds, so that a short run is killed between saves: a program for `torchrun`."""

from __future__ import annotations

import sys

from charlstm.cli.main import run
from charlstm.training import loop

if __name__ == "__main__":
    loop.SAVE_SECONDS = 0.2
    sys.exit(run(sys.argv[1:]))

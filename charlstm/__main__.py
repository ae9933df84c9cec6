"""`python -m charlstm`, and the command `charlstm`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on sys.argv and exit with its status."""
    from charlstm.cli.run import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

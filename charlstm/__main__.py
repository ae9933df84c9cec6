"""`python -m charlstm`, and the command `charlstm`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on sys.argv and exit with its status."""
    try:
        from charlstm.cli.main import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it was imported; later `run` sees to it
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()

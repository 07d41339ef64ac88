"""Runs another module's `main`; it imports nothing itself.

A worker that is spawned or forked from a server imports the main module of its program. That of a benchmark must cost
it nothing: `python -m benchmarks.program MODULE [ARGUMENT ...]`.
"""

import importlib
import sys


def main() -> None:
    """Import the module and call its `main`, which finds its arguments where it would as a program."""
    del sys.argv[0]
    importlib.import_module(sys.argv[0]).main()


if __name__ == "__main__":
    main()

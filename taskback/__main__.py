"""`python -m taskback` is the command `taskback`."""

import sys

from taskback.cli import main

if __name__ == "__main__":  # spawned workers import this file too, under another name
    sys.exit(main())

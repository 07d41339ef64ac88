"""The command `taskback`: runs a file of tasks through a handler. Nothing here is imported by the library."""

from taskback.cli.command import main

__all__ = ["main"]

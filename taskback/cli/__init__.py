"""The command `taskback`: runs a file of tasks through a handler. Nothing here is imported by the library."""

import typing

from taskback import _public

if typing.TYPE_CHECKING:
    from taskback.cli.command import main

__all__ = ["main"]

# When it is used: workers of `taskback doctor` import a module from below here, and nothing else of it.
__getattr__ = _public.finder(__name__, {"command": ("main",)})

"""The handler as bytes for processes, with a key that changes whenever what it was made of does.

Threads: any. Two at once may both pack; the later one's key stands, and either pair is good by itself.
Holds: whoever keeps a handler under a key has the one that was current when it got the key, or one that is the same.
"""

import inspect
import secrets
import sys
from dataclasses import dataclass
from typing import Any

from taskback import _codec
from taskback._call import Handler
from taskback._context import restores
from taskback._errors import HandlerNotSerializableError
from taskback._router import TaskRouter

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Packed:
    made_of: tuple[Any, ...]
    key: Key
    data: bytes


class HandlerPacker:
    """See the top of the file."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._version = 0
        self._packed: _Packed | None = None

    def check(self, handler: Handler) -> None:
        """Raise `HandlerNotSerializableError` if the handler cannot travel."""
        _codec.dumps_or_refuse(handler, "handler", HandlerNotSerializableError)

    def pack(self, handler: Handler | None) -> tuple[Key, bytes | None]:
        """The key and the bytes of the handler and of what restores context around it."""
        if handler is None:
            return (self._token, 0), None
        functions = restores()
        # A router's handlers may have been written down after set_handler.
        made_of = (handler, functions, handler.types if isinstance(handler, TaskRouter) else ())
        packed = self._packed
        if packed is None or packed.made_of[0] is not handler or packed.made_of[1:] != made_of[1:]:
            data = _codec.dumps_or_refuse((handler, functions), "handler", HandlerNotSerializableError)
            self._version += 1
            packed = self._packed = _Packed(made_of, (self._token, self._version), data)
        return packed.key, packed.data

    def forget(self) -> None:
        """Pack anew at the next call: what travels by value may have changed."""
        self._packed = None


def modules_of(handler: Handler | None) -> tuple[str, ...]:
    """The modules that a handler travels by name from, which are imported wherever it is used, and what runs it."""
    handlers = [*handler._handlers.values(), handler._fallback] if isinstance(handler, TaskRouter) else [handler]
    found = {getattr(inspect.unwrap(each), "__module__", None) for each in (*handlers, *restores()) if callable(each)}
    if any(inspect.iscoroutinefunction(inspect.unwrap(each)) for each in handlers if callable(each)):
        found.add("asyncio")
    return tuple(
        sorted(
            name
            for name in found
            if isinstance(name, str) and name in sys.modules and name not in ("__main__", "__mp_main__")
        )
    )

"""How a call of a function becomes bytes: by reference where that works, by value once where it does not.

A function of the main script, a lambda or a closure is pickled once, numbered, and kept by each worker under that
number: its globals live as long as the worker, apart from the parent's.

Threads: any. Locks: _lock is a leaf; pickling, which is user code, runs outside it.
"""

import itertools
import threading
import weakref
from functools import partial
from types import FunctionType
from typing import Any, Final

from taskback import _codec
from taskback._packed import Packed


class Unchanging(partial[Any]):
    """A partial of ours, which nobody changes, so that it is pickled once, as a function is."""


_ONCE: Final = (FunctionType, Unchanging)


class Packer:
    """Packs the calls of one pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._packed: weakref.WeakKeyDictionary[Any, tuple[int, bytes]] = weakref.WeakKeyDictionary()

    def pack(self, function: Any, arguments: Any, keywords: Any) -> "tuple[Packed, tuple[int, bytes] | None]":
        """A call as bytes, and the numbered function that they refer to, if they do; raises what pickling raises."""
        if type(function) in _ONCE and (known := self._packed.get(function)) is not None:
            return _codec.pack((known[0], arguments, keywords)), known
        try:
            packed = _codec.pack_by_reference((function, arguments, keywords))
        except Exception:  # it may be the arguments: cloudpickle says
            packed = None
        if packed is not None:
            return packed, None
        if type(function) not in _ONCE:
            return _codec.pack((function, arguments, keywords)), None
        numbered = self._by_value(function)
        return _codec.pack((numbered[0], arguments, keywords)), numbered

    def _by_value(self, function: Any) -> "tuple[int, bytes]":
        found = self._packed.get(function)
        if found is None:
            data = _codec.dumps(function)
            with self._lock:
                found = self._packed.setdefault(function, (next(self._numbers), data))
        return found

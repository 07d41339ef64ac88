"""Calls of functions in a worker: what an Executor's submit() becomes there.

A function that travels by value is sent once and kept under a number, so that its globals live as long as the worker.
"""

import contextvars
import pickle
from collections.abc import Callable
from typing import Any

from taskback import _codec, _role
from taskback._call import SignalMarks
from taskback._packed import Packed, opened
from taskback.pools.child import packets

PackedError = tuple[str, str, str, bytes | None]


class Functions:
    """Those that this worker keeps."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}
        self._packed: dict[int, bytes] = {}  # not unpickled yet, or in vain

    def keep(self, data: Any) -> Any:
        """Of a call that brings its function: keep that in the place of another (0: of none), and give the rest."""
        envelope, inner = opened(data)
        number, function, forget, call = pickle.loads(envelope)
        self._kept.pop(forget, None)
        self._packed.pop(forget, None)
        if number not in self._kept:
            self._packed[number] = function
        return call if inner is None else inner

    def kept(self, number: int) -> Any:
        """What is kept under a number; raises whatever unpickling it raises, and tries again the next time."""
        if number in self._packed:
            with _role.importing("a function"):
                self._kept[number] = pickle.loads(self._packed[number])
            del self._packed[number]
        return self._kept[number]

    def trouble(self) -> bytes:
        """Unpickle what was brought: the packed error if that fails, which fails each call of it, too; else nothing."""
        try:
            for number in list(self._packed):
                self.kept(number)
        except BaseException as error:  # a module may call sys.exit() when it is imported
            return packed_error(error)
        return b""

    def unpack(self, data: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Function, arguments and keyword arguments of a call; raises whatever unpickling raises."""
        _role.begin_import("a function")
        try:
            function, arguments, keywords = _codec.loads(data)
        finally:
            _role.end_import()
        if isinstance(function, int):
            function = self.kept(function)
        return function, arguments, keywords


class FunctionCall:
    """One call, run to its end in the main thread, which a signal may stop between its marks."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._what = (function, arguments, keywords)
        self._marks = SignalMarks()

    def run(self) -> tuple[int, Any]:
        """The kind of the reply, and the result or the error."""
        function, arguments, keywords = self._what
        try:
            try:
                self._marks.enter()
                outcome = packets.RESULT, contextvars.copy_context().run(function, *arguments, **keywords)
            except BaseException as error:
                outcome = packets.ERROR, error
            self._marks.leave()
        except BaseException as error:  # the signal came between the function's end and the second mark
            self._marks.leave()
            outcome = packets.ERROR, error
        return outcome

    def interrupt(self, firmly: bool) -> None:
        """In the signal's handler, or before `run`: stop it."""
        self._marks.strike()


def packed_reply(kind: int, value: Any) -> tuple[int, Packed]:
    """A reply, to be sent at once; a result that cannot be pickled becomes the error that says so."""
    if kind == packets.RESULT:
        try:
            return kind, _codec.pack(value, borrow=True)
        except BaseException as error:  # a __reduce__ may raise anything
            value = error
    return packets.ERROR, packed_error(value)


def packed_error(error: BaseException) -> bytes:
    """An error as bytes that can always be read."""
    return pickle.dumps(_codec.pack_error(error), _codec.PROTOCOL)

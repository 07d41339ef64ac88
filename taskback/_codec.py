"""Bytes, not objects, cross to a process: how things are pickled, and what is said when they cannot be.

Plain pickle first. If that fails, or the bytes name `__main__` (plain pickle does not fail there, the worker
would), cloudpickle, which carries functions and classes by value.
"""

import pickle
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Final

from taskback import _packed
from taskback._errors import (
    NotSerializableError,
    RemoteError,
    RemoteTraceback,
    ResultNotSerializableError,
    TaskNotSerializableError,
)
from taskback._packed import LARGE, SMALL, HasLargeError, Packed, Parts, refuse_large

PROTOCOL: Final = _packed.PROTOCOL
_GLOBAL: Final = b"\x93"  # what a pickle has before each name; elsewhere too, perhaps, which does no harm
MAX_DEPTH: Final = 8  # how deep the search for the culprit goes

# To take a value apart costs microseconds more than to pickle it in one call, and spares copies where it is large. So
# what came last decides how the next one is tried; either way is right for all, and threads may disagree.
_last_was_large = False


def dumps(value: Any) -> bytes:
    """Pickle `value`; raises whatever pickling raises."""
    try:
        data = pickle.dumps(value, PROTOCOL)
    except Exception:
        return _dumps_by_value(value)
    return _dumps_by_value(value) if _packed.names_main(data, value) else data


def pack(value: Any, borrow: bool = False) -> Packed:
    """The same, with what is large in it beside the pickle; `borrow`: not copied, but for who sends it at once."""
    try:
        packed = pack_by_reference(value, borrow)
    except Exception:
        packed = None
    if packed is None:
        import cloudpickle  # most programs need none

        _have_main_travel()
        packed = _packed.take_apart(value, borrow, cloudpickle.Pickler)
    return packed


def pack_by_reference(value: Any, borrow: bool = False) -> Packed | None:
    """With plain pickle alone, whatever that raises; None where it has left behind the name of the main script."""
    if not _last_was_large:
        try:
            data = pickle.dumps(value, PROTOCOL, buffer_callback=refuse_large)
        except HasLargeError:
            return _taken_apart(value, borrow)
        if len(data) <= SMALL and b"main__" not in data:  # most are, and cost nothing but this
            return data
        return _judged(data, value)
    return _taken_apart(value, borrow)


def _taken_apart(value: Any, borrow: bool) -> Packed | None:
    return _judged(_packed.take_apart(value, borrow), value)


def _judged(packed: Packed, value: Any) -> Packed | None:
    global _last_was_large
    _last_was_large = len(packed) > LARGE
    return None if _packed.names_main(packed, value) else packed


def _dumps_by_value(value: Any) -> bytes:
    import cloudpickle

    _have_main_travel()
    return bytes(cloudpickle.dumps(value, PROTOCOL))


def _have_main_travel() -> None:
    import cloudpickle

    # In a process of multiprocessing the main script is a module of this name, which cloudpickle would have imported.
    main = sys.modules.get("__mp_main__")
    if main is not None and main.__name__ == "__mp_main__":
        cloudpickle.register_pickle_by_value(main)


def loads(packed: Any) -> Any:
    """What was pickled; it has the memory of `packed` for its own."""
    return packed.load() if type(packed) is Parts else pickle.loads(packed)


def loads_a_copy(packed: Packed) -> Any:
    """The same, once more: it shares nothing with `packed`, which is kept."""
    return packed.load_a_copy() if type(packed) is Parts else pickle.loads(packed)


def is_data(data: Any) -> bool:
    """Whether bytes are small and name no class and no function, so that no user code runs while they are unpickled."""
    return type(data) is bytes and len(data) < SMALL and _GLOBAL not in data


def dumps_or_refuse(value: Any, name: str, refusal: type[NotSerializableError]) -> bytes:
    """Pickle `value`, called `name` in the error that says which part of it cannot be pickled."""
    try:
        return dumps(value)
    except Exception as error:
        raise _refusal(error, value, name, refusal) from error


def pack_or_refuse(value: Any, name: str, refusal: type[NotSerializableError], borrow: bool = False) -> Packed:
    """`pack` it, or say the same."""
    try:
        return pack(value, borrow)
    except Exception as error:
        raise _refusal(error, value, name, refusal) from error


def _refusal(error: Exception, value: Any, name: str, refusal: type[NotSerializableError]) -> NotSerializableError:
    if isinstance(error, RecursionError):
        return refusal(name, type(value).__name__, "it is nested too deeply")
    path, culprit, why = _culprit(name, value, _words(error), MAX_DEPTH)
    return refusal(path, type(culprit).__name__, why)


class PackedMapping(Mapping[str, Any]):
    """A mapping that is unpickled when somebody looks at it, on the thread of whoever looks."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def _loaded(self) -> Mapping[str, Any]:
        loaded: Mapping[str, Any] = loads(self._data)
        return loaded

    def __getitem__(self, key: str) -> Any:
        return self._loaded()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def __repr__(self) -> str:
        return repr(dict(self))


def dumps_task(task: Any) -> Packed:
    """Pickle a task for a process, or say which part of it cannot be."""
    packed: Packed | None = None
    if not _last_was_large:
        try:
            data = pickle.dumps(task, PROTOCOL, buffer_callback=refuse_large)
            if len(data) <= SMALL and b"main__" not in data:  # most are, and cost nothing but this
                return data
            packed = _judged(data, task)
        except Exception:  # the rest is not done in here, or an error of that would have this one as its context
            packed = None
    return pack_or_refuse(task, "task", TaskNotSerializableError) if packed is None else packed


def _culprit(path: str, value: Any, why: str, depth: int) -> tuple[str, Any, str]:
    """Follow the parts of `value` down to the smallest one that cannot be pickled by itself."""
    if depth:
        for part_path, part in _parts(path, value):
            try:
                dumps(part)
            except Exception as error:
                return _culprit(part_path, part, _words(error), depth - 1)
    return path, value, why


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"{path} key {key!r}", key
            yield f"{path}[{key!r}]".replace("'", '"'), part
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield f"{path}[{index}]", part
    elif isinstance(value, (set, frozenset)):
        for part in value:
            yield f"{path} member", part
    elif hasattr(value, "__code__"):
        yield from _function_parts(path, value)
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type):
        for key, part in vars(value).items():
            yield f"{path}.{key}", part


def _function_parts(path: str, function: Any) -> Iterator[tuple[str, Any]]:
    """What a function that travels by value drags along: its closure and the globals that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{path} closes over {name}", cell.cell_contents
        except ValueError:  # the name has no value yet
            continue
    names_globals = getattr(function, "__globals__", {})
    for name in function.__code__.co_names:
        if name in names_globals:
            yield f"{path} uses the global {name}", names_globals[name]


def _words(error: BaseException) -> str:
    text = safe_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def safe_text(value: object) -> str:
    """`str(value)`, also where that raises, and never of a subclass, which could not be read everywhere."""
    try:
        return str.__str__(str(value))
    except BaseException:  # it may raise anything
        return f"<{type(value).__name__} whose text cannot be had>"


def traceback_text(error: BaseException) -> str:
    """The traceback of `error` as text, without our own frames at its top."""
    try:
        return "".join(traceback.format_exception(type(error), error, without_our_frames(error)))
    except BaseException:  # it asks the error for its text, its notes, its cause
        return f"{type(error).__name__}: {safe_text(error)}\n"


def without_our_frames(error: BaseException) -> Any:
    """The traceback of `error` from the first frame on that is not ours; all of it if there is none."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("taskback."):
        frame = frame.tb_next
    return frame or error.__traceback__


def frameless(error: BaseException) -> BaseException:
    """The error, and what led to it, without tracebacks: those keep whatever their frames and callers refer to."""
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and one.__traceback__ is not None:
            one.__traceback__ = None
            left += (one.__cause__, one.__context__)
    return error


def error_type(error: BaseException) -> str:
    """The type's name, of the remote one where `error` stands for it."""
    return error.type_name if isinstance(error, RemoteError) else type_name(error)


def error_text(error: BaseException) -> str:
    """The error's text, of the remote one where `error` stands for it."""
    return error.text if isinstance(error, RemoteError) else safe_text(error)


def error_traceback(error: BaseException) -> str:
    """The traceback as text: the worker's, where the error came from one."""
    cause = error.__cause__
    return cause.text if isinstance(cause, RemoteTraceback) else traceback_text(error)


def type_name(error: BaseException) -> str:
    """The error's type as a caller would import it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def not_rebuilt(error: BaseException) -> ResultNotSerializableError:
    """What a task gets whose result cannot be rebuilt here; where that failed stands in it as a note.

    As text, for the frames of a lane would keep it, and what it has open, for as long as somebody has the error.
    """
    why = f"not rebuilt here: {type(error).__name__}: {safe_text(error)}"
    refusal = ResultNotSerializableError("result", "value", why)
    refusal.add_note(traceback_text(error))
    refusal.__cause__ = frameless(error)
    return refusal


def pack_error(error: BaseException) -> tuple[str, str, str, bytes | None]:
    """An exception as what can always cross: type name, text, traceback, and itself where it can be pickled."""
    try:
        data: bytes | None = dumps(error)
    except BaseException:  # a __reduce__ may raise anything
        data = None
    return type_name(error), safe_text(error), traceback_text(error), data


def unpack_error(packed: tuple[str, str, str, bytes | None]) -> BaseException:
    """What `pack_error` packed: the exception itself, or a `RemoteError` where it cannot be rebuilt."""
    name, text, trace, data = packed
    error: Any = None
    if data is not None:
        try:
            error = loads(data)
        except BaseException:  # a constructor may raise anything
            error = None
    if not isinstance(error, BaseException):
        error = RemoteError(name, text, trace)
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(trace))  # also of a frozen one
    rebuilt: BaseException = error
    return rebuilt

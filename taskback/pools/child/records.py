"""Log records and warnings as bytes: packed in a worker, rebuilt in its parent.

Holds: what is packed is plain data, so that it can always be read. What else hangs on a record is pickled piece by
piece, and is its `repr` where it cannot be; so no record fails for what hangs on it, and none is changed by packing.
"""

import logging
import pickle
import sys
import warnings
from typing import Any, Final, NamedTuple

from taskback import _codec

_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_NOT_AS_THEY_ARE: Final = frozenset(("msg", "args", "exc_info"))
_formatter: Final = logging.Formatter()
_first: Final = logging.LogRecord("", 0, "", 0, "", (), None)
_started: Final = _first.created - _first.relativeCreated / 1000  # since when a process tells its records' times


def pack_record(record: logging.LogRecord, task_id: str | None, task_type: str | None, pid: int) -> bytes:
    """A record, and which task and worker it is of; an attribute of the program's by such a name wins.

    Its arguments travel as they are where all are plain, so that whoever groups records by their message still can;
    else it is formatted here. A traceback becomes text.
    """
    facts: dict[str, Any] = {"task_id": task_id, "task_type": task_type, "worker_pid": pid}
    others: dict[str, bytes] = {}
    for name, value in record.__dict__.items():
        if type(value) in _PLAIN:
            facts[name] = value
        elif name not in _NOT_AS_THEY_ARE:
            try:
                others[name] = _codec.dumps(value)
                facts.pop(name, None)
            except Exception:  # a __reduce__ may raise anything
                facts[name] = _repr(value)
    facts["msg"], facts["args"] = _message(record)
    if record.exc_info:
        facts["exc_info"] = None
        facts["exc_text"] = record.exc_text or _traceback(record.exc_info)
    return pickle.dumps((facts, others), _codec.PROTOCOL)


def _message(record: logging.LogRecord) -> tuple[str, Any]:
    args = record.args
    if type(record.msg) is str and (not args or (type(args) in (tuple, dict) and _all_plain(args))):
        return record.msg, args
    try:
        return _text(record.getMessage()), None
    except Exception as error:
        return f"{_codec.safe_text(record.msg)} (its arguments do not fit: {type(error).__name__}: {error})", None


def _all_plain(args: Any) -> bool:
    return all(type(each) in _PLAIN for each in (args.values() if type(args) is dict else args))


def _text(text: str) -> str:
    return str.__str__(text)


def _repr(value: object) -> str:
    try:
        return _text(repr(value))
    except Exception:
        return f"<{type(value).__name__}>"


def _traceback(exc_info: Any) -> str:
    try:
        return _text(_formatter.formatException(exc_info))
    except Exception:  # it asks the error for its text, its notes, its cause
        return f"{getattr(exc_info[0], '__name__', '')}: {_codec.safe_text(exc_info[1])}"


def rebuilt_record(data: Any) -> logging.LogRecord:
    """What was packed, as a record of this process; may run user code (a factory of records, unpickling)."""
    facts, others = _codec.loads(data)
    record = logging.makeLogRecord(facts)
    for name, packed in others.items():
        try:
            record.__dict__[name] = _codec.loads(packed)
        except BaseException as error:  # a constructor may raise anything
            record.__dict__[name] = f"<{name}: not rebuilt here: {type(error).__name__}: {_codec.safe_text(error)}>"
    record.relativeCreated = (record.created - _started) * 1000
    level_name = logging.getLevelName(record.levelno)
    if not level_name.startswith("Level "):  # the worker may not have been told of it
        record.levelname = level_name
    return record


class PackedWarning(NamedTuple):
    """A warning, as it is sent."""

    text: str
    category: bytes | None  # pickled
    category_name: str
    filename: str
    lineno: int
    module: str | None


def pack_warning(message: object, category: type[Warning], filename: str, lineno: int, module: str | None) -> bytes:
    """A warning that the worker's filters have let pass."""
    try:
        packed: bytes | None = _codec.dumps(category)
    except Exception:  # a metaclass may raise anything
        packed = None
    facts = (_codec.safe_text(message), packed, category.__name__, str(filename), int(lineno), module)
    return pickle.dumps(facts, _codec.PROTOCOL)


def warn_again(data: Any, seen: dict[str, dict[Any, Any]]) -> None:
    """Warn of it here, by this process's filters: once a place, whichever workers came there.

    Args:
        data (bytes): What was packed.
        seen (dict[str, dict]): What was warned of, by file, where this process has not the module itself.
    """
    found = PackedWarning(*_codec.loads(data))
    message, category = _rebuilt_warning(found)
    try:
        warnings.warn_explicit(message, category, found.filename, found.lineno, found.module, _registry(found, seen))
    except (
        Warning
    ) as error:  # a filter has made it an error since the worker was started; there is nobody to raise it to
        warnings.showwarning(error, category, found.filename, found.lineno)


def _rebuilt_warning(found: PackedWarning) -> tuple[Warning, type[Warning]]:
    if found.category is not None:
        try:
            category = _codec.loads(found.category)
            return category(found.text), category
        except BaseException:  # one that takes other arguments, or cannot be imported here
            pass
    return UserWarning(f"{found.category_name}: {found.text}"), UserWarning


def _registry(found: PackedWarning, seen: dict[str, dict[Any, Any]]) -> dict[Any, Any]:
    module = sys.modules.get(found.module) if found.module is not None else None
    if module is not None:
        registry: dict[Any, Any] = vars(module).setdefault("__warningregistry__", {})
        return registry
    return seen.setdefault(found.filename, {})

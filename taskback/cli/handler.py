"""From `module:attribute` to the handler, or to a message that says which part failed and where."""

import difflib
import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from taskback import TaskRouter
from taskback.cli.complaints import CommandError


def load_handler(spec: str) -> Any:
    """Import the handler.

    The current directory is put first on `sys.path`, as `python -m` does, so that the console script finds the
    same modules; worker processes get `sys.path` from this one.

    Raises:
        CommandError: There is no such module or attribute, or it is no handler, or importing it failed.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise CommandError(f"HANDLER must be module:attribute, not {spec!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    handler = _attribute(_module(module_name), attribute)
    if not (callable(handler) or isinstance(handler, TaskRouter)):
        raise CommandError(f"{spec} is no handler: it is of type {type(handler).__name__} and cannot be called")
    return handler


def with_policy(handler: Any, policy: dict[str, Any]) -> Any:
    """The handler, as a router whose types have this policy where they say nothing.

    Raises:
        CommandError: It makes no sense beside a type's own.
    """
    if not policy:
        return handler
    router = handler if isinstance(handler, TaskRouter) else TaskRouter(fallback=handler)
    try:
        return router.with_defaults(**policy)
    except (TypeError, ValueError) as error:
        raise CommandError(f"the policies of the command do not go with the handler's: {error}") from error


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may call sys.exit() when it is imported
        raise CommandError(f"cannot import the module {name!r}: {_last_line(error)}{_hint(name, error)}") from error


def _last_line(error: BaseException) -> str:
    """The traceback's last line, and the place in the user's file that it speaks of."""
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {text}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _of_ours(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {text}" if frames else text


def _of_ours(filename: str) -> bool:
    return filename.startswith("<frozen ") or filename in (__file__, importlib.__file__)


def _hint(name: str, error: BaseException) -> str:
    if name.endswith(".py") or os.sep in name:
        return "; give the module's name, not its file's (package.module:attribute)"
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        return f"; looked in {os.getcwd()} and on sys.path"
    return ""


def _attribute(module: ModuleType, dotted: str) -> Any:
    found: Any = module
    for name in dotted.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            message = f"the module {module.__name__!r} ({_file(module)}) has no attribute {dotted!r}{hint}"
            raise CommandError(message) from error
    return found


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"

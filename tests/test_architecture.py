"""Imports run in one direction, as ARCHITECTURE.md draws it, and importing has no effect.

cli, integrations, observe -> backends -> _backend, _router -> scheduler -> pools -> pools/child -> core
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.helpers import ROOT, run_python

PACKAGE: Final = ROOT / "taskback"

# A room may import itself and the rooms of a lower rank. The public names are for whoever stands above them.
RANKS: Final = {
    "core": 0,
    "pools/child": 1,
    "pools": 2,
    "scheduler": 3,
    "base": 4,  # _backend.py and _router.py
    "backends": 5,
    "public names": 6,
    "observe": 7,
    "integrations": 8,
    "testing": 8,
    "cli": 8,
}
MAY_IMPORT_ANYTHING: Final = {"taskback", "taskback.__main__"}
DEPENDENCIES: Final = {"cloudpickle", "psutil"}
USE_EXTRAS: Final = {"cli", "integrations", "observe", "testing"}

PLATFORM_QUESTIONS: Final = {
    *("sys.platform", "sys.getwindowsversion", "os.name", "os.uname"),
    *("platform.system", "platform.uname", "platform.platform", "platform.win32_ver", "platform.mac_ver"),
}
ASKS_FOR_THE_PLATFORM: Final = PACKAGE / "pools" / "_os.py"


@dataclass(frozen=True, slots=True)
class Import:
    """One module's import of another, wherever in its file it stands."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        """Where it is and whom it joins."""
        return f"{self.importer}:{self.line} imports {self.imported}"


def room_of(module: str) -> str:
    """The room that a module of taskback lies in."""
    _, *parts = module.split(".")
    if not parts:
        return "public names"
    if parts[:2] == ["pools", "child"] or parts == ["pools", "_os"]:  # a worker needs its platform, too
        return "pools/child"
    if parts[0] in ("_backend", "_router"):
        return "base"
    if parts[0].startswith("_"):
        return "core"
    assert parts[0] in RANKS, f"{module} lies in no room that is known here"
    return parts[0]


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of this package."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_in(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """All imports in a source: in functions and under TYPE_CHECKING too, and import_module of a constant."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(module, alias.name, node.lineno)
            case ast.ImportFrom(module=origin, names=names, level=level):
                if level:  # one dot is the package that the module lies in, or that it is
                    parts = module.split(".")
                    kept = len(parts) - level + is_package
                    origin = ".".join([*parts[:kept], *([origin] if origin else [])])
                for alias in names:
                    submodule = f"{origin}.{alias.name}"
                    yield Import(module, submodule if is_module(submodule) else str(origin), node.lineno)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if ast.unparse(function).split(".")[
                -1
            ] in ("import_module", "__import__"):
                yield Import(module, name, node.lineno)


def all_imports() -> list[Import]:
    """Every import in the package."""
    return [
        found
        for path in sorted(PACKAGE.rglob("*.py"))
        for found in imports_in(path.read_text("utf-8"), module_name(path), path.name == "__init__.py")
    ]


def is_allowed(found: Import) -> bool:
    """Whether an import runs in the one direction, or leaves the package."""
    if found.importer in MAY_IMPORT_ANYTHING or found.imported.split(".")[0] != "taskback":
        return True
    importer, imported = room_of(found.importer), room_of(found.imported)
    return importer == imported or RANKS[imported] < RANKS[importer]


def questions_in(source: str) -> set[str]:
    """The questions in a source that ask which system this is."""
    asked: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                asked.add(f"{module}.{name}")
            case ast.ImportFrom(module=str(module), names=names):
                asked.update(f"{module}.{alias.name}" for alias in names)
    return asked & PLATFORM_QUESTIONS


def test_imports_run_in_one_direction():
    """No module imports a room above its own."""
    found = all_imports()

    assert found
    assert [str(each) for each in found if not is_allowed(each)] == []


def test_only_the_two_dependencies_are_imported():
    """What comes from an extra is imported where extras are used, and nowhere else."""
    known = {"taskback", *DEPENDENCIES, *sys.stdlib_module_names}
    wrong = [
        str(found)
        for found in all_imports()
        if found.imported.split(".")[0] not in known and room_of(found.importer) not in USE_EXTRAS
    ]

    assert wrong == []


def test_one_file_asks_for_the_platform():
    """All others are told by it what the system has."""
    asked = {
        str(path.relative_to(PACKAGE)): questions
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != ASKS_FOR_THE_PLATFORM and (questions := questions_in(path.read_text("utf-8")))
    }

    assert asked == {}


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("taskback.cli.run", "taskback", True),
        ("taskback.cli.run", "taskback.observe.progress", True),
        ("taskback.backends.thread", "taskback._router", True),
        ("taskback._backend", "taskback.backends.thread", False),
        ("taskback.backends.thread", "taskback", False),
        ("taskback.observe.progress", "taskback.cli", False),
        ("taskback.cli.run", "taskback.integrations", False),
        ("taskback.scheduler.ready", "taskback._handle", True),
        ("taskback._handle", "taskback._backend", False),
        ("taskback.pools.pool", "taskback.pools.child.main", True),
        ("taskback.pools.child.main", "taskback.pools.pool", False),
        ("taskback.pools.child.main", "taskback._errors", True),
        ("taskback", "taskback.cli", True),
        ("taskback._errors", "asyncio", True),
    ],
)
def test_the_direction_is_as_drawn(importer, imported, allowed):
    """The rule itself, on some pairs."""
    assert is_allowed(Import(importer, imported, 1)) is allowed


def test_every_form_of_an_import_is_read():
    """Nothing is hidden by where or how it is written."""
    source = """if True:
        import asyncio, os.path
        from . import sibling
        from .. import top
        from ..other import name
        from taskback.pools import _os, Pool
        if TYPE_CHECKING:
            import typed
        def function():
            import late
            importlib.import_module("named")
    """

    found = {each.imported for each in imports_in(source, "taskback.pools.pool")}

    assert found == {
        *("asyncio", "os.path", "taskback.pools", "taskback", "taskback.other", "taskback.pools._os"),
        *("typed", "late", "named"),
    }
    assert [each.imported for each in imports_in("from . import x", "taskback.pools", True)] == ["taskback.pools"]


def test_every_form_of_a_question_is_read():
    """Both as an attribute and by name."""
    source = "import sys\nfrom os import name\nif sys.platform == 'linux': sys.exit()"

    assert questions_in(source) == {"sys.platform", "os.name"}


IMPORT_AND_COMPARE = """if True:
    import atexit, importlib, logging, os, signal, sys, threading, warnings
    import psutil

    def state():
        return {
            "threads": [thread.name for thread in threading.enumerate()],
            "processes": [process.pid for process in psutil.Process().children(recursive=True)],
            "signal handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
            "exit hooks": atexit._ncallbacks(),
            "exit hooks of threading": len(threading._threading_atexits),
            "descriptors": os.path.isdir("/proc/self/fd") and sorted(os.listdir("/proc/self/fd")),
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "hooks": [sys.excepthook, threading.excepthook, sys.unraisablehook, sys.gettrace()],
            "warning filters": list(warnings.filters),
            "handlers of the root logger": list(logging.getLogger().handlers),
        }

    # What taskback imports has effects of its own: an exit hook of logging's, say. Those come first.
    for name in sys.argv[1:]:
        importlib.import_module(name)
    before = state()
    import taskback
    after = state()
    for key in before:
        if before[key] != after[key]:
            print(key, before[key], "->", after[key])
"""


def test_importing_has_no_effect():
    """No thread, process, signal handler or exit hook, nor anything else, comes of importing taskback."""
    listing = run_python("-c", "import sys, taskback; print(*sys.modules)")
    assert listing.returncode == 0, listing.stderr
    others = [
        name for name in listing.stdout.split() if name.split(".")[0] not in ("taskback", "__main__", "__mp_main__")
    ]

    compared = run_python("-c", IMPORT_AND_COMPARE, *others)

    assert compared.returncode == 0, compared.stderr
    assert compared.stdout == ""

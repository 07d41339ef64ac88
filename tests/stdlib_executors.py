"""Runs the standard library's own tests of executors on one of ours, in the place of the stock one.

The tests are those of `test.test_concurrent_futures` as they lie in an installed Python; nothing of them is copied
here. Not every installation has the `test` package, and an older interpreter takes those of a newer one.

    python -m tests.stdlib_executors ThreadPool     prints a line a test

A new executor of ours is a new `Entry`. The programs that those tests start are told of the substitution, too.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import re
import sys
import sysconfig
import unittest
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent  # of the checkout
PACKAGE: Final = "test_concurrent_futures"


@dataclass(frozen=True)
class Entry:
    """An executor of ours, and whose place it takes.

    Args:
        name (str): In `taskback.pools`.
        stock (str): In `concurrent.futures`.
        mixin (str): In the tests' `util`: what has the cases for that one.
        skipped (dict[str, str]): Tests that are left out, as `module.Class.test`, each with the reason.
        takes_context (bool): Whether it takes `mp_context`; otherwise that is dropped, where tests give one.
    """

    name: str
    stock: str
    mixin: str
    skipped: dict[str, str] = field(default_factory=dict)
    takes_context: bool = True


ENTRIES: Final = {
    entry.name: entry
    for entry in (
        Entry(
            "ThreadPool",
            "ThreadPoolExecutor",
            "ThreadPoolMixin",
            {
                "test_shutdown.ThreadPoolShutdownTest.test_thread_names_default": "names the stock class",
                "test_thread_pool.ThreadPoolExecutorTest.test_default_workers": "ours keeps to a cgroup's quota, too",
            },
        ),
    )
}


def find_tests() -> Path | None:
    """The `test` package with the newest tests of executors that is installed, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    libraries = [
        Path(sysconfig.get_path("stdlib")),
        *(pyenv / "versions").glob("3.*/lib/python3.*"),
        *Path("/usr/lib").glob("python3.*"),
        *Path("/usr/local/lib").glob("python3.*"),
    ]
    found = [library / "test" for library in libraries if (library / "test" / PACKAGE / "util.py").is_file()]
    return max(found, key=_version, default=None)


def _version(package: Path) -> list[int]:
    """The version that stands in its path; of two alike, pyenv's tells the patch level."""
    numbers = re.findall(r"3(?:\.\d+)+", str(package))
    return max(([int(number) for number in each.split(".")] for each in numbers), default=[])


def substitute(entry: Entry, package: Path) -> None:
    """Put ours in the place of the stock one in this process, before any of the tests is imported."""
    ours = getattr(importlib.import_module("taskback.pools"), entry.name)
    if not entry.takes_context:
        ours = type(entry.name, (ours,), {"__init__": _without_context(ours), "__module__": __name__})
    for name in (entry.stock, entry.name):  # programs that tests start name the class by its __name__
        setattr(concurrent.futures, name, ours)
    importlib.import_module("test").__path__ = [str(package)]  # in the place of the interpreter's own
    support: Any = importlib.import_module("test.support")
    support.verbose = False


def _without_context(ours: Any) -> Any:
    def init(self: Any, *args: Any, mp_context: object = None, **options: Any) -> None:
        ours.__init__(self, *args, **options)

    return init


def tell_programs(entry: Entry, package: Path) -> None:
    """Have the programs that tests start do the same first; they are run isolated, so by a line of their own code."""
    script_helper: Any = importlib.import_module("test.support.script_helper")
    first = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); "
        f"from tests.stdlib_executors import ENTRIES, substitute; "
        f"substitute(ENTRIES[{entry.name!r}], pathlib.Path({str(package)!r}))\n"
    )
    real = script_helper.assert_python_ok

    def assert_python_ok(*args: str, **environment: str) -> Any:
        assert args[0] == "-c", args
        return real("-c", first + args[1], *args[2:], **environment)

    script_helper.assert_python_ok = assert_python_ok


def cases(entry: Entry, package: Path) -> Iterator[unittest.TestCase]:
    """All that is there for the stock executor whose place it takes, what is skipped too."""
    mixin = getattr(importlib.import_module(f"test.{PACKAGE}.util"), entry.mixin)
    for path in sorted((package / PACKAGE).glob("test_*.py")):
        module = importlib.import_module(f"test.{PACKAGE}.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, mixin) and issubclass(value, unittest.TestCase):
                yield from unittest.defaultTestLoader.loadTestsFromTestCase(value)  # type: ignore[misc]


def name_of(case: unittest.TestCase) -> str:
    """`module.Class.test`, without what comes before the module."""
    return ".".join(case.id().split(".")[-3:])


class Told(unittest.TestResult):
    """Prints each test's end at once, so that a hang shows where."""

    def startTest(self, test: unittest.TestCase) -> None:  # as inherited
        super().startTest(test)
        self._bad = len(self.failures) + len(self.errors) + len(self.skipped)

    def stopTest(self, test: unittest.TestCase) -> None:  # as inherited
        super().stopTest(test)
        if len(self.failures) + len(self.errors) + len(self.skipped) == self._bad:
            print("passed", name_of(test), flush=True)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # as inherited
        super().addSkip(test, reason)
        print("skipped", name_of(test), reason, flush=True)

    def _exc_info_to_string(self, error: Any, test: unittest.TestCase) -> str:
        text: str = super()._exc_info_to_string(error, test)  # type: ignore[misc]
        print("failed", test.id(), text.replace("\n", "\n    "), flush=True)
        return text


def main(name: str) -> int:
    """Run the tests of an entry; 0 if none failed."""
    entry, package = ENTRIES[name], find_tests()
    if package is None:
        print("no tests of executors are installed")
        return 1
    substitute(entry, package)
    tell_programs(entry, package)
    found = list(cases(entry, package))
    unknown = set(entry.skipped) - {name_of(case) for case in found}
    for each in sorted(unknown):
        print("failed", each, "is to be skipped, but there is no such test")
    result = Told()
    chosen = [case for case in found if name_of(case) not in entry.skipped]
    unittest.TestSuite(chosen).run(result)
    return 0 if result.wasSuccessful() and not unknown else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Runs the standard library's own tests of executors on one of ours, in the place of the stock one.

The tests are those of `test.test_concurrent_futures` as they lie in an installed Python; nothing of them is copied
here. Not every installation has the `test` package, and an older interpreter takes those of a newer one.

    python -m tests.stdlib_executors ThreadPool     prints a line a test

A new executor of ours is a new `Entry`. The programs that those tests start are told of the substitution, too.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import importlib
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import unittest
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent  # of the checkout
PACKAGE: Final = "test_concurrent_futures"

_CALLS: Final = "test_process_pool.ProcessPoolSpawnProcessPoolExecutorTest"
_DEADLOCK: Final = "test_deadlock.ProcessPoolSpawnExecutorDeadlockTest"
_INIT_FAILS: Final = "test_init.ProcessPoolSpawnFailingInitializerTest"
_SHUTDOWN: Final = "test_shutdown.ProcessPoolSpawnProcessPoolShutdownTest"


@dataclass(frozen=True)
class Entry:
    """An executor of ours, and whose place it takes.

    Args:
        name (str): In `taskback.pools`.
        stock (str): In `concurrent.futures`.
        mixin (str): In the tests' `util`: what has the cases for that one.
        skipped (dict[str, str]): Tests that are left out, as `module.Class.test`, each with the reason: whether they
            pass depends on the machine or on who is quicker.
        failing (dict[str, str]): Tests that cannot pass on ours, each with the reason. They are run, and have to fail.
        takes_context (bool): Whether it takes `mp_context`; otherwise that is dropped, where tests give one.
    """

    name: str
    stock: str
    mixin: str
    skipped: dict[str, str] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    takes_context: bool = True


ENTRIES: Final = {
    entry.name: entry
    for entry in (
        Entry(
            "ThreadPool",
            "ThreadPoolExecutor",
            "ThreadPoolMixin",
            skipped={
                "test_thread_pool.ThreadPoolExecutorTest.test_default_workers": "ours keeps to a cgroup's quota, too",
            },
            failing={
                "test_shutdown.ThreadPoolShutdownTest.test_thread_names_default": "names the stock class",
            },
        ),
        Entry(
            "ProcessPool",
            "ProcessPoolExecutor",
            "ProcessPoolSpawnMixin",
            skipped={
                f"{_SHUTDOWN}.test_cancel_futures": "no worker of ours may be ready yet, so all calls are cancelled",
            },
            failing={
                f"{_DEADLOCK}.test_error_at_task_unpickle": "the call fails with the error itself",
                f"{_DEADLOCK}.test_error_during_result_unpickle_in_result_handler": "the call alone fails",
                f"{_DEADLOCK}.test_exit_at_task_unpickle": "the call fails with the SystemExit itself",
                f"{_DEADLOCK}.test_exit_during_result_unpickle_in_result_handler": "the call alone fails",
                f"{_DEADLOCK}.test_shutdown_deadlock_pickle": "joins the stock pool's manager thread",
                f"{_INIT_FAILS}.test_initializer": "has a Queue inherited, but workers are no children of ours",
                f"{_CALLS}.test_idle_process_reuse_multiple": "counts the stock pool's _processes",
                f"{_CALLS}.test_idle_process_reuse_one": "counts the stock pool's _processes",
                f"{_CALLS}.test_killed_child": "terminates one of the stock pool's _processes",
                f"{_CALLS}.test_max_tasks_per_child": "counts the stock pool's _processes",
                f"{_CALLS}.test_max_tasks_per_child_defaults_to_spawn_context": "asks for the stock pool's _mp_context",
                f"{_CALLS}.test_python_finalization_error": "wants the pool broken; ours does with the thread it has",
                f"{_CALLS}.test_saturation": "counts the stock pool's _processes",
                f"{_CALLS}.test_traceback": "names the stock class of the cause",
                f"{_SHUTDOWN}.test_context_manager_shutdown": "joins the stock pool's _processes",
                f"{_SHUTDOWN}.test_del_shutdown": "joins the stock pool's threads and _processes",
                f"{_SHUTDOWN}.test_processes_terminate": "counts the stock pool's _processes",
                f"{_SHUTDOWN}.test_shutdown_no_wait": "joins the stock pool's threads and _processes",
            },
            takes_context=False,
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
    _find_first(package)
    support: Any = importlib.import_module("test.support")
    support.verbose = False


def _find_first(package: Path) -> None:
    """Have `test` be this package, not the interpreter's own; in workers, too, which take over `sys.path`."""
    place = Path(tempfile.mkdtemp(prefix="stdlib-executors-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    (place / "test").mkdir()
    (place / "test" / "__init__.py").write_text(f"__path__ = [{str(package)!r}]\n")
    sys.path.insert(0, str(place))


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


class FailuresOnly(unittest.TestResult):
    """Prints what has passed, though it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    def addSuccess(self, test: unittest.TestCase) -> None:  # as inherited
        super().addSuccess(test)
        self.passed += 1
        print("failed", name_of(test), "passes, but is listed as one that cannot", flush=True)


def main(name: str) -> int:
    """Run the tests of an entry; 0 if all did as listed."""
    entry, package = ENTRIES[name], find_tests()
    if package is None:
        print("no tests of executors are installed")
        return 1
    substitute(entry, package)
    tell_programs(entry, package)
    found = list(cases(entry, package))
    unknown = {*entry.skipped, *entry.failing} - {name_of(case) for case in found}
    for each in sorted(unknown):
        print("failed", each, "is listed, but there is no such test")
    told, cannot = Told(), FailuresOnly()
    unittest.TestSuite(case for case in found if name_of(case) not in {*entry.skipped, *entry.failing}).run(told)
    unittest.TestSuite(case for case in found if name_of(case) in entry.failing).run(cannot)
    return 0 if told.wasSuccessful() and not cannot.passed and not unknown else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

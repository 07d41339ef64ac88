"""Handlers of the main script, closures and what they drag along, in worker processes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import PRELUDE, Programs, programs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs and ends them."""
    with programs(tmp_path) as started:
        yield started


QUIET = "import logging; logging.disable(logging.CRITICAL)\n"


def guarded(top: str, body: str) -> str:
    """A script with this on top, and that under its main guard."""
    return (
        PRELUDE
        + textwrap.dedent(top)
        + "\nif __name__ == '__main__':\n"
        + textwrap.indent(QUIET + textwrap.dedent(body), "    ")
    )


TOP = """
    import enum
    from dataclasses import dataclass

    FACTOR = 3

    @dataclass
    class Point:
        x: int

    class Colour(enum.Enum):
        RED = 1

    class Mine(Exception):
        def __init__(self, one, two):
            super().__init__(one)
            self.two = two
        def __reduce__(self):
            return Mine, (self.args[0], self.two)

    def helper(x):
        return x * FACTOR

    def of_main(task):
        if task.get("raise"):
            raise Mine("one", "two")
        return Point(helper(task["point"].x)), Colour.RED, os.getpid()

    async def of_main_async(task):
        await asyncio.sleep(0)
        return helper(task["n"])
"""


def test_what_the_main_script_defines_travels(start):
    """Its handlers, classes, enum members and exceptions: identity holds on the way back."""
    program = start(
        guarded(
            TOP,
            """
            with processes(of_main, max_workers=1) as backend:
                point, colour, pid = backend.run_sync({"point": Point(2)}, wait=10)
                assert type(point) is Point and point.x == 6 and colour is Colour.RED and pid != os.getpid()
                handle = backend.submit_sync({"raise": True})
                error = handle.exception(10)
                assert type(error) is Mine and error.two == "two", error
            with processes(of_main_async, max_workers=1) as backend:
                assert backend.run_sync({"n": 2}, wait=10) == 6
            print("well")
            """,
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "well\n"
    assert program.err == ""


def test_closures_and_lambdas_travel(start):
    """By value, with what they close over."""
    program = start(
        guarded(
            "",
            """
            def make(n):
                cell = {"n": n}
                def closure(task):
                    return task["x"] + cell["n"]
                return closure
            for handler in (make(5), lambda task: task["x"] + 5):
                with processes(handler, max_workers=1) as backend:
                    assert backend.run_sync({"x": 1}, wait=10) == 6
                    assert backend.run_sync({"x": 1, "f": lambda: 1}, wait=10) == 6
                    result = backend.submit_sync({"x": 1}).result(10)
            print("well")
            """,
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "well\n"


def test_a_handler_that_names_its_backend_gets_a_stub(start):
    """Using it raises a RuntimeError that says where the backend lives; the others still work."""
    program = start(
        guarded(
            """
            backend = None
            def handler(task):
                if task["use"]:
                    backend.submit_sync({})
                return "fine"
            """,
            """
            backend = processes(handler, max_workers=1)
            with backend:
                error = backend.submit_sync({"use": True}).exception(10)
                assert type(error) is RuntimeError and "parent process" in str(error), error
                assert backend.run_sync({"use": False}, wait=10) == "fine"
            """,
        )
    )

    assert program.end() == 0, program.err


def test_a_lock_that_a_handler_names_is_refused_by_name(start):
    """At set_handler, not when the first task arrives."""
    program = start(
        guarded(
            """
            lock = threading.Lock()
            def handler(task):
                with lock:
                    return 1
            """,
            """
            try:
                processes(handler)
            except taskback.HandlerNotSerializableError as error:
                print(error.path, error.type_name)
            """,
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "handler uses the global lock lock\n"


def test_a_module_that_starts_a_backend_when_it_is_imported_starts_none_in_workers(start):
    """Its tasks fail with the RuntimeError of that; there is no endless chain of workers."""
    program = start(
        guarded(
            "",
            """
            open("greedy.py", "w").write(
                "import taskback\\n"
                "def handler(task):\\n    return 1\\n"
                "backend = taskback.ProcessPoolTaskBackend(handler, max_workers=1)\\n"
                "backend.initialize_sync(warm=False)\\n"
            )
            import greedy
            error = greedy.backend.submit_sync({}).exception(10)
            assert type(error) is RuntimeError and "imports its handler" in str(error), error
            greedy.backend.shutdown_sync(5)
            """,
        )
    )

    assert program.end() == 0, program.err

    assert "Traceback" not in program.err


def test_a_module_that_waits_for_its_workers_when_it_is_imported_is_told(start):
    """As soon as it does."""
    program = start(
        guarded(
            "",
            """
            open("greedy.py", "w").write(
                "import taskback\\n"
                "def handler(task):\\n    return 1\\n"
                "with taskback.ProcessPoolTaskBackend(handler, max_workers=1): ...\\n"
            )
            try:
                import greedy
            except RuntimeError as error:
                assert "imports its handler" in str(error), error
                tell("refused")
            """,
        )
    )

    assert program.line() == "refused"
    assert program.end() == 0, program.err


def test_handlers_that_a_router_learns_later_reach_the_workers(start):
    """Those registered after set_handler, and after the first task, too."""
    program = start(
        guarded(
            """
            router = taskback.TaskRouter()
            @router.handler("a")
            def a(task):
                return "a"
            """,
            """
            with processes(router, max_workers=1) as backend:
                assert backend.run_sync({"type": "a"}, wait=10) == "a"
                @router.handler("b", timeout=5)
                def b(task):
                    return "b" + str(task["n"])
                assert backend.run_sync({"type": "b", "n": 1}, wait=10) == "b1"
                assert backend.run_sync({"type": "a"}, wait=10) == "a"
                try:
                    backend.submit_sync({"type": "c"})
                except taskback.UnknownTaskTypeError as error:
                    print(error.known)
            """,
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "('a', 'b')\n"


SHORT = """\
import taskback
backend = taskback.ProcessPoolTaskBackend(lambda task: task["n"] + 1, max_workers=1)
backend.initialize_sync()
print(backend.run_sync({"n": 1}, wait=10))
backend.shutdown_sync(5)
"""


def test_code_of_the_command_line_and_of_standard_input_needs_no_file(start):
    """`python -c`, `python < script` and `python -`: workers have no main script to import."""
    running = [start(SHORT, "-c", SHORT), start(SHORT, stdin=True), start(SHORT, "-", stdin=True)]

    for program in running:
        assert program.end() == 0, program.err
        assert program.out == "2\n", program.err
        assert program.err == ""


MODULE = """\
import taskback
def handler(task):
    return task["n"] + 1
if __name__ == "__main__":
    backend = taskback.ProcessPoolTaskBackend(handler, max_workers=1)
    backend.initialize_sync()
    print(backend.run_sync({"n": 1}, wait=10))
    backend.shutdown_sync(5)
"""


def test_a_module_that_runs_as_a_program_has_its_handlers_too(start, tmp_path):
    """`python -m package.module`."""
    package = tmp_path / "elsewhere" / "pack"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "job.py").write_text(MODULE)
    run = "import os, sys; os.chdir({!r}); os.execv(sys.executable, [sys.executable, '-m', 'pack.job'])"
    code = run.format(str(package.parent))
    program = start(code)

    assert program.end() == 0, program.err

    assert program.out == "2\n", program.err
    assert program.err == ""

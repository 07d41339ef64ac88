"""Standard streams as they come: closed, or in non-blocking mode, the run is the same."""

from __future__ import annotations

import os
import pty
import select
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_helpers import Command, Desk, in_order, make_desk

CLOSED = {0: "<&-", 1: ">&-", 2: "2>&-"}
BACKENDS = ("sync", "async", "thread", "process")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A directory to run the command in."""
    yield from make_desk(tmp_path)


def start_without(desk: Desk, *closed: int, arguments: str, stderr_terminal: tuple[int, int] | None = None) -> Command:
    """Start the command as a shell does that has closed these standard streams."""
    words = ["exec", shlex.quote(sys.executable), "-m taskback run", arguments, *(CLOSED[fd] for fd in closed)]
    return desk.start_command(program=["bash", "-c", " ".join(words)], stderr_terminal=stderr_terminal)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_run_needs_no_standard_streams(desk: Desk, closed: tuple[int, ...], backend: str) -> None:
    """With files on both sides none is used, and no file of ours is taken for one: what is printed goes nowhere."""
    desk.write_tasks({"do": "print"}, {"do": "raise", "text": "oops"}, {"do": "nothing"})

    command = start_without(desk, *closed, arguments=f"jobs:chosen tasks.jsonl --backend {backend} --out results.jsonl")

    assert command.finish() == 1, command.err.text
    assert [record["state"] for record in desk.results()] == ["succeeded", "failed", "succeeded"]
    assert command.leaves_nothing()


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2)])
def test_a_closed_standard_input_holds_no_tasks(desk: Desk, closed: tuple[int, ...]) -> None:
    """It is a usage error, and not the place where a socket of ours happens to be, which would be read for ever."""
    command = start_without(desk, *closed, arguments="jobs:echo - --backend sync --out results.jsonl")

    assert command.finish(10) == 2
    if 2 not in closed:
        assert command.err.text == "taskback: standard input is closed; give it TASKS, or name a file of them\n"
    assert not desk.out.exists()


@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2)])
def test_a_closed_standard_output_takes_no_results(desk: Desk, closed: tuple[int, ...]) -> None:
    """The message says what to do."""
    desk.write_tasks({"n": 1})

    command = start_without(desk, *closed, arguments="jobs:count tasks.jsonl --backend sync")

    assert command.finish(10) == 2
    if 2 not in closed:
        assert command.err.text == "taskback: standard output is closed; give it --out FILE\n"
    assert desk.told.poll_line(0) is None


def test_results_come_without_standard_input_and_error(desk: Desk) -> None:
    """What the handler prints, which standard error would show, is not among them."""
    desk.write_tasks({"do": "print"})

    command = start_without(desk, 0, 2, arguments="jobs:chosen tasks.jsonl --backend process")

    assert command.finish() == 0
    assert [record["result"] for record in in_order(command.out.text)] == ["print"]


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_bar_without_standard_output(desk: Desk, backend: str) -> None:
    """`>&-` on a terminal."""
    desk.write_tasks({"n": 1})
    arguments = f"jobs:echo tasks.jsonl --backend {backend} --out results.jsonl"

    command = start_without(desk, 1, arguments=arguments, stderr_terminal=pty.openpty())

    assert command.finish() == 0, command.err.text
    assert "1 task in" in command.err.text


def test_standard_output_need_not_wait(desk: Desk) -> None:
    """In non-blocking mode, which whoever shares a pipe or terminal may choose, a slow reader loses nothing."""
    texts = [f"{n}" * 200_000 for n in range(10)]  # each more than a pipe holds
    desk.write_tasks(*({"n": text} for text in texts))
    read, write = os.pipe()
    os.set_blocking(write, False)
    with open(read, "rb", buffering=0) as results:
        command = desk.start("jobs:echo", "--backend", "thread", stdout=write)
        text = b""
        while command.process.poll() is None:
            if not select.select([], [write], [], 0)[1]:  # full; it is so again after each page
                text += results.read(4_096)
        os.close(write)
        text += results.read()

    assert command.process.returncode == 0, command.err.text
    assert [record["result"] for record in in_order(text.decode())] == texts


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_error_need_not_wait(desk: Desk, unbuffered: str) -> None:
    """Nor is anything lost there, or said no more after a moment without room."""
    message = "x" * 30_000
    desk.write_tasks(*({"do": "raise", "text": message} for _ in range(5)))
    read, write = os.pipe()
    os.set_blocking(write, False)
    # The command gets this end, and closes ours; a second one tells when the pipe is full.
    ours = os.dup(write)
    command = desk.start("jobs:chosen", "--backend", "sync", "--out", "results.jsonl", stderr_terminal=(read, write))
    while select.select([], [ours], [], 0)[1]:
        os.sched_yield()
    os.close(ours)

    assert command.finish() == 1
    assert command.err.text.count(message) == 5
    assert "5 tasks in " in command.err.text

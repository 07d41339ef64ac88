"""Progress: a bar on a terminal, a line now and then elsewhere, and figures that add up."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskback.cli.progress import Progress
from taskback.cli.tally import PROBLEMS_KEPT, Tally
from tests.cli_helpers import OFTEN, Command, Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A directory to run the command in."""
    yield from make_desk(tmp_path)


class Clock:
    """A clock that stands until somebody moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left_are_those_of_this_run() -> None:
    """What earlier runs did counts as done, but not for the rate."""
    clock = Clock()
    tally = Tally({"succeeded": 100, "failed": 5}, clock)
    for _ in range(20):
        tally.count("succeeded", None)
    tally.count("timed_out", "t:1: timed_out")
    clock.now += 10

    figures = tally.figures(total=210, exact=True, running=3)

    assert (figures.done, figures.failed, figures.running) == (126, 6, 3)
    assert figures.rate == pytest.approx(2.1)
    assert figures.seconds_left == pytest.approx(84 / 2.1)


def test_time_left_is_not_guessed_without_a_total() -> None:
    """A pipe may go on for ever."""
    assert Tally({}, Clock()).figures(total=None, exact=False, running=0).seconds_left is None
    assert Tally({}, Clock()).figures(total=5, exact=True, running=0).seconds_left is None


def test_an_estimate_is_never_below_what_is_done() -> None:
    """The last lines of the input may be shorter than the first ones."""
    tally = Tally({"succeeded": 10}, Clock())

    assert tally.figures(total=7, exact=False, running=0).total == 10


def test_few_of_many_problems_are_kept() -> None:
    """A million failures take no more memory than some."""
    tally = Tally({})
    for number in range(1_000):
        tally.count("failed", f"problem {number}")

    assert tally.problems == [f"problem {number}" for number in range(PROBLEMS_KEPT)]
    assert not tally.all_succeeded


@pytest.mark.parametrize(
    ("total", "exact", "expected"),
    [
        (2_000, True, "taskback: 1,000 of 2,000 done, 0 failed, 4 running, 100.0/s, 0:00:10 left\n"),
        (2_000, False, "taskback: 1,000 of about 2,000 done, 0 failed, 4 running, 100.0/s, 0:00:10 left\n"),
        (None, False, "taskback: 1,000 done, 0 failed, 4 running, 100.0/s\n"),
    ],
)
def test_a_plain_line(capsys: pytest.CaptureFixture[str], total: int | None, exact: bool, expected: str) -> None:
    """What an exact total, an estimate and none look like."""
    clock = Clock()
    tally = Tally({}, clock)
    tally.now["succeeded"] = 1_000
    clock.now += 10

    Progress().show(tally.figures(total=total, exact=exact, running=4))

    assert capsys.readouterr().err == expected


def test_a_plain_line_now_and_then(desk: Desk) -> None:
    """Without a terminal the user sees that it goes on, also while nothing ends."""
    desk.write_tasks(*({"n": n} for n in range(10)))
    command = desk.start(
        "jobs:gated", "--workers", "1", "--out", "results.jsonl", program=[sys.executable, "-c", OFTEN]
    )
    desk.told.read_line()

    # Of ten lines it has read five: four in flight, and one that waits for room.
    command.err.wait_for("taskback: 0 of about 10 done, 0 failed, 1 running, 0.0/s\n")
    desk.gate.release(3)
    command.err.wait_for("taskback: 3 of about 10 done, 0 failed, 1 running, ")
    desk.gate.release(7)

    assert command.finish() == 0
    assert command.err.text.endswith("10 succeeded\n")


def start_on_terminal(desk: Desk, *options: str, env: dict[str, str] | None = None) -> Command:
    """Run gated tasks with standard error on a terminal of 120 columns."""
    main, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    terminal = {"TERM": "xterm", "NO_COLOR": "1", **(env or {})}
    return desk.start("jobs:gated", "--workers", "1", *options, env=terminal, stderr_terminal=(main, side))


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_bar_on_a_terminal(desk: Desk, backend: str) -> None:
    """Rich draws how many are done and failed, how many run, the rate and the time left."""
    pytest.importorskip("rich")
    desk.write_tasks(*({"n": n} for n in range(9)), b"[]\n")
    command = start_on_terminal(desk, "--backend", backend, "--out", "results.jsonl")
    desk.told.read_line()

    command.err.wait_for("0 of about 9")  # as its bytes let expect: the last line is a short one
    desk.gate.release(6)
    command.err.wait_for("7 of 10")
    command.err.wait_for("1 failed, 1 running, ")
    command.err.wait_for("/s, 0:00:0")
    command.err.wait_for(" left")
    command.err.wait_for("━")
    desk.gate.release(3)

    assert command.finish() == 1
    assert "\x1b[?25h" in command.err.text, "the cursor stays hidden"
    assert "10 tasks in " in command.err.text
    assert len(desk.results()) == 10


def test_no_bar_without_rich(desk: Desk) -> None:
    """The command needs nothing beyond the library; without the extra there are plain lines."""
    (desk.directory / "blocked" / "rich").mkdir(parents=True)
    (desk.directory / "blocked" / "rich" / "__init__.py").write_text("raise ImportError('no rich here')\n")
    desk.write_tasks({"n": 1})
    path = os.pathsep.join([str(desk.directory / "blocked"), str(Path(__file__).parents[1])])
    command = start_on_terminal(desk, "--out", "results.jsonl", env={"PYTHONPATH": path})
    desk.gate.release(1)

    assert command.finish() == 0
    assert command.err.text.startswith("taskback: 1 task in ")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}])
def test_no_bar_where_it_cannot_be_drawn(desk: Desk, env: dict[str, str]) -> None:
    """A terminal that cannot move its cursor gets plain lines."""
    desk.write_tasks({"n": 1})
    command = start_on_terminal(desk, "--out", "results.jsonl", env=env)
    desk.gate.release(1)

    assert command.finish() == 0
    assert "\x1b" not in command.err.text


def test_what_a_handler_prints_goes_above_the_bar(desk: Desk) -> None:
    """In this process rich puts prints above the bar; those of workers go straight to the terminal."""
    pytest.importorskip("rich")
    (desk.directory / "loud.py").write_text(
        "import jobs, sys\n"
        "def handler(task):\n"
        "    print('said', task['n'], file=sys.stderr)\n"
        "    return jobs.gated(task)\n"
    )
    desk.write_tasks({"n": 1}, {"n": 2})
    main, side = os.openpty()
    command = desk.start(
        "loud:handler", "--backend", "thread", "--workers", "1", "--out", "results.jsonl",
        env={"TERM": "xterm"}, stderr_terminal=(main, side),
    )  # fmt: skip
    command.err.wait_for("said 1")
    desk.gate.release(2)

    assert command.finish() == 0
    assert "said 2" in command.err.text


def test_the_third_signal_shows_the_cursor_again(desk: Desk) -> None:
    """A command that is killed by its user leaves the terminal usable."""
    pytest.importorskip("rich")
    desk.write_tasks({"n": 1})
    main, side = os.openpty()
    command = desk.start(
        "jobs:stuck", "--backend", "thread", "--out", "results.jsonl", "--shutdown-timeout", "600",
        env={"TERM": "xterm"}, stderr_terminal=(main, side),
    )  # fmt: skip
    command.err.wait_for("\x1b[?25l")
    desk.told.read_line()
    command.signal(2)
    command.err.wait_for("interrupted: waiting")
    command.signal(2)
    command.err.wait_for("interrupted again")

    command.signal(2)

    assert command.finish() == -2
    assert command.err.text.endswith("\x1b[?25h")

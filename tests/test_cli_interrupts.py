"""Ctrl-C, SIGTERM and kill -9: tasks end in peace or are stopped, and --resume ends with one result a task."""

from __future__ import annotations

import json
import os
import random
import re
import select
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_helpers import OFTEN, Command, Desk, make_desk

OUT = ("--out", "results.jsonl")
FOR_EVER = ("--shutdown-timeout", "600")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A directory to run the command in."""
    yield from make_desk(tmp_path)


def resume_command(command: Command) -> list[str]:
    """The arguments of the command line that the summary tells the user to type."""
    found = re.search(r"to resume(?:, pipe the same input into)?: (.*)", command.err.text)
    assert found, command.err.text
    words = shlex.split(found[1])
    assert words[1:3] == ["-m", "taskback"]
    return words[3:]


def resume(desk: Desk, command: Command) -> Command:
    """Type it."""
    again = desk.start_command(*resume_command(command))
    assert again.finish() == 0, again.err.text
    return again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("backend", ["sync", "async", "thread", "process"])
def test_the_first_signal_drains(desk: Desk, backend: str, number: signal.Signals) -> None:
    """Tasks in flight end in peace and get their line, no other begins; the summary says how to go on."""
    desk.write_tasks(*({"n": n} for n in range(1, 101)))
    workers = () if backend == "sync" else ("--workers", "1")
    command = desk.start("jobs:gated", "--backend", backend, *workers, *OUT, *FOR_EVER)
    desk.told.read_line()

    command.signal(number)
    command.err.wait_for("interrupted: waiting up to 600 s for")
    desk.gate.release(100)

    assert command.finish() == 130
    done = [record["line"] for record in desk.results()]
    assert done == list(range(1, len(done) + 1))
    assert 1 <= len(done) < 20
    assert {record["state"] for record in desk.results()} == {"succeeded"}
    assert f"interrupted; unfinished: all after line {len(done)} of tasks.jsonl" in command.err.text
    assert command.leaves_nothing()

    resume(desk, command)
    assert [record["result"] for record in desk.results()] == list(range(1, 101))


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_signal_that_comes_too_late_changes_nothing(desk: Desk, backend: str, status: int) -> None:
    """All lines were in flight already and have ended in peace: the exit status says how they ended."""
    bad = [b"[]\n"] if status else []
    desk.write_tasks(*bad, *({"n": n} for n in range(1, 4)))
    often = [sys.executable, "-c", OFTEN]
    command = desk.start("jobs:gated", "--backend", backend, "--workers", "4", *OUT, *FOR_EVER, program=often)
    # Not "of about": it has read the input to its end.
    command.err.wait_for(f"{status} of {3 + status} done, {status} failed, 3 running")

    command.signal(signal.SIGTERM)
    command.err.wait_for("interrupted: waiting up to 600 s for 3 tasks")
    desk.gate.release(3)

    assert command.finish() == status, command.err.text
    assert len(desk.results()) == 3 + status
    assert "interrupted, but everything was finished" in command.err.text
    assert "resume" not in command.err.text
    assert command.leaves_nothing()


def test_ctrl_c_reaches_the_whole_process_group(desk: Desk) -> None:
    """A terminal sends the signal to the workers too: they go on with their tasks."""
    desk.write_tasks(*({"n": n} for n in range(1, 101)))
    command = desk.start("jobs:gated", "--workers", "2", *OUT, *FOR_EVER)
    desk.told.read_line()
    desk.told.read_line()

    command.signal(signal.SIGINT, group=True)
    command.err.wait_for("interrupted: waiting")
    desk.gate.release(100)

    assert command.finish() == 130
    assert {record["state"] for record in desk.results()} == {"succeeded"}
    resume(desk, command)
    assert [record["result"] for record in desk.results()] == list(range(1, 101))


@pytest.mark.parametrize("backend", ["sync", "thread", "process"])
def test_what_does_not_end_within_the_shutdown_timeout_is_stopped(desk: Desk, backend: str) -> None:
    """A handler that swallows everything is killed, or abandoned with its thread; the command ends all the same."""
    desk.write_tasks(*({"n": n} for n in range(1, 101)))
    workers = () if backend == "sync" else ("--workers", "1")
    command = desk.start("jobs:stuck", "--backend", backend, *workers, *OUT, "--shutdown-timeout", "0.2")
    desk.told.read_line()

    command.signal(signal.SIGTERM)

    assert command.finish(10) == 130, command.err.text
    assert desk.results() == []
    assert re.search(r"unfinished: \d+ tasks? begun or waiting \(line 1\b.* and all after line", command.err.text)
    assert command.leaves_nothing()


@pytest.mark.parametrize("backend", ["async", "thread", "process"])
def test_the_second_signal_cancels_at_once(desk: Desk, backend: str) -> None:
    """What was in flight gets no line: --resume runs it again."""
    desk.write_tasks(*({"n": n} for n in range(1, 11)))
    command = desk.start("jobs:gated", "--backend", backend, "--workers", "1", *OUT, *FOR_EVER)
    desk.told.read_line()

    command.signal(signal.SIGINT)
    command.err.wait_for("interrupted: waiting")
    command.signal(signal.SIGINT)

    assert command.finish(10) == 130
    assert "interrupted again: cancelling" in command.err.text
    assert desk.results() == []
    assert command.leaves_nothing()

    desk.gate.release(100)
    resume(desk, command)
    assert [record["result"] for record in desk.results()] == list(range(1, 11))


def test_two_signals_at_once_count_twice(desk: Desk) -> None:
    """The second need not wait until the first was answered."""
    desk.write_tasks({"n": 1})
    command = desk.start("jobs:stuck", "--backend", "thread", *OUT, *FOR_EVER)
    desk.told.read_line()

    command.signal(signal.SIGTERM)
    command.signal(signal.SIGINT)

    assert command.finish(10) == 130
    assert "(line 1)" in command.err.text


def test_a_signal_that_another_thread_gets_is_answered(desk: Desk) -> None:
    """The system may give it to any thread; the main thread's wait ends all the same."""
    (desk.directory / "selfish.py").write_text(
        "import jobs, signal, threading\n"
        "def handler(task):\n"
        "    signal.pthread_kill(threading.get_ident(), signal.SIGINT)\n"
        "    return jobs.gated(task)\n"
    )
    read, write = os.pipe()
    command = desk.start("selfish:handler", "--backend", "thread", *OUT, *FOR_EVER, tasks="-", stdin=read)
    os.close(read)
    with open(write, "wb", buffering=0) as producer:
        producer.write(b'{"n": 1}\n')  # no end of input: nothing else would wake the main thread

        command.err.wait_for("interrupted: waiting", 5)  # the next showing of progress comes after ten seconds
        desk.gate.release(1)

        assert command.finish() == 130
    assert [record["result"] for record in desk.results()] == [1]


def test_the_third_signal_kills(desk: Desk) -> None:
    """Whatever holds the command up, the user gets rid of it."""
    desk.write_tasks({"n": 1})
    command = desk.start("jobs:stuck", "--backend", "thread", *OUT, *FOR_EVER)
    desk.told.read_line()
    command.signal(signal.SIGINT)
    command.err.wait_for("interrupted: waiting")
    command.signal(signal.SIGINT)
    command.err.wait_for("interrupted again")  # the cancelled task now has its grace of two seconds

    command.signal(signal.SIGINT)

    assert command.finish(10) == -signal.SIGINT


def test_a_command_that_waits_for_its_input_can_be_interrupted(desk: Desk) -> None:
    """A silent pipe does not hold it up."""
    read, write = os.pipe()
    command = desk.start("jobs:count", "--backend", "thread", *OUT, tasks="-", stdin=read)
    os.close(read)
    with open(write, "wb", buffering=0) as producer:
        producer.write(b'{"n": 1}\n')
        desk.told.read_line()

        command.signal(signal.SIGINT)

        assert command.finish(10) == 130
    assert [record["result"] for record in desk.results()] == [1]
    assert "all after line 1 of <stdin>" in command.err.text
    assert "to resume, pipe the same input into: " in command.err.text
    again = desk.start_command(*resume_command(command), stdin=b'{"n": 1}\n{"n": 2}\n')
    assert again.finish() == 0
    assert [record["result"] for record in desk.results()] == [1, 2]


@pytest.mark.parametrize("backend", ["sync", "async", "thread", "process"])
def test_exit_hooks_are_called_though_the_input_is_silent(desk: Desk, backend: str) -> None:
    """The handler's modules may have something to close; half a line in the pipe is no task."""
    (desk.directory / "hooked.py").write_text(
        "import atexit, jobs, os\n"
        "def handler(task):\n    return jobs.count(task)\n"
        "@atexit.register\ndef last():\n    jobs.tell(f'closed by {os.getpid()}')\n"
    )
    read, write = os.pipe()
    command = desk.start("hooked:handler", "--backend", backend, *OUT, tasks="-", stdin=read)
    os.close(read)
    with open(write, "wb", buffering=0) as producer:
        producer.write(b'{"n": 1}\n{"n": ')
        assert desk.told.read_line() == "1"
        command.signal(signal.SIGTERM)

        assert command.finish(10) == 130, command.err.text
    assert [record["result"] for record in desk.results()] == [1]
    said = []
    while (line := desk.told.poll_line(0)) is not None:
        said.append(line)
    assert f"closed by {command.process.pid}" in said
    assert command.leaves_nothing()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_first_task(desk: Desk, number: signal.Signals) -> None:
    """While the handler is imported there is nothing to drain."""
    desk.write_tasks({"n": 1})
    (desk.directory / "slow.py").write_text("import jobs; jobs.tell('importing'); jobs.hold(); echo = jobs.echo\n")
    command = desk.start("slow:echo", *OUT)
    desk.told.read_line()

    command.signal(number)

    assert command.finish(10) == 130
    assert command.err.text == "taskback: interrupted before the first task\n"


def test_an_ignored_signal_stays_ignored(desk: Desk) -> None:
    """`nohup`, or `command &` in a script: whoever started it does not want it to hear."""
    desk.write_tasks({"n": 1}, {"n": 2})
    shell = "trap '' INT; exec python -m taskback run jobs:gated tasks.jsonl --backend thread --out results.jsonl"
    command = desk.start_command(program=["bash", "-c", shell.replace("python", shlex.quote(sys.executable))])
    desk.told.read_line()

    command.signal(signal.SIGINT)
    desk.gate.release(2)

    assert command.finish() == 0
    assert len(desk.results()) == 2


def test_a_file_in_use_is_refused(desk: Desk) -> None:
    """--resume beside a run that still goes on would do everything twice."""
    desk.write_tasks({"n": 1})
    command = desk.start("jobs:gated", "--backend", "thread", *OUT)
    desk.told.read_line()

    status, other = desk.run("jobs:count", *OUT, "--resume")

    assert status == 2
    assert "another run is writing results.jsonl" in other.err.text
    desk.gate.release(1)
    assert command.finish() == 0
    assert [record["result"] for record in desk.results()] == [1]


def kill_at_random(desk: Desk, command: Command, chance: random.Random) -> None:
    """`kill -9` after some tasks have begun, plus a moment that is no boundary of anything."""
    while desk.told.poll_line(0) is not None:
        pass  # told by runs before
    for _ in range(chance.randrange(0, 25)):
        if desk.told.poll_line(5) is None:
            break
    select.select([], [], [], chance.uniform(0, 0.01))
    command.kill()


@pytest.mark.parametrize("backend", ["process", "thread"])
def test_kill_9_ten_times_and_resume(desk: Desk, backend: str) -> None:
    """However often and whenever the command is killed, there is one result a task in the end."""
    chance = random.Random(f"kill {backend}")
    tasks = [{"n": n, "id": f"id-{n}", "type": "work"} for n in range(1, 401)]
    tasks[-1]["holds"] = True  # no run is over before it is killed, however late that comes
    desk.write_tasks(*tasks)
    options = ("--backend", backend, "--workers", "2", *OUT, "--resume")
    kills = 0
    for _ in range(10):
        command = desk.start("jobs:work", *options)
        kill_at_random(desk, command, chance)
        kills += command.process.returncode == -signal.SIGKILL
        command.close_processes()  # a worker may outlive its parent for a moment; none of them writes results

    desk.gate.release(1)
    status, command = desk.run("jobs:work", *options)

    assert status == 0, command.err.text
    assert kills == 10
    results = desk.results()
    assert [(record["id"], record["line"], record["result"]) for record in results] == [
        (f"id-{n}", n, n) for n in range(1, 401)
    ]


TORN = """
import os, sys, jobs
from taskback.cli import main

_, length, *arguments = sys.argv
write = os.write

def write_a_part(fd, data):
    if len(data) < 1_000_000:
        return write(fd, data)
    write(fd, bytes(data)[:int(length)])
    jobs.tell("torn")
    jobs.hold()

os.write = write_a_part
sys.exit(main(arguments))
"""


def test_kill_9_while_large_lines_are_written(desk: Desk) -> None:
    """Wherever in a line the kill falls, what is torn is cut off and run again."""
    (desk.directory / "large.py").write_text("def handler(task):\n    return str(task['n']) * 1_000_000\n")
    desk.write_tasks(*({"n": n} for n in range(4)))
    options = ("--backend", "thread", "--workers", "1", *OUT, "--resume")
    for length in (1, 20, 4096, 1_000_000):
        command = desk.start("large:handler", *options, program=[sys.executable, "-c", TORN, str(length)])
        assert desk.told.read_line() == "torn"
        command.kill()
        assert desk.out.stat().st_size == length
        assert not desk.out.read_bytes().endswith(b"\n")

    status, command = desk.run("large:handler", *options)

    assert status == 0, command.err.text
    assert [record["result"] for record in desk.results()] == [str(n) * 1_000_000 for n in range(4)]
    assert json.loads(desk.out.read_bytes().splitlines()[0])["state"] == "succeeded"

"""The policies of `taskback run`: those of the router, and those of its options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli_helpers import Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A directory to run the command in."""
    yield from make_desk(tmp_path)


def of_banks(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"n": n, "bank": f"bank{n % 2}", **fields} for n in range(count)]


def test_max_attempts(desk: Desk) -> None:
    """A task that fails is tried again; its line tells the attempt that was the last."""
    desk.write_tasks({"id": "good", "attempt": 2}, {"id": "bad", "attempt": 3})

    status, command = desk.run("jobs:flaky", "--max-attempts", "2", "--out", "results.jsonl")

    assert status == 1, command.err.text
    results = {record["id"]: record for record in desk.results()}
    assert [(results[name]["state"], results[name]["attempt"]) for name in ("good", "bad")] == [
        ("succeeded", 2),
        ("failed", 2),
    ]


@pytest.mark.parametrize("backend", ["async", "thread", "process"])
def test_a_key(desk: Desk, backend: str) -> None:
    """Of one bank one runs at a time; a line without the field is an error of that line."""
    desk.write_tasks(*of_banks(40), {"id": "keyless", "n": -1})

    status, command = desk.run(
        "jobs:alone", "--backend", backend, "--workers", "3", "--key", "bank", "--out", "results.jsonl"
    )

    assert status == 1, command.err.text
    results = desk.results()
    failed = [record for record in results if record["state"] != "succeeded"]
    assert [record["id"] for record in failed] == ["keyless"]
    assert "'bank'" in failed[0]["error"]["message"]
    assert sorted(record["result"] for record in results if record not in failed) == list(range(40))


def test_the_policies_of_the_router(desk: Desk) -> None:
    """They hold, and the options are for what they leave open."""
    tasks = [{"type": "flaky", "attempt": 2}, {"type": "flaky", "attempt": 3}, *of_banks(20, type="alone", attempt=1)]
    desk.write_tasks(*tasks)

    status, command = desk.run("jobs:careful", "--max-attempts", "9", "--workers", "3", "--out", "results.jsonl")

    assert status == 1, command.err.text
    failed = [record for record in desk.results() if record["state"] != "succeeded"]
    assert [(record["line"], record["attempt"]) for record in failed] == [(2, 2)]


def test_idle_timeout(desk: Desk) -> None:
    """A task that reports nothing is stopped, and says which limit that was."""
    desk.write_tasks({"n": 1})

    status, command = desk.run("jobs:silent", "--idle-timeout", "0.2", "--out", "results.jsonl")

    assert status == 1, command.err.text
    (record,) = desk.results()
    assert record["state"] == "timed_out"
    assert "idle_timeout of 0.2 s" in record["error"]["message"]


def test_queue_timeout(desk: Desk) -> None:
    """A task that waits too long is not begun."""
    desk.write_tasks({"n": 1}, {"n": 2})

    arguments = ("--workers", "1", "--timeout", "2", "--queue-timeout", "1", "--out", "results.jsonl")
    status, command = desk.run("jobs:silent", *arguments)

    assert status == 1, command.err.text
    messages = {record["line"]: record["error"]["message"] for record in desk.results()}
    assert "time limit of 2 s" in messages[1]
    assert "queue_timeout of 1 s" in messages[2]


def test_max_queued(desk: Desk) -> None:
    """All tasks run, however few are read ahead."""
    desk.write_tasks(*({"n": n} for n in range(50)))

    status, command = desk.run("jobs:echo", "--workers", "2", "--max-queued", "1", "--out", "results.jsonl")

    assert status == 0, command.err.text
    assert sorted(record["result"] for record in desk.results()) == list(range(50))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--backend", "sync", "--max-attempts", "2"], "--max-attempts"),
        (["--backend", "sync", "--key", "bank"], "--key"),
        (["--backend", "async", "--max-queued", "2"], "--max-queued"),
        (["--max-attempts", "0"], "at least 1"),
        (["--idle-timeout", "0"], "more than 0"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(desk: Desk, arguments: list[str], named: str) -> None:
    """It says which option, and nothing runs."""
    desk.write_tasks({"n": 1})

    status, command = desk.run("jobs:echo", *arguments)

    assert status == 2
    assert named in command.err.text
    assert command.out.text == ""

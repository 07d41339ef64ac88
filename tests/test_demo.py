"""The demo's handler, its corpus and its comparison, on sources small enough to check by eye."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from examples.agree import disagreements
from examples.compare import Run, StallMeter, compare, table, write_lines
from examples.consolidation import STDLIB, consolidate
from examples.near_duplicates import group_near_duplicates
from examples.statements import Statement, normalise, read_statements
from examples.stdlib_banks import stdlib_tasks

ROOT = Path(__file__).resolve().parents[1]

QUEUE = '''\
"""Return the number of items in the queue. It is not reliable!

    >>> print("an example typed at a prompt")

- The first of two bullets.
- The second of two bullets.
"""
'''
STACK = '''\
#!/usr/bin/env python3
import os  # a comment that stands behind code

# Return the number of items
# in this queue. It is not reliable!
def size(self):
    """Something else, said only here."""
'''


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """A bank of two files that have something in common."""
    (tmp_path / "queue.py").write_text(QUEUE, encoding="utf-8")
    (tmp_path / "stack.py").write_text(STACK, encoding="utf-8")
    return {
        "type": "consolidation",
        "bank_id": "small",
        "paths": [str(tmp_path / "queue.py"), str(tmp_path / "stack.py")],
    }


def test_statements_are_sentences_with_their_lines() -> None:
    """Docstrings and comments are cut into sentences; examples and short remarks are left out."""
    queue = read_statements("queue.py", QUEUE.encode())
    stack = read_statements("stack.py", STACK.encode())

    assert queue == [
        Statement("Return the number of items in the queue.", "queue.py", 1),
        Statement("It is not reliable!", "queue.py", 1),
        Statement("- The first of two bullets.", "queue.py", 5),
        Statement("- The second of two bullets.", "queue.py", 6),
    ]
    assert stack == [
        Statement("Something else, said only here.", "stack.py", 7),
        Statement("a comment that stands behind code", "stack.py", 2),
        Statement("Return the number of items in this queue.", "stack.py", 4),
        Statement("It is not reliable!", "stack.py", 5),
    ]


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns at every chance, and each garbage collection is one."""
    interval = sys.getswitchinterval()

    def take_a_moment(_phase: str, _facts: dict[str, int]) -> None:
        for _ in range(1000):
            pass

    gc.callbacks.append(take_a_moment)
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)
    gc.callbacks.remove(take_a_moment)


@pytest.mark.usefixtures("eager_switching")
def test_files_can_be_read_in_several_threads_at_once() -> None:
    """No thread upsets another one's parsing, as they do on CPython before 3.11.8."""
    source = Path(asyncio.base_events.__file__).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_statements("base_events.py", source), range(8)))

    assert all(statements == found[0] for statements in found)


def test_normalising_keeps_operators() -> None:
    """What differs in an operator alone is no repetition."""
    assert normalise("Same as  A + b.") == normalise("same as (a + b)")
    assert normalise("Same as a != b.") != normalise("Same as a == b.")


def test_near_duplicates_are_merged_and_keep_their_sources(task: dict[str, Any], tmp_path: Path) -> None:
    """Equal and nearly equal statements become one, with each place where they stand."""
    result = consolidate(task)

    queue, stack = tmp_path / "queue.py", tmp_path / "stack.py"
    assert result == {
        "bank_id": "small",
        "files": 2,
        "unreadable": [],
        "statements": 8,
        "distinct": 6,
        "merged": [
            {"text": "It is not reliable!", "wordings": 1, "sources": [f"{queue}:1", f"{stack}:5"]},
            {
                "text": "Return the number of items in the queue.",
                "wordings": 2,
                "sources": [f"{queue}:1", f"{stack}:4"],
            },
        ],
    }


def test_likeness_reaches_through_others() -> None:
    """Two texts that differ too much are in one group if a third one links them."""
    texts = [
        "return the number of items in the queue of the waiting tasks",
        "return the number of items in the queue of the waiting jobs of yesterday",
        "some other thing that nothing here resembles at all",
        "return the number of items in the queue of the waiting jobs",
    ]

    assert group_near_duplicates(texts) == [[0, 1, 3], [2]]
    assert group_near_duplicates(texts[:2]) == [[0], [1]]


def test_nothing_in_gives_nothing_out() -> None:
    """A bank without files has a result like any other."""
    result = consolidate({"type": "consolidation", "bank_id": "empty", "paths": []})

    assert result["statements"] == result["distinct"] == 0
    assert result["merged"] == []


@pytest.mark.parametrize(
    "source",
    [
        b"def broken(:\n",
        b"# a null byte\x00 in the middle\n",
        b"# coding: no-such-encoding\n",
        b"# not utf-8 \xff\n",
        b"x = (\n",
        None,
    ],
    ids=["syntax", "null byte", "unknown encoding", "wrong encoding", "unfinished", "missing"],
)
def test_an_unreadable_file_does_not_stop_the_others(
    task: dict[str, Any], tmp_path: Path, source: bytes | None
) -> None:
    """What cannot be read is named in the result, with the reason, and the rest is consolidated as before."""
    before = consolidate(task)
    bad = tmp_path / "bad.py"
    if source is not None:
        bad.write_bytes(source)

    after = consolidate({**task, "paths": [str(bad), *task["paths"]]})

    assert [entry["path"] for entry in after.pop("unreadable")] == [str(bad)]
    assert after == {key: value for key, value in before.items() if key != "unreadable"}


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_gives_the_same_result(task: dict[str, Any], seed: str) -> None:
    """The result depends on the task alone, not on the process or its hash seed."""
    program = (
        "import json, sys; from examples.consolidation import consolidate;"
        "print(json.dumps(consolidate(json.loads(sys.argv[1]))))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(task)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert json.loads(done.stdout) == consolidate(task) == consolidate(task)


def test_the_corpus_is_the_standard_library() -> None:
    """The tasks have each source file once, largest bank first, and no path of this machine."""
    tasks = stdlib_tasks(STDLIB)

    paths = [path for task in tasks for path in task["paths"]]
    banks = {task["bank_id"]: task["paths"] for task in tasks}
    assert 40 <= len(banks) == len(tasks) <= 100
    assert len(set(paths)) == len(paths)
    assert not any(Path(path).is_absolute() for path in paths)
    assert "json/decoder.py" in banks["json"]
    assert banks["typing"] == ["typing.py"]
    assert "abc.py" in banks["modules in a"]


def test_every_backend_gives_the_same_results(task: dict[str, Any]) -> None:
    """Inline, in threads and in processes: the table says that the results are the same."""
    runs = asyncio.run(compare([task, {**task, "bank_id": "other"}], workers=2))

    assert [run.name for run in runs] == ["inline", "2 threads", "2 processes"]
    assert all(run.results == [consolidate(task), {**consolidate(task), "bank_id": "other"}] for run in runs)
    assert "DIFFERENT" not in table(runs)


def test_the_table_shows_different_results() -> None:
    """A backend with other results than the first is called out."""
    lines = table([Run("inline", 2.0, 2.0, [{"a": 1}]), Run("threads", 1.0, 0.01, [{"a": 2}])]).splitlines()

    assert lines[2].split() == ["threads", "1.00", "s", "0.50", "10.0", "ms", "DIFFERENT"]


def test_the_stall_meter_sees_a_blocked_loop() -> None:
    """A call that blocks the loop is seen, even if it is the last thing that the loop does."""

    async def block() -> float:
        async with StallMeter() as meter:
            time.sleep(0.05)
        return meter.longest

    assert asyncio.run(block()) >= 0.04


def test_agreement_names_what_differs(tmp_path: Path) -> None:
    """The results of the command are compared bank by bank, whatever their order."""
    expected, written = tmp_path / "expected.jsonl", tmp_path / "written.jsonl"
    write_lines(expected, [{"bank_id": "a", "files": 1}, {"bank_id": "b", "files": 1}])
    good = [{"result": {"bank_id": "b", "files": 1}}, {"result": {"bank_id": "a", "files": 1}}]

    write_lines(written, good)
    assert disagreements(expected, written) == []

    write_lines(written, [good[0], good[0], {"state": "failed", "error": {}}])
    assert disagreements(expected, written) == [
        "line 2: b is different, unexpected or there twice",
        "line 3: no result, the task is failed",
        "a is missing",
    ]

"""The results file: appended line by line, read back for --resume, never anything lost or cut that is not ours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskback.cli.complaints import CommandError
from taskback.cli.results_file import Results, results_file
from taskback.cli.resume import Finished, InputChangedError, read_finished
from taskback.cli.source import Source


def result(line: int, state: str = "succeeded", id: str | None = None, type: str | None = None) -> bytes:
    record = {"id": id or f"line-{line}", "line": line, "type": type, "state": state, "result": line}
    return json.dumps(record).encode() + b"\n"


def source(line: int, id: str | None = None, type: str | None = None) -> Source:
    return Source(line, f"tasks.jsonl:{line}", id or f"line-{line}", id or f"line-{line}", type, 10)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the results go."""
    return tmp_path / "results.jsonl"


@contextlib.contextmanager
def opened(out: Path, *, resume: bool = False) -> Iterator[Results]:
    tasks = out.with_name("tasks.jsonl")
    tasks.touch()
    with open(tasks, "rb") as stream, results_file(str(out), resume=resume, tasks=stream) as results:
        yield results


def finished_lines(results: Results, upto: int) -> list[int]:
    return [line for line in range(1, upto + 1) if results.finished.has(source(line))]


def test_a_line_is_in_the_file_once_it_is_appended(out: Path) -> None:
    """A killed command loses nothing that it has appended: no buffer of ours holds it."""
    with opened(out) as results:
        results.append(result(1))

        assert out.read_bytes() == result(1)


def test_resume_appends_to_what_is_there(out: Path) -> None:
    """Finished lines are known, and stay."""
    out.write_bytes(result(3) + result(1, "failed"))

    with opened(out, resume=True) as results:
        assert finished_lines(results, 4) == [1, 3]
        assert results.finished.by_state == {"succeeded": 1, "failed": 1}
        assert results.finished.highest == 3
        results.append(result(2))

    assert out.read_bytes() == result(3) + result(1, "failed") + result(2)


@pytest.mark.parametrize("cut", range(1, len(result(2)) + 1))
def test_a_torn_last_line_is_cut_off(out: Path, cut: int) -> None:
    """Wherever the kill fell, whole lines are kept and the torn one's task is to be run again."""
    out.write_bytes(result(1) + result(2)[:-cut])

    with opened(out, resume=True) as results:
        assert finished_lines(results, 2) == [1]
        results.append(result(2))

    assert out.read_bytes() == result(1) + result(2)


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\0\0\n", b'{"id": \0\0\0', b'{"id": "x", "line"\n'])
def test_what_a_power_cut_leaves_is_cut_off(out: Path, tail: bytes) -> None:
    """File systems leave zeros where data had not reached the disk."""
    out.write_bytes(result(1) + tail)

    with opened(out, resume=True) as results:
        assert finished_lines(results, 2) == [1]

    assert out.read_bytes() == result(1)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"notes of mine", id="text without an end"),
        pytest.param(b'{"type": "echo"}\n', id="tasks"),
        pytest.param(result(1) + b"oops\n" + result(2), id="a strange line between"),
        pytest.param(b'{"id": "x", "line": 0, "state": "failed"}\n' + result(1), id="no such line"),
        pytest.param(b'{"id": "x", "line": 1, "state": "queued"}\n' + result(1), id="no such state"),
        pytest.param(b'{"id": 7, "line": 1, "state": "failed"}\n' + result(1), id="no such id"),
        pytest.param(b'[{"id": "x"}]\n', id="an array"),
        pytest.param(b'{"id": "important", "payload": "mine"}\n', id="begins like a result"),
        pytest.param(b'{"id": "important", "payload": "mine"}', id="begins like a result, without an end"),
        pytest.param(b'{"id": "important", "payload": "mine"}\0\0', id="begins like a result, before zeros"),
        pytest.param(result(1) + b'{"id": "important", "payload": "mine"}\n', id="begins like a result, at the end"),
        pytest.param(b'{"id": ' + b"1" * 5_000 + b"}\n", id="begins like a result, with a number too long to read"),
    ],
)
def test_somebody_elses_file_is_refused_and_kept(out: Path, content: bytes) -> None:
    """A file that holds anything but results is not appended to, and nothing is cut off it."""
    out.write_bytes(content)

    with pytest.raises(CommandError, match=r"results\.jsonl:\d: no result line"), opened(out, resume=True):
        pass

    assert out.read_bytes() == content


def test_a_file_that_is_not_empty_needs_resume(out: Path) -> None:
    """Nothing is overwritten, and the message says what to do."""
    out.write_bytes(result(1))

    with pytest.raises(CommandError, match="not empty; --resume goes on") as caught, opened(out):
        pass

    assert caught.value.status == 2
    assert out.read_bytes() == result(1)


def test_resume_without_a_file_begins_one(out: Path) -> None:
    """The same command line serves the first run and all others."""
    with opened(out, resume=True) as results:
        results.append(result(1))

    assert out.read_bytes() == result(1)


def test_results_do_not_go_into_the_tasks(tmp_path: Path) -> None:
    """The same file, also under another name."""
    tasks, out = tmp_path / "tasks.jsonl", tmp_path / "link.jsonl"
    tasks.write_bytes(b'{"id": "x"}')
    out.hardlink_to(tasks)

    with (
        open(tasks, "rb") as stream,
        pytest.raises(CommandError, match="is the file that the tasks are read from"),
        results_file(str(out), resume=True, tasks=stream),
    ):
        pass

    assert tasks.read_bytes() == b'{"id": "x"}'


def test_two_runs_do_not_write_one_file(out: Path) -> None:
    """The second is refused; the lock goes with the process, however it ends."""
    pytest.importorskip("fcntl")
    script = (
        "import sys; from taskback.cli.results_file import results_file\n"
        "with open(sys.argv[2], 'rb') as tasks, results_file(sys.argv[1], resume=True, tasks=tasks):\n"
        "    print('locked', flush=True); sys.stdin.read()\n"
    )
    tasks = out.with_name("tasks.jsonl")
    tasks.touch()
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(out), str(tasks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"locked\n"
            with pytest.raises(CommandError, match="another run is writing"), opened(out, resume=True):
                pass
        finally:
            other.kill()

    with opened(out, resume=True) as results:
        results.append(result(1))


def test_a_forked_worker_does_not_keep_the_lock(out: Path) -> None:
    """A worker that outlives a killed command does not keep the next one out."""
    pytest.importorskip("fcntl")
    script = (
        "import os, sys; from taskback.cli.results_file import results_file\n"
        "with open(sys.argv[2], 'rb') as tasks, results_file(sys.argv[1], resume=True, tasks=tasks):\n"
        "    if os.fork(): os._exit(0)\n"
        "    print('child', flush=True); sys.stdin.read()\n"
    )
    tasks = out.with_name("tasks.jsonl")
    tasks.touch()
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(out), str(tasks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:  # closes the child's standard input, which ends it
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"child\n"
        parent.wait(30)
        with opened(out, resume=True) as results:
            results.append(result(1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    """Which file, and why; the exit status is 1."""
    tasks = tmp_path / "tasks.jsonl"
    tasks.touch()
    with (
        open(tasks, "rb") as stream,
        results_file("/dev/full", resume=False, tasks=stream) as results,
        pytest.raises(CommandError, match="cannot write /dev/full: No space left on device") as caught,
    ):
        results.append(result(1))

    assert caught.value.status == 1


@pytest.mark.parametrize("where", ["missing/results.jsonl", "."])
def test_a_file_that_cannot_be_opened_is_a_usage_error(tmp_path: Path, where: str) -> None:
    """A directory that is not there, or that is one."""
    tasks = tmp_path / "tasks.jsonl"
    tasks.touch()
    with (
        open(tasks, "rb") as stream,
        pytest.raises(CommandError, match="cannot write") as caught,
        results_file(str(tmp_path / where), resume=False, tasks=stream),
    ):
        pass

    assert caught.value.status == 2


def test_only_regular_files_are_resumed(tmp_path: Path) -> None:
    """There is nothing to be read back from a device."""
    tasks = tmp_path / "tasks.jsonl"
    tasks.touch()
    with (
        open(tasks, "rb") as stream,
        pytest.raises(CommandError, match="regular file"),
        results_file(os.devnull, resume=True, tasks=stream),
    ):
        pass


@pytest.mark.parametrize(("id", "type"), [("b", "t"), ("a", "u"), ("line-1", "t"), ("a", None)])
def test_a_changed_input_is_noticed(id: str, type: str | None) -> None:
    """A line's result must be that of the task that stands there now."""
    finished = Finished()
    finished.add(1, "a", "t", "succeeded")
    assert finished.has(source(1, "a", "t"))

    with pytest.raises(InputChangedError, match=r"tasks\.jsonl:1: this line has a result, of a task with another id"):
        finished.has(source(1, id, type))


def test_the_first_result_of_a_line_counts() -> None:
    """Files that somebody joined by hand do not count tasks twice."""
    finished, end = read_finished(io.BytesIO(result(1) + result(1, "failed")), "r")

    assert finished.by_state == {"succeeded": 1}
    assert end == len(result(1) + result(1, "failed"))


def test_finished_lines_take_a_few_bytes_each() -> None:
    """A million results can be resumed: what they hold is not kept, nor is their order."""
    lines = 200_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        finished = Finished()
        for line in range(lines, 0, -1):
            finished.add(line, "id", "type", "succeeded")
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert finished.by_state.total() == lines
    assert grown < 8 * lines


def test_a_line_number_without_measure_costs_little() -> None:
    """A broken results file does not make the command ask for all the memory there is."""
    finished = Finished()

    finished.add(10**15, "a", None, "failed")

    assert finished.has(source(10**15, "a"))
    assert not finished.has(source(1))

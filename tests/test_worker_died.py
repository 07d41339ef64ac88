"""What the error of a dead worker says: how, where and with what last words it died, and whether memory ran out."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from taskback import ProcessPoolTaskBackend, Progress, TaskState, WorkerDiedError, current_task
from taskback.pools import ProcessPool
from taskback.pools.child.evidence import Witness
from tests.faults import LIMIT
from tests.gates import Gate
from tests.gates import hold as hold_at
from tests.helpers import ROOT, process_backends, run_python, until

MB: Final = 2**20
GROUPS: Final = Path("/sys/fs/cgroup/memory")  # version 1; or one below GROUPS_2
GROUPS_2: Final = Path("/sys/fs/cgroup")
early = logging.StreamHandler()  # made when this module is imported: it has the stream of that time
kept: list[bytearray] = []

Make = Callable[..., ProcessPoolTaskBackend]


def work(task: dict[str, Any]) -> Any:
    """Report, write, and end as it says."""
    if "report" in task:
        current_task().report(**task["report"])
    if "print" in task:
        print(task["print"], file=sys.stderr)
    return DOES[task["do"]](task)


def _segfault(task: dict[str, Any]) -> None:
    ctypes.string_at(0)


def _exit(task: dict[str, Any]) -> None:
    os._exit(3)


def _kill(task: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _overflow(task: dict[str, Any]) -> None:
    faulthandler._stack_overflow()  # type: ignore[attr-defined]


def _nothing_left(task: dict[str, Any]) -> None:
    """Meet RLIMIT_AS as code in C does that expects no refusal: it aborts."""
    resource.setrlimit(resource.RLIMIT_AS, (400 * MB, 400 * MB))
    with suppress(MemoryError):
        while True:
            kept.append(bytearray(b"x") * MB)
    os.abort()


def _hold(task: dict[str, Any]) -> None:
    hold_at(task["gate"], os.getpid())
    _segfault(task)


def _deaf(task: dict[str, Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(BaseException):
            time.sleep(0.01)


def _write_much(task: dict[str, Any]) -> None:
    """Some lines, then 16 MB at once, then a line."""
    for number in range(1000):
        print("line", number, file=sys.stderr)
    sys.stderr.buffer.write(b"y" * (16 * MB))
    sys.stderr.buffer.flush()
    print("\nthe end", file=sys.stderr)
    _kill(task)


def _write_in_threads(task: dict[str, Any]) -> None:
    threads = [threading.Thread(target=_write_lines) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _kill(task)


def _write_lines() -> None:
    for _ in range(200):
        sys.stderr.write("0123456789\n")


def _log(task: dict[str, Any]) -> None:
    early.emit(logging.makeLogRecord({"msg": "said by an early handler"}))
    _kill(task)


def _bytes(task: dict[str, Any]) -> None:
    sys.stderr.buffer.write("bytes, \u00fc\n".encode())
    sys.stderr.flush()
    _kill(task)


def _looks(task: dict[str, Any]) -> tuple[object, ...]:
    err = sys.stderr
    return err.fileno(), err.isatty(), err.encoding, err.errors, err.name, err.mode, err.line_buffering


def _close(task: dict[str, Any]) -> None:
    sys.stderr.close()
    _kill(task)


def _fork(task: dict[str, Any]) -> int:
    """A child that opens a file and crashes: neither the file nor the worker's last words have anything of it."""
    pid = os.fork()
    if not pid:
        with open(task["path"], "wb"):
            _segfault(task)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


DOES: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    name.removeprefix("_"): value
    for name, value in list(globals().items())
    if name.startswith("_") and callable(value) and getattr(value, "__module__", None) == __name__
}
DOES["abort"] = lambda task: os.abort()


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends."""
    with process_backends(work, grace=0.3) as made:
        yield made


def died(backend: ProcessPoolTaskBackend, do: str, **task: Any) -> WorkerDiedError:
    """What the caller of a task gets that takes its worker along."""
    handle = backend.submit_sync({"do": do, **task})
    error = handle.exception(LIMIT)

    assert isinstance(error, WorkerDiedError)
    assert handle.state is TaskState.LOST
    return error


# --- how, where, and with what words ---


@pytest.mark.parametrize(
    ("do", "exitcode", "fatal"),
    [
        ("segfault", -signal.SIGSEGV, "Segmentation fault"),
        ("overflow", -signal.SIGSEGV, "Segmentation fault"),
        ("abort", -signal.SIGABRT, "Aborted"),
        ("exit", 3, ""),
        ("kill", -signal.SIGKILL, ""),
    ],
)
def test_the_error_tells_all_that_is_known(make, caplog, do, exitcode, fatal):
    """As attributes, in the one text, and in the log; after pickling, too. Nothing of it is put down to memory."""
    backend = make()

    error = died(backend, do, report={"stage": "parsing", "done": 3, "total": 7, "page": 5}, print="what I was at")

    name = signal.Signals(-exitcode).name if exitcode < 0 else None
    assert (error.exitcode, error.signal_name, error.stage, error.out_of_memory) == (exitcode, name, "parsing", "")
    assert error.ran is not None
    assert error.peak_rss_bytes is not None
    assert error.progress == Progress(3, 7, "parsing", {"page": 5})
    assert error.stderr.startswith("what I was at\n")
    assert ("Fatal Python error: " + fatal in error.stderr) == bool(fatal)
    assert (f"in _{do}" in error.stderr) == (do in ("segfault", "overflow"))
    until(lambda: caplog.records)  # its caller hears of it first
    for part in (name or "status 3", "in its stage 'parsing', 3 of 7 done", "peak memory", "what I was at", fatal):
        assert part in str(error)
        assert part in caplog.text
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert backend.run_sync({"do": "looks"}, wait=LIMIT)


def test_of_a_plain_pool_too():
    """A future's error has the last words and the place of the crash."""
    with ProcessPool(1) as pool:
        error = pool.submit(work, {"do": "segfault", "print": "what I was at"}).exception(LIMIT)

    assert isinstance(error, WorkerDiedError)
    assert error.stderr.startswith("what I was at\nFatal Python error: Segmentation fault")
    assert (error.progress, error.stage) == (None, None)


def test_a_crash_is_told_though_stacks_were_asked_for_before(make, tmp_path):
    """They lie in the same file, the crash behind them."""
    gate = Gate(tmp_path)
    backend = make()
    handle = backend.submit_sync({"do": "hold", "gate": gate.path})
    gate.wait_said()
    assert "_hold" in backend.stacks()[handle.id]

    gate.open()
    error = handle.exception(LIMIT)

    assert isinstance(error, WorkerDiedError)
    assert error.stderr.startswith("Fatal Python error: Segmentation fault")
    gate.close()


def test_another_reason_keeps_the_facts():
    """What a verdict adds, it adds at the end."""
    error = WorkerDiedError(5, -9, 1.0, MB, "it was killed", "a count", Progress(stage="x"), "last")
    error.__cause__ = OSError("cause")

    more = error.because("again")

    assert (more.why, more.__cause__) == ("it was killed; again", error.__cause__)
    assert {**vars(more), "why": ""} == {**vars(error), "why": ""}


def test_the_text_of_a_crash_begins_with_the_thread_that_it_befell():
    """However many others there are, and however deep it was."""
    others = "Thread 0x1:\n" + "  File other\n" * 30
    hit = "Current thread 0x2:\n" + "".join(f"  File hit {n}\n" for n in range(90))
    error = WorkerDiedError(5, -11, stderr=f"said\nFatal Python error: Segmentation fault\n\n{others}\n{hit}")

    text = str(error)

    assert "said\n    Fatal Python error: Segmentation fault\n    Current thread 0x2:\n      File hit 0\n" in text
    assert "other" not in text
    assert "hit 30" not in text


def test_the_text_has_the_last_lines_alone():
    """The attribute has the others."""
    error = WorkerDiedError(5, -9, stderr="\n".join(f"line {n}" for n in range(100)))

    assert "line 80\n    line 81" in str(error)
    assert "line 79" not in str(error)
    assert "line 0\n" in error.stderr


# --- the last of its stderr ---


def test_however_much_is_written_the_end_is_kept(make):
    """4 KiB of it, whether that came in lines or at once."""
    error = died(make(), "write_much")

    assert error.stderr == "y" * (4096 - len("\nthe end\n")) + "\nthe end\n"


def test_lines_of_threads_are_kept(make):
    """Each whole, for a stream has a lock."""
    error = died(make(), "write_in_threads")

    assert len(error.stderr) == 4096
    assert set(error.stderr.splitlines()[1:]) == {"0123456789"}


@pytest.mark.parametrize(("do", "said"), [("log", "said by an early handler\n"), ("bytes", "bytes, \u00fc\n")])
def test_what_takes_another_way_to_stderr_is_kept(make, do, said):
    """A logging handler that was made by an import, and what is written as bytes."""
    assert died(make(), do).stderr == said


def test_the_stream_looks_as_before(make):
    """Its descriptor, encoding, name and mode; it can be closed."""
    backend = make()

    looks = backend.run_sync({"do": "looks"}, wait=LIMIT)

    assert looks[:1] + looks[2:] == (2, "utf-8", "backslashreplace", "<stderr>", "w", True)
    assert died(backend, "close", print="before").stderr == "before\n"


def test_a_child_of_a_handler_that_crashes_has_no_say(make, tmp_path):
    """Its crash is written neither to the worker's last words, nor into a file which it has opened."""
    backend = make()
    path = tmp_path / "opened"

    assert backend.run_sync({"do": "fork", "path": str(path)}, wait=LIMIT) == -signal.SIGSEGV

    assert path.read_bytes() == b""
    assert died(backend, "kill").stderr == ""


PROGRAM: Final = """
from taskback.pools import ProcessPool

def say(text):
    import os, sys
    print(text, file=sys.stderr)
    os.write(2, b"and past Python\\n")
    return os.getpid()
"""


def test_what_workers_write_passes_through():
    """At once, in order, whichever way it is written."""
    done = run_python("-c", PROGRAM + "with ProcessPool(1) as pool: print(pool.submit(say, 'hello').result())")

    assert done.stderr == "hello\nand past Python\n"


def test_a_program_without_stderr_has_workers():
    """The stream is None there; the pool works as ever, and keeps no words."""
    code = PROGRAM + "with ProcessPool(1) as pool: print(pool.submit(abs, -1).result())"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )

    assert (done.stdout, done.returncode) == (b"1\n", 0)


def test_a_full_stderr_blocks_its_writer_alone():
    """The pool's other worker works on, the blocked one can be killed, and the program ends."""
    reading, writing = os.pipe()
    code = PROGRAM + textwrap.dedent("""
        import os
        with ProcessPool(2) as pool:
            stuck = pool.submit(say, "x" * 1_000_000)
            pids = {pool.submit(os.getpid).result(20) for _ in range(50)}
            print(len(pids), stuck.done())
            pool.kill_workers()
            print(type(stuck.exception(20)).__name__)
        """)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writing,
            timeout=2 * LIMIT,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)

    assert (done.stdout, done.returncode) == (b"1 False\nWorkerDiedError\n", 0)


# --- memory ---


def test_a_crash_at_a_limit_of_memory_says_so(make):
    """With the limit and what the worker had: that is the evidence."""
    error = died(make(), "nothing_left")

    assert error.signal_name == "SIGABRT"
    assert error.out_of_memory.startswith("it was limited to 400 MiB (RLIMIT_AS), and had ")
    assert f"likely out of memory: {error.out_of_memory}" in str(error)


def test_a_kill_of_ours_is_no_lack_of_memory(make):
    """Though the limit of its time and the kill are told."""
    handle = make().submit_sync({"do": "deaf"}, timeout=0.2)
    error = handle.exception(LIMIT)

    assert handle.state is TaskState.TIMED_OUT
    assert "out of memory" not in str(error)


def test_only_a_count_that_has_moved_is_evidence(tmp_path, monkeypatch):
    """Since the last look; a crash within no limit is none, whatever has moved."""
    vmstat = tmp_path / "proc" / "vmstat"
    vmstat.parent.mkdir()
    vmstat.write_text("nr_free_pages 5\noom_kill 3\n")
    monkeypatch.setattr("taskback._cgroup.ROOT", str(tmp_path))
    witness = Witness()
    assert witness.testify(-signal.SIGKILL, MB, {}) == ""

    vmstat.write_text("nr_free_pages 5\noom_kill 4\n")

    assert witness.testify(-signal.SIGSEGV, MB, {"RLIMIT_AS": 10 * MB}) == ""
    assert "on this machine went from 3 to 4" in witness.testify(-signal.SIGKILL, MB, {})
    assert witness.testify(-signal.SIGKILL, MB, {}) == ""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of memory with 300 MB."""
    one = (GROUPS / "memory.limit_in_bytes").exists()
    made = (GROUPS if one else GROUPS_2) / f"taskback-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (made / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(300 * MB))
            swap = made / ("memory.swappiness" if one else "memory.swap.max")
            with suppress(FileNotFoundError):  # there is no swap to be counted
                swap.write_text("0")
        except OSError as error:
            pytest.skip(f"a control group cannot be given a limit of memory here: {error}")
        yield made
    finally:
        deadline = time.monotonic() + LIMIT
        while made.exists() and time.monotonic() < deadline:
            with suppress(OSError):  # the kernel is not finished with its processes
                made.rmdir()


def test_a_kill_for_want_of_memory_is_told_with_the_kernels_count(group):
    """The group's own; a worker that somebody kills by hand there is not said to have lacked memory."""
    code = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')" + textwrap.dedent("""
        from taskback.pools import ProcessPool

        def grow():
            kept = []
            while True:
                kept.append(bytearray(b"x") * 2**20)

        def kill():
            import os
            os.kill(os.getpid(), 9)

        with ProcessPool(1) as pool:
            for fn in (kill, grow, kill):
                error = pool.submit(fn).exception(60)
                print(error.signal_name, error.out_of_memory or "nothing", sep=": ")
                assert fn is kill or "likely out of memory: the kernel's count" in str(error), str(error)
        """)

    done = run_python("-c", code, timeout=3 * LIMIT)

    first, grown, last = done.stdout.splitlines() or [done.stderr] * 3
    assert (first, last) == ("SIGKILL: nothing", "SIGKILL: nothing")
    assert f"in the control group /{group.name} went from 0 to 1" in grown
    assert "the group may have 300 MiB" in grown

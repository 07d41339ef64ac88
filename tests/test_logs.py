"""What workers log and warn of is handled by the parent's loggers, whatever its handlers do."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import psutil
import pytest

from taskback import ProcessPoolTaskBackend, TaskLogFilter, TaskState, ThreadPoolTaskBackend, _codec
from taskback.pools import ProcessPool, _os, worker_logs
from taskback.pools.child import packets
from taskback.pools.guardian_client import GuardianClient
from taskback.pools.worker_process import WorkerProcess
from tests.gates import hold, say
from tests.helpers import run_python

LIMIT: Final = 20.0  # seconds; the net under every wait
NAME: Final = "tests.logged"


class Kept(logging.Handler):
    """Keeps records; where it is told to, it stands at the first one until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []
        self.came = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def handle(self, record: logging.LogRecord) -> bool:
        """Under no lock, so that another thread's record is not held up by it."""
        self.came.set()
        assert self.free.wait(LIMIT)
        self.records.append(record)
        return True

    @property
    def texts(self) -> list[str]:
        """Their messages."""
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What the logger of this file's handlers has handled."""
    logger, handler = logging.getLogger(NAME), Kept()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    handler.free.set()
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logging.disable(logging.NOTSET)


class Odd:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("no")

    def __repr__(self) -> str:
        return "<odd>"


class Rebuilt:
    """Can be pickled, and not be rebuilt."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def work(task: dict[str, Any]) -> Any:
    """Do what the task says."""
    logger = logging.getLogger(NAME)
    what = task["do"]
    if what == "log":
        logger.log(task.get("level", logging.INFO), *task["args"])
    elif what == "rich":
        logger.info("%s and %s", "one", Odd(), extra={"odd": Odd(), "whole": {1, 2}, "rebuilt": Rebuilt()})
        try:
            raise LookupError("lost")
        except LookupError:
            logger.exception("it failed")
        logger.info("%d", "no number")
        logger.info("%(a)s", {"a": 1})
    elif what == "asks":
        return [logger.isEnabledFor(level) for level in (logging.DEBUG, logging.INFO, logging.ERROR)]
    elif what == "flood":
        say(task["gate"], str(os.getpid()))
        while True:
            logger.info("x" * 1000)
    elif what == "die":
        for number in range(10):
            logger.info("%d", number)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stand":
        hold(task["gate"])
        return logger.isEnabledFor(logging.DEBUG)
    elif what == "thread":
        thread = threading.Thread(target=logger.info, args=("from a thread",))
        thread.start()
        thread.join()
    elif what == "fork":
        return forked(logger)
    elif what == "own":
        return own_handlers(logger)
    elif what == "large":
        logger.info("%s", "x" * task["size"])
    return None


def forked(logger: logging.Logger) -> int:
    """Log in a child of the worker, which has no connection; its exit status."""
    child = os.fork()
    if not child:
        try:
            heard = io.StringIO()
            logger.addHandler(logging.StreamHandler(heard))
            logger.error("from the child")
            os._exit(0 if heard.getvalue() == "from the child\n" else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def own_handlers(logger: logging.Logger) -> str:
    """What a handler heard that a task attached."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logger.addHandler(handler)
    logger.info("both")
    logger.removeHandler(handler)
    return heard.getvalue()


def backend(workers: int = 1, **options: Any) -> ProcessPoolTaskBackend:
    """One that runs `work`."""
    return ProcessPoolTaskBackend(work, max_workers=workers, cancel_grace_seconds=1.0, **options)


def test_a_record_reaches_the_logger_of_its_name_with_its_task(kept):
    """Its arguments, place and time are the worker's; task id, type and pid are attributes."""
    with backend() as running:
        handle = running.submit_sync({"type": "note", "do": "log", "args": ("%s is %d", "it", 1)})
        handle.result(LIMIT)

    (record,) = kept.records
    assert (record.getMessage(), record.args, record.levelname) == ("it is 1", ("it", 1), "INFO")
    assert (record.task_id, record.task_type, record.worker_pid) == (handle.id, "note", handle.worker_pid)
    assert (record.process, record.funcName) == (handle.worker_pid, "work")
    here = logging.LogRecord("", 0, "", 0, "", (), None)
    assert abs((record.created - here.created) - (record.relativeCreated - here.relativeCreated) / 1000) < 0.01


def test_what_hangs_on_a_record_crosses_where_it_can(kept):
    """What cannot is its repr; a traceback is text; what does not fit is told and raises nothing."""
    with backend() as running:
        running.submit_sync({"do": "rich"}).result(LIMIT)

    rich, failed, misfit, mapped = kept.records
    assert (rich.getMessage(), rich.args) == ("one and <odd>", None)
    assert (rich.odd, rich.whole) == ("<odd>", {1, 2})
    assert rich.rebuilt.startswith("<rebuilt: not rebuilt here: ValueError")
    assert failed.exc_info is None
    assert "LookupError: lost" in logging.Formatter().format(failed)
    assert misfit.msg == "%d"  # all is plain, so it is formatted here
    assert mapped.getMessage() == "1"


def test_a_call_of_a_pool_has_no_task_but_a_worker(kept):
    """The attributes are there all the same."""
    with ProcessPool(1) as pool:
        pool.submit(work, {"do": "log", "args": ("hello",)}).result(LIMIT)
        pid = pool.submit(os.getpid).result(LIMIT)

    (record,) = kept.records
    assert (record.task_id, record.task_type, record.worker_pid) == (None, None, pid)


def test_a_thread_of_a_handlers_own_has_the_task_that_its_worker_is_at(kept):
    """It has no context that would tell."""
    with backend() as running:
        handle = running.submit_sync({"do": "thread"})
        handle.result(LIMIT)

    assert [record.task_id for record in kept.records] == [handle.id]


def test_levels_are_the_parents_when_a_worker_starts(kept):
    """What is disabled here is disabled there, before it costs anything."""
    logging.getLogger(NAME).setLevel(logging.ERROR)
    with backend() as running:
        assert running.submit_sync({"do": "asks"}).result(LIMIT) == [False, False, True]


def test_a_level_that_changes_reaches_a_worker_with_its_next_task(kept):
    """Up, down, back to the parent logger's, and all of them by logging.disable."""
    logger = logging.getLogger(NAME)
    with backend() as running:
        found = [running.submit_sync({"do": "asks"}).result(LIMIT)]
        for change in (
            lambda: logger.setLevel(logging.DEBUG),
            lambda: logger.setLevel(logging.ERROR),
            lambda: logger.setLevel(logging.NOTSET),
            lambda: logging.disable(logging.CRITICAL),
            lambda: logging.disable(logging.NOTSET),
        ):
            change()
            found.append(running.submit_sync({"do": "asks"}).result(LIMIT))

    usual = [logging.root.isEnabledFor(level) for level in (logging.DEBUG, logging.INFO, logging.ERROR)]
    assert found == [[False, True, True], [True] * 3, [False, False, True], usual, [False] * 3, usual]


def test_a_task_that_runs_keeps_its_levels_and_what_is_disabled_by_then_is_not_handled(kept, gate):
    """The worker hears of it with its next call; the parent looks again when the record comes."""
    with backend() as running:
        kept.free.clear()
        running.submit_sync({"do": "log", "args": ("first",)}).result(LIMIT)
        assert kept.came.wait(LIMIT)
        running.submit_sync({"do": "log", "args": ("second",)}).result(LIMIT)
        handle = running.submit_sync({"do": "stand", "gate": gate.path})
        gate.wait_said()
        logging.getLogger(NAME).setLevel(logging.ERROR)
        gate.open()
        assert handle.result(LIMIT) is False
        kept.free.set()

    assert kept.texts == ["first"]


def test_levels_are_read_only_when_they_have_changed(kept):
    """The same object until then: it leans on what loggers remember, a private attribute."""
    logger = logging.getLogger(NAME)
    first = worker_logs.levels_now()

    assert worker_logs.levels_now() is first
    assert worker_logs._MARK in logging.root._cache  # type: ignore[attr-defined]
    logger.setLevel(logging.CRITICAL)
    assert worker_logs._MARK not in logging.root._cache  # type: ignore[attr-defined]
    second = worker_logs.levels_now()
    assert second != first
    logging.disable(logging.INFO)
    assert worker_logs.levels_now() != second


class Slow(logging.Logger):
    """A logger whose level takes its time to be read."""

    asked = threading.Event()
    free = threading.Event()

    @property  # type: ignore[override]
    def level(self) -> int:
        self.asked.set()
        assert self.free.wait(LIMIT)
        return logging.INFO

    @level.setter
    def level(self, _: int) -> None:
        pass


class CountedLock:
    """A lock that tells how many have come to it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.came = 0

    def __enter__(self) -> None:
        self.came += 1
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_who_asks_for_levels_while_another_thread_reads_them_gets_the_new_ones(kept, monkeypatch):
    """They are marked as read before they are."""
    lock = CountedLock()
    monkeypatch.setattr(worker_logs, "_levels_lock", lock)
    monkeypatch.setitem(logging.root.manager.loggerDict, "tests.slow", Slow("tests.slow"))
    logging.getLogger(NAME).setLevel(47)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(worker_logs.levels_now())) for _ in range(2)]

    threads[0].start()
    assert Slow.asked.wait(LIMIT)
    threads[1].start()
    until(lambda: lock.came == 2 or not threads[1].is_alive())
    Slow.free.set()
    for thread in threads:
        thread.join(LIMIT)

    assert [pickle.loads(levels)[1][NAME] for levels in found] == [47, 47]


def test_levels_that_were_taken_back_unread_are_told_again(kept):
    """They go before a call, and may come back with it."""
    guardian = GuardianClient(logs=worker_logs.LogReader("test-logs"))
    worker = WorkerProcess(guardian, _codec.dumps((None, (), {})), _os.Bell())
    try:
        assert worker.await_ready(lambda: False)
        os.kill(worker.pid, signal.SIGSTOP)
        until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
        logging.getLogger(NAME).setLevel(logging.DEBUG)
        asks = _codec.dumps((work, ({"do": "asks"},), {}))
        assert worker.send(packets.CALL, 1, asks, "first")
        assert worker.take_back() == ["first"]
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.send(packets.CALL, 2, asks, "second")
        replies: list[Any] = []
        while not replies:
            worker.wait(LIMIT)
            replies = worker.hear(1)
    finally:
        worker.kill("the test is over")
        worker.await_end()
        worker.close()
        guardian.close()
        assert guardian.logs is not None
        assert guardian.logs.join(time.monotonic() + LIMIT)

    assert _codec.loads(replies[0].data) == [True, True, True]


def test_a_handler_that_stands_still_holds_up_no_result(kept):
    """Not even of the task that logged."""
    with backend() as running:
        kept.free.clear()
        running.submit_sync({"do": "log", "args": ("held",)}).result(LIMIT)
        assert kept.came.wait(LIMIT)
        running.submit_sync({"do": "log", "args": ("waits",)}).result(LIMIT)
        assert kept.records == []
        kept.free.set()

    assert kept.texts == ["held", "waits"]


def test_a_flood_waits_for_room_and_can_be_cancelled_while_the_other_worker_goes_on(kept, gate):
    """The worker stands in the sending of a record, where the exception reaches it; it is not killed."""
    with backend(2) as running:
        kept.free.clear()
        handle = running.submit_sync({"do": "flood", "gate": gate.path})
        pid = int(gate.wait_said()[0])
        assert kept.came.wait(LIMIT)
        until(lambda: "_await_room" in "".join(running.stacks().values()))
        assert running.submit_sync({"do": "asks"}).result(LIMIT)
        assert handle.cancel()
        until(lambda: handle.state is TaskState.CANCELLED and running.stats().running == 0)
        pids = {worker.pid for worker in running.stats().workers}
        kept.free.set()

    assert pid in pids
    assert 10 < len(kept.records) < 1000


def test_a_time_limit_ends_a_flood(kept, gate):
    """While nothing takes what it logs."""
    with backend() as running:
        kept.free.clear()
        handle = running.submit_sync({"do": "flood", "gate": gate.path}, timeout=0.1)
        assert isinstance(handle.exception(LIMIT), TimeoutError)
        kept.free.set()


def test_shutdown_is_bounded_by_no_handler_and_names_its_thread(kept):
    """One that never returns is stuck; what it has not come to is not handled."""
    running = backend()
    running.initialize_sync()
    kept.free.clear()
    running.submit_sync({"do": "log", "args": ("held",)}).result(LIMIT)
    running.submit_sync({"do": "log", "args": ("never",)}).result(LIMIT)
    assert kept.came.wait(LIMIT)

    report = running.shutdown_sync(timeout=0.1)

    assert [name.endswith("-logs") for name in report.stuck] == [True]
    assert report.seconds < LIMIT
    kept.free.set()
    until(lambda: not any(thread.name.endswith("-logs") for thread in threading.enumerate()))
    assert kept.texts == ["held"]


@pytest.mark.parametrize("by_streams", [False, True], ids=["packets", "streams"])
def test_what_a_killed_worker_has_sent_is_handled(kept, monkeypatch, by_streams):
    """Nothing of it is taken before the worker is dead."""
    monkeypatch.setattr(ProcessPool, "_by_streams", by_streams)
    with ProcessPool(1) as pool:
        kept.free.clear()
        assert pool.submit(work, {"do": "die"}).exception(LIMIT)
        kept.free.set()

    assert kept.texts == [str(number) for number in range(10)]


@pytest.mark.parametrize("by_streams", [False, True], ids=["packets", "streams"])
def test_a_record_may_be_of_any_size(kept, monkeypatch, by_streams):
    """Whole, and in order with small ones."""
    monkeypatch.setattr(ProcessPool, "_by_streams", by_streams)
    with ProcessPool(1) as pool:
        for size in (1, 100_000, 1, 5_000_000, 1):
            pool.submit(work, {"do": "large", "size": size}).result(LIMIT)

    assert [len(text) for text in kept.texts] == [1, 100_000, 1, 5_000_000, 1]


@pytest.mark.parametrize("by_streams", [False, True], ids=["packets", "streams"])
def test_a_stopped_flood_leaves_the_connection_whole(kept, monkeypatch, tmp_path, by_streams):
    """Whatever the exception struck, what is logged after it arrives."""
    monkeypatch.setattr(ProcessPool, "_by_streams", by_streams)
    with ProcessPool(1) as pool:
        kept.free.clear()
        handle = pool.submit(flood_until_told, str(tmp_path / "pid"))
        assert kept.came.wait(LIMIT)
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        until(lambda: "_await_room" in pool._queue.lanes()[0].stack())
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR2)
        until(lambda: (tmp_path / "pid.told").exists())
        kept.free.set()
        handle.result(LIMIT)
        pool.submit(work, {"do": "log", "args": ("after",)}).result(LIMIT)

    assert kept.texts[-1] == "after"
    assert set(kept.texts[:-1]) == {"x" * 1000}


def flood_until_told(path: str) -> None:
    """Log until a signal of the test's own raises, as one of ours would."""

    class Told(BaseException):
        pass

    def tell(*_: Any) -> None:
        raise Told

    signal.signal(signal.SIGUSR2, tell)
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    with contextlib.suppress(Told):
        while True:
            logging.getLogger(NAME).info("x" * 1000)
    with open(path + ".told", "w", encoding="utf-8"):
        pass


def test_a_handler_that_raises_costs_its_record_alone(kept, caplog):
    """It is told once, and the next records are handled."""

    class Raises(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise SystemExit("no")

    raises = Raises()
    logger = logging.getLogger(NAME)
    logger.addHandler(raises)
    try:
        with backend() as running:
            for text in ("one", "two"):
                running.submit_sync({"do": "log", "args": (text,)}).result(LIMIT)
    finally:
        logger.removeHandler(raises)

    assert kept.texts == ["one", "two"]
    assert sum("handling what a worker has logged raised" in record.message for record in caplog.records) == 1


def test_a_fork_of_a_handlers_own_logs_by_itself(kept):
    """It has no connection, and the worker goes on."""
    with backend() as running:
        assert running.submit_sync({"do": "fork"}).result(LIMIT) == 0
        running.submit_sync({"do": "log", "args": ("from the worker",)}).result(LIMIT)

    assert kept.texts == ["from the worker"]


def test_a_handler_that_a_task_attaches_is_called_as_well(kept):
    """A file for each job, say."""
    with backend() as running:
        assert running.submit_sync({"do": "own"}).result(LIMIT) == "both\n"

    assert kept.texts == ["both"]


CONFIGURES: Final = """
import logging, sys, warnings
from taskback import ProcessPoolTaskBackend

def work(task):
    logging.basicConfig(format="worker %(message)s")
    logging.warning("a record")
    warnings.warn("a warning")

logging.basicConfig(format="parent %(message)s %(task_type)s")
with ProcessPoolTaskBackend(work, max_workers=2, FORWARD) as backend:
    for _ in range(2):
        backend.run_sync({"type": "note"})
"""


@pytest.mark.parametrize(
    ("option", "records", "warned"),
    [("", ["parent a record note"] * 2, 1), ("forward_logs=False", ["worker a record"] * 2, None)],
)
def test_nothing_comes_twice(option, records, warned):
    """Though the handler configures logging itself; a warning comes once a place, as in one process."""
    done = run_python("-c", CONFIGURES.replace("FORWARD", option))

    lines = done.stderr.splitlines()
    assert [line for line in lines if "a record" in line] == records
    if warned is not None:
        assert sum("UserWarning: a warning" in line for line in lines) == warned
    assert done.returncode == 0


class OddWarning(UserWarning):
    """Takes no text alone."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def warn(category: type[Warning]) -> None:
    """Warn, whatever filters are there."""
    warnings.simplefilter("always")
    if category is OddWarning:
        warnings.warn(OddWarning(1, 2), stacklevel=1)
    else:
        warnings.warn("careful", category, stacklevel=1)


def test_a_warning_is_shown_as_one_of_this_process():
    """By its filters and by whatever shows warnings here; one of an odd class as what can be made of it."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with ProcessPool(1) as pool:
            pool.submit(warn, DeprecationWarning).result(LIMIT)
            pool.submit(warn, OddWarning).result(LIMIT)

    assert [(str(each.message), each.category) for each in seen] == [
        ("careful", DeprecationWarning),
        ("OddWarning: 1 and 2", UserWarning),
    ]
    assert seen[0].filename == __file__


def test_a_warning_that_is_ignored_here_is_not_shown():
    """Also by a filter that came after the worker was started, and names the module."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with ProcessPool(1) as pool:
            pool.submit(os.getpid).result(LIMIT)
            warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
            pool.submit(warn, DeprecationWarning).result(LIMIT)

    assert seen == []


def test_the_filter_puts_the_attributes_on_records_of_this_process():
    """Those of a task in a thread are that task's, all others None; so a format can name them."""
    seen: list[Any] = []

    def keep(_: dict[str, Any]) -> None:
        record = logging.LogRecord(NAME, logging.INFO, "f", 1, "text", (), None)
        assert TaskLogFilter().filter(record)
        seen.append(record)

    with ThreadPoolTaskBackend(keep, max_workers=1) as running:
        handle = running.submit_sync({"type": "note"})
        handle.result(LIMIT)
    keep({})

    assert [(each.task_id, each.task_type) for each in seen] == [(handle.id, "note"), (None, None)]
    assert [each.worker_pid for each in seen] == [os.getpid()] * 2


def until(what: Callable[[], object]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""The exception that stops a handler reaches user code or nobody, whenever it comes."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import pytest

from taskback import _call
from taskback._call import AsyncCall, Call, Handler, Marks, Outcome, RunAsync, close_struck, run_in_new_loop
from taskback._context import Restore
from taskback._errors import TaskCancelled
from taskback._state import TaskState
from taskback._task import CurrentTask, current_task
from taskback.pools.child import calls

SEED: Final = 20240607


def make_call(
    handler: Handler,
    functions: tuple[Restore, ...] = (),
    context: Mapping[str, str] | None = None,
    run_async: RunAsync = run_in_new_loop,
) -> Call:
    """A call of `handler` with an empty task."""
    return Call(handler, {}, CurrentTask(), functions, context or {}, contextvars.Context(), run_async)


def make_async_call(handler: Handler) -> AsyncCall:
    """The same, as a task of a running loop."""
    return AsyncCall(handler, {}, CurrentTask(), (), {})


def ordinary_code() -> int:
    """Code in which an exception that is still on its way would strike."""
    return sum(int(number) for number in range(20))


class InThread:
    """A call under way in a thread of its own."""

    def __init__(self, call: Call) -> None:
        self.outcome: Outcome | None = None
        self.after: object = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name="runs-a-call")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._call.run()
            self.after = ordinary_code()
        except BaseException as error:
            self.after = error

    def end(self) -> Outcome:
        """What came of it, once the thread has ended by itself."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "the call never ended"
        assert self.after == ordinary_code(), "something struck outside of the marks"
        assert self.outcome is not None
        return self.outcome


class ControlledLock:
    """The marks' lock, with something that happens just before it is taken, or just after it was released."""

    def __init__(self, before: list[Callable[[], object]], after: list[Callable[[], object]]) -> None:
        self._lock = threading.Lock()
        self._before = before  # what happens at each taking, in order
        self._after = after

    def __enter__(self) -> None:
        if self._before:
            self._before.pop(0)()
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        if self._after:
            self._after.pop(0)()


def nothing() -> None:
    """Stands for a turn at which nothing happens."""


def elsewhere(function: Callable[[], object]) -> Callable[[], None]:
    """What calls `function` in another thread, to its end."""

    def run() -> None:
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    return run


# --- what a call gives ---


def test_a_result_is_in_the_outcome():
    """What the handler returned is the value of a SUCCEEDED outcome."""
    outcome = make_call(lambda task: {"got": task}).run()

    assert outcome == Outcome(TaskState.SUCCEEDED, {"got": {}})


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_is_raised_is_in_the_outcome(error):
    """No exception leaves a call, of whatever base."""

    def handler(task: Any) -> None:
        raise error

    outcome = make_call(handler).run()

    assert outcome.state is TaskState.FAILED
    assert outcome.error is error


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TaskCancelled(), TaskState.CANCELLED),
        (asyncio.CancelledError(), TaskState.CANCELLED),
        (CancelledError(), TaskState.FAILED),  # of some other future that the handler waited for
        (TimeoutError(), TaskState.FAILED),
    ],
)
def test_giving_up_is_not_failing(error, state):
    """A handler that lets the exception through, or an async one its cancellation, ends CANCELLED."""
    assert Outcome.raised(error) == Outcome(state, error=error, own=state is TaskState.FAILED)


def test_a_handler_finds_its_task_and_what_was_restored():
    """current_task() and what travelled beside the task are in place, for both kinds of handlers, and gone after."""
    restored: list[str] = []

    @contextmanager
    def restore(context: Mapping[str, str]) -> Iterator[None]:
        restored.append(context["trace"])
        yield
        restored.clear()

    def handler(task: Any) -> tuple[CurrentTask, list[str]]:
        return current_task(), list(restored)

    async def async_handler(task: Any) -> tuple[CurrentTask, list[str]]:
        await asyncio.sleep(0)
        return handler(task)

    for each in (handler, async_handler):
        call = make_call(each, (restore,), {"trace": "t1"})

        outcome = call.run()

        assert outcome.value == (call.current, ["t1"])
        assert restored == []
        assert current_task().id == ""


def test_an_awaitable_that_is_no_coroutine_is_awaited():
    """A handler may return anything that can be awaited."""

    class Later:
        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()
            return "awaited"  # type: ignore[return-value]  # a generator's

    assert make_call(lambda task: Later()).run().value == "awaited"


def test_an_outcome_that_is_dropped_is_freed_at_once():
    """What a failed handler held does not wait for the collector."""

    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def handler(task: Any) -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError

    gc.disable()
    try:
        make_call(handler).run()

        assert held[0]() is None
    finally:
        gc.enable()


def test_a_frozen_exception_is_in_the_outcome_as_it_is():
    """One that takes no attributes, not even a traceback that a context manager sets, is not replaced."""

    class Frozen(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise TypeError("frozen")

    error = Frozen()

    def handler(task: Any) -> None:
        raise error

    assert make_call(handler).run().error is error


# --- forced orders ---


def test_it_strikes_a_running_handler():
    """A handler that runs Python code is left at its next bytecode."""
    started = threading.Event()

    def handler(task: Any) -> None:
        started.set()
        while True:
            ordinary_code()

    call = make_call(handler)
    running = InThread(call)
    assert started.wait(5), "the handler never began"

    call.interrupt()

    outcome = running.end()
    assert outcome.state is TaskState.CANCELLED
    assert isinstance(outcome.error, TaskCancelled)
    assert call.current.cancelled


def test_a_handler_may_swallow_it_and_go_on():
    """It comes once: what the handler does after catching it is not struck again."""
    started, caught = threading.Event(), threading.Event()

    def handler(task: Any) -> str:
        try:
            started.set()
            while True:
                ordinary_code()
        except TaskCancelled:
            caught.set()
        second.wait(5)
        ordinary_code()
        return "went on"

    second = threading.Event()
    call = make_call(handler)
    running = InThread(call)
    assert started.wait(5), "the handler never began"
    call.interrupt()
    assert caught.wait(5), "it never came"

    call.interrupt(firmly=True)
    second.set()

    assert running.end() == Outcome(TaskState.SUCCEEDED, "went on")


def test_an_interruption_before_the_first_bytecode_is_kept():
    """Told to stop before it began, a handler is never called."""
    called: list[Any] = []
    call = make_call(called.append)

    call.interrupt()
    outcome = call.run()

    assert outcome.state is TaskState.CANCELLED
    assert called == []
    assert ordinary_code()


def test_an_interruption_after_the_end_strikes_nobody():
    """The thread of an ended call is somebody else's."""
    call = make_call(lambda task: "done")
    assert call.run().value == "done"

    call.interrupt()
    call.interrupt(firmly=True)

    assert ordinary_code()
    assert make_call(lambda task: ordinary_code()).run().state is TaskState.SUCCEEDED


def test_what_was_sent_before_the_second_mark_stays_inside():
    """Race: it is sent when the handler has returned and the second mark is about to be made."""
    call = make_call(lambda task: "returned")
    call._marks._lock = ControlledLock([nothing, elsewhere(call.interrupt)], [])  # type: ignore[assignment]

    running = InThread(call)

    assert running.end().state is TaskState.CANCELLED


def test_what_comes_with_the_second_mark_is_not_sent():
    """Race: it is wanted when the second mark has just been made."""
    call = make_call(lambda task: "returned")
    call._marks._lock = ControlledLock([], [nothing, elsewhere(call.interrupt)])  # type: ignore[assignment]

    running = InThread(call)

    assert running.end() == Outcome(TaskState.SUCCEEDED, "returned")


class SlowLock:
    """A lock whose taker stands still when it has it, just before it can say so: there an exception would come."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.taken = threading.Event()
        self.go_on = threading.Lock()
        self.go_on.acquire()

    def acquire(self) -> None:
        """Take it, and stand still."""
        self.lock.acquire()
        self.taken.set()
        self.go_on.acquire()

    def release(self) -> None:
        """Let go of it."""
        self.lock.release()


def test_a_thread_that_waits_for_the_lock_of_a_log_is_spared():
    """Struck there it would keep the lock for ever, and all who log would wait with it; it is struck afterwards."""
    lock = SlowLock()
    log = logging.Handler()
    log.lock = lock  # type: ignore[assignment]

    def handler(task: Any) -> None:
        log.acquire()  # as logging did it, up to CPython 3.12
        try:
            pass
        finally:
            log.release()
        while True:
            ordinary_code()

    call = make_call(handler)
    running = InThread(call)
    assert lock.taken.wait(10), "the lock was not taken"

    call.interrupt()
    lock.go_on.release()
    while running.outcome is None:
        call.interrupt(firmly=True)
    log.createLock()  # logging's exit hook takes it

    assert running.end().state is TaskState.CANCELLED
    assert lock.lock.acquire(timeout=1), "the lock is still taken"
    lock.lock.release()


def test_what_was_sent_and_not_taken_is_taken_back(monkeypatch):
    """The second mark leaves nothing on its way to the thread, and after it nothing is sent."""
    marks = Marks()
    sent: list[type[BaseException]] = []
    real_send = _call._send

    def send_late(thread: int, kind: type[BaseException]) -> None:
        """As if the thread came to no bytecode between this and the second mark."""
        assert thread == threading.get_ident()
        sent.append(kind)
        if kind is not TaskCancelled:
            real_send(thread, kind)

    monkeypatch.setattr(_call, "_send", send_late)

    marks.enter()
    marks.strike()
    marks.strike()
    marks.leave()
    marks.strike()
    marks.leave()

    assert sent == [TaskCancelled, _call._TakenBack]


def test_traced_code_runs_after_an_interruption():
    """A debugger, or what measures coverage, does not hang: on CPython 3.11 the clearing of what was sent does that."""
    traced: list[str] = []

    def handler(task: Any) -> None:
        call.interrupt()

    call = make_call(handler)
    assert call.run().state is TaskState.CANCELLED

    sys.settrace(lambda frame, event, arg: traced.append(frame.f_code.co_name))  # type: ignore[func-returns-value]
    try:
        ordinary_code()
    finally:
        sys.settrace(None)

    assert traced[0] == "ordinary_code"


def test_ctrl_c_at_the_second_mark_leaves_no_marks_open():
    """Race: in the main thread a KeyboardInterrupt may come between the handler's end and the second mark."""

    def ctrl_c() -> None:
        raise KeyboardInterrupt

    call = make_call(lambda task: "returned")
    call._marks._lock = ControlledLock([nothing, ctrl_c], [])  # type: ignore[assignment]

    outcome = call.run()
    call.interrupt()

    assert isinstance(outcome.error, KeyboardInterrupt)
    assert ordinary_code()


# --- every bytecode ---


class StrikesAt:
    """Interrupts a call at the n-th bytecode of our file and of its handler, as if another thread did.

    Where the marks' lock is held another thread would have to wait, so it comes at the first bytecode after that.
    """

    def __init__(self, n: int, interrupt: Callable[[], None], lock: threading.Lock) -> None:
        self._n = n
        self._interrupt = interrupt
        self._lock = lock
        self.seen = 0
        self.came = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in (_call.__file__, __file__):
            return None
        frame.f_trace_opcodes = True
        return self._in_frame

    def _in_frame(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            self.seen += 1
            if self.seen > self._n and not self.came and not self._lock.locked():
                self.came = True
                self._interrupt()  # what it sends is raised here at once, and so in `frame`
        return self._in_frame


def handler_that_returns(task: Any) -> str:
    """Ends well."""
    return "done"


def handler_that_raises(task: Any) -> None:
    """Ends badly."""
    raise ValueError("bad")


async def handler_that_awaits(task: Any) -> str:
    """Goes through its loop twice."""
    await asyncio.sleep(0)
    return "done"


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What `function` gives, called in a thread of its own: at some bytecodes an exception confuses its thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


NEVER: Final = 10**9
WARM_UP: Final = 3  # rounds after which a code's bytecodes are all told of

# Struck between the making of a coroutine and the next bytecode, nobody holds it.
UNBEGUN = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@UNBEGUN
@pytest.mark.parametrize("firmly", [False, True])
@pytest.mark.parametrize("handler", [handler_that_returns, handler_that_raises, handler_that_awaits])
def test_it_may_come_at_any_bytecode(handler, firmly):
    """Wherever in a call the exception strikes, the call ends with an outcome and the thread's next code is spared."""

    def run_struck_at(n: int) -> tuple[StrikesAt, Outcome]:
        call = make_call(handler)
        striker = StrikesAt(n, lambda: call.interrupt(firmly), call._marks._lock)
        sys.settrace(striker)
        try:
            outcome = call.run()
        finally:
            sys.settrace(None)
        assert ordinary_code()
        assert asyncio._get_running_loop() is None
        return striker, outcome

    def run_struck_everywhere() -> tuple[int, list[tuple[StrikesAt, Outcome]]]:
        count = [run_struck_at(NEVER)[0].seen for _ in range(WARM_UP)][-1]
        return count, [run_struck_at(n) for n in range(count)]

    count, results = in_a_thread(run_struck_everywhere)

    own = TaskState.FAILED if handler is handler_that_raises else TaskState.SUCCEEDED
    assert count > 50
    assert {outcome.state for _, outcome in results} == {own, TaskState.CANCELLED}
    assert sum(striker.came for striker, _ in results) > count / 2


@UNBEGUN
@pytest.mark.parametrize("handler", [handler_that_returns, handler_that_raises, handler_that_awaits])
def test_it_may_come_at_any_bytecode_of_a_loops_task(handler):
    """The same for a call in somebody's loop, which goes on after it."""

    async def run_traced(call: AsyncCall, striker: StrikesAt) -> Outcome:
        sys.settrace(striker)
        try:
            return await call.run()
        finally:
            sys.settrace(None)

    async def run_struck_at(n: int) -> tuple[StrikesAt, Outcome]:
        call = make_async_call(handler)
        striker = StrikesAt(n, call.interrupt, call._marks._lock)
        task = asyncio.create_task(run_traced(call, striker))
        call.runs_as(task)
        outcome = await task
        assert ordinary_code()
        return striker, outcome

    async def main() -> tuple[int, list[tuple[StrikesAt, Outcome]]]:
        count = [(await run_struck_at(NEVER))[0].seen for _ in range(WARM_UP)][-1]
        return count, [await run_struck_at(n) for n in range(count)]

    count, results = in_a_thread(lambda: asyncio.run(main()))

    own = TaskState.FAILED if handler is handler_that_raises else TaskState.SUCCEEDED
    assert count > 50
    assert {outcome.state for _, outcome in results} == {own, TaskState.CANCELLED}
    assert sum(striker.came for striker, _ in results) > count / 2


# --- random moments ---


class Storm:
    """Makes calls in one thread while another strikes each of them after some microseconds, chosen at random."""

    def __init__(self, count: int, make: Callable[[], Call], longest: float) -> None:
        self.states: Counter[TaskState] = Counter()
        self.outside: list[BaseException] = []
        self._count = count
        self._make = make
        self._longest = longest
        self._call: Call | None = None
        self._over = False

    def run(self) -> None:
        """Until all calls have ended."""
        threads = [threading.Thread(target=self._runs), threading.Thread(target=self._strikes)]
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)

    def _runs(self) -> None:
        made = 0
        while made < self._count:
            try:
                while made < self._count:
                    made += 1
                    call = self._call = self._make()
                    time.sleep(0)  # lets the other one have its turn
                    self.states[call.run().state] += 1
                    ordinary_code()
            except BaseException as error:
                self.outside.append(error)
        self._over = True

    def _strikes(self) -> None:
        chance = random.Random(SEED)
        last = None
        while not self._over:
            call = self._call
            if call is None or call is last:
                continue
            last = call
            until = time.perf_counter() + chance.random() * self._longest
            while time.perf_counter() < until:
                pass
            call.interrupt()


def test_tens_of_thousands_of_calls_are_struck_at_random():
    """The exception never leaves the marks, and none is left for the next code of the thread."""
    storm = Storm(20_000, lambda: make_call(lambda task: ordinary_code()), 20e-6)

    storm.run()

    assert storm.outside == []
    assert set(storm.states) == {TaskState.SUCCEEDED, TaskState.CANCELLED}
    assert storm.states.total() == 20_000
    assert storm.states[TaskState.CANCELLED] > 100


@pytest.fixture
def kept_runner() -> Iterator[RunAsync]:
    """The loop that a worker process keeps for handlers."""
    yield calls.run_async
    runner, calls._runner = calls._runner, None
    if runner is not None:
        runner.close()


def test_async_calls_are_struck_at_random(kept_runner):
    """Neither the calls' own lines nor the loop that is kept for them are ever struck, and the loop stays whole."""
    storm = Storm(5_000, lambda: make_call(handler_that_awaits, run_async=kept_runner), 300e-6)

    storm.run()

    assert storm.outside == []
    assert set(storm.states) == {TaskState.SUCCEEDED, TaskState.CANCELLED}
    assert storm.states.total() == 5_000
    assert make_call(handler_that_awaits, run_async=kept_runner).run().value == "done"


# --- async handlers ---


class Waiting:
    """An async handler that waits for ever, `patience` times on being cancelled."""

    def __init__(self, patience: int = 0) -> None:
        self.started = threading.Event()
        self.swallowed = threading.Event()
        self.cleaned_up = threading.Event()
        self._patience = patience

    async def __call__(self, task: Any) -> None:
        for _ in range(self._patience):
            try:
                self.started.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.swallowed.set()
        try:
            self.started.set()
            await asyncio.Event().wait()
        finally:
            self.cleaned_up.set()


def test_an_async_handler_is_cancelled_as_a_task_is():
    """The first interruption is asyncio's own, and what the handler cleans up runs."""
    handler = Waiting()
    call = make_call(handler)
    running = InThread(call)
    assert handler.started.wait(5), "the handler never began"

    call.interrupt()

    outcome = running.end()
    assert outcome.state is TaskState.CANCELLED
    assert isinstance(outcome.error, asyncio.CancelledError)
    assert handler.cleaned_up.is_set()


def test_a_firm_interruption_wakes_a_loop_that_sleeps():
    """A handler that swallowed its cancellation and waits again is ended by the exception, and cleans up."""
    handler = Waiting(patience=1)
    call = make_call(handler)
    running = InThread(call)
    assert handler.started.wait(5), "the handler never began"
    call.interrupt()
    assert handler.swallowed.wait(5), "it was never cancelled"

    call.interrupt(firmly=True)

    assert running.end().state is TaskState.CANCELLED
    assert handler.cleaned_up.is_set()


def test_a_handler_that_swallows_all_does_not_keep_its_loop_open():
    """What does not end within a limit is left behind when its loop was struck; the thread is free again."""
    handler = Waiting(patience=3)
    call = make_call(handler)
    running = InThread(call)
    assert handler.started.wait(5), "the handler never began"

    call.interrupt(firmly=True)

    assert running.end().state is TaskState.CANCELLED
    assert handler.swallowed.is_set()
    gc.collect()


def test_a_coroutine_that_only_computes_takes_the_exception():
    """Its loop never comes to cancel it, so the firm interruption is what stops it."""
    started = threading.Event()

    async def handler(task: Any) -> None:
        started.set()
        while True:
            ordinary_code()

    call = make_call(handler)
    running = InThread(call)
    assert started.wait(5), "the handler never began"
    call.interrupt()

    call.interrupt(firmly=True)

    outcome = running.end()
    assert outcome.state is TaskState.CANCELLED
    assert isinstance(outcome.error, TaskCancelled)


@pytest.mark.parametrize("firmly", [False, True])
def test_an_interruption_while_the_loop_is_made_stops_the_handler(firmly):
    """Race: the coroutine is there and its loop is not. Nothing strikes asyncio; the coroutine never begins."""
    reached: list[str] = []

    async def handler(task: Any) -> None:
        reached.append("handler")

    def run_async(main: Any, /, *, context: contextvars.Context) -> Any:
        call.interrupt(firmly)
        ordinary_code()
        reached.append("loop")
        return run_in_new_loop(main, context=context)

    call = make_call(handler, run_async=run_async)

    outcome = call.run()

    assert outcome.state is TaskState.CANCELLED
    assert reached == ["loop"]


@pytest.mark.parametrize("firmly", [False, True])
def test_an_interruption_while_the_loop_is_closed_strikes_nobody(firmly):
    """Race: the coroutine has ended, and asyncio closes its loop."""

    def run_async(main: Any, /, *, context: contextvars.Context) -> Any:
        with asyncio.Runner() as runner:
            result = runner.run(main, context=context)
            call.interrupt(firmly)
            ordinary_code()
        call.interrupt(firmly)
        return result

    call = make_call(handler_that_awaits, run_async=run_async)

    outcome = call.run()

    assert outcome == Outcome(TaskState.SUCCEEDED, "done")
    assert ordinary_code()


def test_a_struck_loop_is_closed_though_a_step_was_lost():
    """A task whose next step was lost never ends, and is not waited for without a limit."""
    step = asyncio.sleep(0)

    async def begin_a_task_and_lose_its_step() -> asyncio.Task[None]:
        task = asyncio.create_task(step)
        asyncio.get_running_loop()._ready.clear()  # type: ignore[attr-defined]  # where the step waits
        return task

    runner = asyncio.Runner()
    lost = runner.run(begin_a_task_and_lose_its_step())
    loop = runner.get_loop()

    close_struck(runner)

    assert loop.is_closed()
    assert not lost.done()
    lost._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio is right, and here it is meant
    step.close()


def test_a_kept_runner_that_was_struck_is_not_used_again(kept_runner):
    """The next handler gets a new loop."""
    started = threading.Event()

    async def handler(task: Any) -> None:
        started.set()
        while True:
            ordinary_code()

    call = make_call(handler, run_async=kept_runner)
    running = InThread(call)
    assert started.wait(5), "the handler never began"
    call.interrupt(firmly=True)
    assert running.end().state is TaskState.CANCELLED
    assert calls._runner is None

    again = make_call(handler_that_awaits, run_async=kept_runner).run()

    assert again.value == "done"


# --- calls in somebody's loop ---


def test_a_sync_handler_in_a_loop_is_struck():
    """Its step of the loop ends with the exception, and the loop goes on."""
    started = threading.Event()

    def handler(task: Any) -> None:
        started.set()
        while True:
            ordinary_code()

    async def main() -> Outcome:
        call = make_async_call(handler)
        task = asyncio.create_task(call.run())
        call.runs_as(task)
        thread = threading.Thread(target=lambda: started.wait(5) and call.interrupt())
        thread.start()
        outcome = await asyncio.wait_for(task, 5)
        thread.join()
        return outcome

    outcome = asyncio.run(main())

    assert outcome.state is TaskState.CANCELLED
    assert isinstance(outcome.error, TaskCancelled)


@pytest.mark.parametrize("times", [1, 3])
def test_an_async_handler_in_a_loop_is_cancelled_each_time(times):
    """Asked again, it is cancelled again; nothing is raised into somebody's loop by force."""
    handler = Waiting(patience=times - 1)

    async def main() -> Outcome:
        call = make_async_call(handler)
        task = asyncio.create_task(call.run())
        call.runs_as(task)
        for _ in range(times):
            await asyncio.sleep(0)
            call.interrupt(firmly=True)
            await asyncio.sleep(0)
        return await asyncio.wait_for(task, 5)

    outcome = asyncio.run(main())

    assert outcome.state is TaskState.CANCELLED
    assert isinstance(outcome.error, asyncio.CancelledError)


def test_an_interruption_before_the_loop_begins_a_task_is_kept():
    """The handler is never called."""
    called: list[Any] = []

    async def main() -> Outcome:
        call = make_async_call(called.append)
        call.interrupt()
        return await call.run()

    assert asyncio.run(main()).state is TaskState.CANCELLED
    assert called == []


def test_an_interruption_after_somebodys_loop_has_closed_is_nothing():
    """Nothing runs there any more."""

    async def main() -> AsyncCall:
        call = make_async_call(handler_that_awaits)
        task = asyncio.create_task(call.run())
        call.runs_as(task)
        await task
        return call

    call = asyncio.run(main())

    call.interrupt()

    assert ordinary_code()

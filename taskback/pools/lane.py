"""What a lane is, and what it may ask of the backend that owns it.

A lane is one worker and what drives it: it is sent runs, and says what became of them.
"""

from concurrent.futures import Executor
from typing import Protocol

from taskback._call import AsyncCall, Call, Outcome
from taskback._keeper import LoopThread
from taskback._progress import Progress
from taskback._run import End, Run


class Lane(Protocol):
    """One worker, or one place in somebody else's pool."""

    @property
    def run(self) -> Run | None:
        """What it is at; the first one of those that it has."""
        ...

    def took(self, run: Run) -> None:
        """The run is handed to it. Under the ledger's lock."""
        ...

    def left(self, run: Run) -> None:
        """It has nothing more to do with the run. Under the ledger's lock."""
        ...

    @property
    def pid(self) -> int | None:
        """The process that the worker is, or is in; None if there is none now."""
        ...

    def started(self, run: Run) -> tuple[int, int] | None:
        """Of a run in whose begin nobody is told: the pid and the time, if it has begun."""
        ...

    def stack(self, run: Run) -> str:
        """Where the run's handler is, as text; empty if it is not under way, or nobody can tell. Any thread."""
        ...

    def send(self, run: Run) -> bool:
        """Start a run. Any thread; False if it went back to the queue; what it raises fails the run."""
        ...

    def interrupt(self, run: Run, firmly: bool) -> None:
        """Tell a run to stop, without waiting. Any thread."""
        ...

    def force(self, run: Run) -> None:
        """End a run that did not stop: kill its worker, or give its thread up. The keeper's thread."""
        ...


class OneRun:
    """What the lanes share that have one run at a time."""

    def __init__(self) -> None:
        self._run: Run | None = None  # written under the ledger's lock

    @property
    def run(self) -> Run | None:
        """What it was handed and has not finished."""
        return self._run

    def took(self, run: Run) -> None:
        """The run is handed to it."""
        self._run = run

    def left(self, run: Run) -> None:
        """It has nothing more to do with the run."""
        if self._run is run:
            self._run = None


class LaneOwner(Protocol):
    """The backend, as its lanes see it. Any thread may call, under no lock."""

    keeper: LoopThread

    @property
    def grace(self) -> float:
        """Seconds that a task which is told to stop may take."""
        ...

    @property
    def listened_to(self) -> bool:
        """Whether events are wanted."""
        ...

    def make_call(self, run: Run) -> Call:
        """The call of a run's handler in this process."""
        ...

    def make_async_call(self, run: Run) -> AsyncCall:
        """The call of a run's handler as a task of an event loop."""
        ...

    def handler_bytes(self) -> tuple[tuple[str, int], bytes | None]:
        """The handler for processes: the key that it is kept under there, and its bytes."""
        ...

    def may_start(self, run: Run, call: Call | AsyncCall) -> bool:
        """The handler is about to be called in this process; False if it must not be any more."""
        ...

    def has_started(self, run: Run, pid: int | None, started_ns: int) -> bool:
        """The handler has been called in another process (None: which one is not told); True if it is to stop."""
        ...

    def time_was_up(self, run: Run) -> None:
        """The worker's guardian has found the run's time limit to be up, and stops it."""
        ...

    def keep_limit(self, run: Run, seconds: float) -> None:
        """The worker has lost its guardian: what is left of the run's time limit is the backend's to keep."""
        ...

    def progressed(self, run: Run, progress: Progress) -> None:
        """The handler reported."""
        ...

    def ended(self, run: Run, outcome: Outcome, *, pid: int | None = None, started_ns: int | None = None) -> None:
        """The run is over; the first to say so wins."""
        ...

    def ended_all(self, ends: list[End]) -> None:
        """The same of several, in one step."""
        ...

    def abandoned(self, run: Run) -> None:
        """The run's thread is given up; the run ends ABANDONED."""
        ...

    def come_back(self, run: Run) -> None:
        """The run cannot have started; it goes back to its old place in the queue."""
        ...

    def look_again(self) -> None:
        """Something may start that could not before."""
        ...

    def idle(self, lane: Lane, run: Run | None) -> None:
        """The lane is ready, or has finished `run`, and can take another one."""
        ...

    def next_after(self, lane: Lane, run: Run) -> Run | None:
        """What the lane is to do after this run; None makes it idle, or ends it."""
        ...

    def next_run(self, lane: Lane) -> Run | None:
        """What the lane is to do, whose worker is free; None makes it idle."""
        ...

    def more_runs(self, lane: Lane, most: int) -> list[Run]:
        """What it may do after that, as anybody may."""
        ...

    def handed_over(self, run: Run) -> None:
        """A lane has sent what it took."""
        ...

    def withdraw(self, lane: Lane) -> None:
        """The lane can take none until it asks again, or says that it is idle."""
        ...

    def worker_started(self, pid: int) -> None:
        """A worker process is ready."""
        ...

    def lane_ready(self, lane: Lane, error: BaseException | None) -> None:
        """The lane's worker is ready; `error` is what loading the handler has raised there."""
        ...

    def worker_died(self, pid: int, exitcode: int | None, run: Run | None, why: str) -> None:
        """A worker process has ended; `why` is what of ours had to do with it."""
        ...

    def cannot_start(self, lane: Lane, error: BaseException, tried_ns: int) -> bool:
        """Workers die before they are ready, the last one begun at that time; True if the lane is to try again."""
        ...

    def pool_broke(self, pool: Executor) -> None:
        """A pool of somebody else takes no more calls."""
        ...

    def user_code(self, what: str, task_id: str) -> "UserCode":
        """Around user code on a thread of the pool's, so that a shutdown can say what holds that thread."""
        ...


class UserCode(Protocol):
    """A context manager around user code."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None: ...

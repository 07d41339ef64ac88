"""`AsyncFireAndTrackBackend`: runs each task as an asyncio task, and keeps track of it."""

import asyncio

from taskback import _clock
from taskback._call import Handler
from taskback._keeper import LoopThread, join
from taskback._promises import Promises
from taskback._public import lives_in
from taskback._run import Run
from taskback.backends._managed import ManagedBackend
from taskback.pools.lane import Lane
from taskback.pools.loop_lane import LoopLane


@lives_in("taskback")
class AsyncFireAndTrackBackend(ManagedBackend):
    """Runs each task as an asyncio task of the loop that submits it.

    For handlers that wait more than they compute. A sync handler runs in the loop, too, and blocks it while it does:
    threads and processes are for that. Callers without a loop share one on a thread of the backend's.

    Args:
        handler (Callable[[dict], Any] | None): Async or sync; None leaves it to `set_handler`.
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.
        max_queued (int | None): Tasks that may wait for a worker; None sets no limit.
        when_full (str): What becomes of a submission beyond that: "wait" has it wait for room, "reject" raises
            `QueueFullError`, "shed" drops the oldest task of the lowest priority for it.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument makes no sense.
    """

    promises = Promises(
        returns_before_run=True,
        live_objects=True,
        delay=True,
        priority=True,  # nothing ever waits but for its time
        timeout=True,
        cancels_running=True,
        exact_start=True,
        progress=True,
        bounded_shutdown=True,
        exits_without_shutdown=True,
        no_orphans=True,
        no_orphans_in_c_code=True,
        no_main_guard=True,
        daemonic_parent=True,
        stacks=True,
        idle_costs_nothing=True,
    )

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        timeout: float | None = None,
        shutdown_timeout_seconds: float = 30.0,
        cancel_grace_seconds: float = 2.0,
        exit_grace_seconds: float = 2.0,
        keep_ended: int = 0,
        max_queued: int | None = None,
        when_full: str = "wait",
    ) -> None:
        super().__init__(
            handler,
            timeout=timeout,
            shutdown_timeout_seconds=shutdown_timeout_seconds,
            cancel_grace_seconds=cancel_grace_seconds,
            exit_grace_seconds=exit_grace_seconds,
            keep_ended=keep_ended,
            max_queued=max_queued,
            when_full=when_full,
        )

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._own_loop = LoopThread(f"{self._name}-loop")

    def forked(self) -> None:
        self._inherited.append(self._own_loop)
        super().forked()

    def _prepare(self, run: Run) -> None:
        run.home_loop = asyncio._get_running_loop() or self._own_loop.start()

    def _has_lane(self) -> bool:
        return True

    def _take_lane(self, run: Run) -> Lane:
        assert run.home_loop is not None
        return LoopLane(self, run.home_loop)

    def _lane_freed(self, lane: Lane) -> bool:
        return False

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]:
        thread = self._own_loop.stop()
        if join(thread, min(hard, _clock.monotonic() + 0.5)):
            return [], []
        return [], [f"{self._name}-loop"]

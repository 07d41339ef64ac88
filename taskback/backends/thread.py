"""`ThreadPoolTaskBackend`: runs tasks in threads of this process."""

from taskback._call import Handler
from taskback._options import checked_count
from taskback._promises import Promises
from taskback._public import lives_in
from taskback.backends._closing import until_user_code_ends
from taskback.backends._managed import MAX_ABANDONED, ManagedBackend
from taskback.pools import _os
from taskback.pools.lane import Lane
from taskback.pools.thread_lane import OwnThreadLane


@lives_in("taskback")
class ThreadPoolTaskBackend(ManagedBackend):
    """Runs tasks in threads: for handlers that block on files, sockets or C code that lets go of the GIL.

    A running handler is stopped by an exception at its next bytecode. One that does not stop within the grace is
    ABANDONED: its thread cannot be killed and goes on until the program ends; another takes its place. It does not hold
    up that end, unless it holds the GIL in C code, or a lock that the program's own exit hooks want.

    Args:
        handler (Callable[[dict], Any] | None): Sync or async; None leaves it to `set_handler`.
        max_workers (int | None): Threads; None takes the CPUs that this process may use plus 4, at most 32.
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.
        stuck_after_seconds (float | None): A task that runs for so long without a `report()` is told, with its stack:
            in the log and as a `TaskStuck`. None tells of none.
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
        priority=True,
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
        max_workers: int | None = None,
        timeout: float | None = None,
        shutdown_timeout_seconds: float = 20.0,
        cancel_grace_seconds: float = 2.0,
        exit_grace_seconds: float = 2.0,
        keep_ended: int = 0,
        stuck_after_seconds: float | None = None,
        max_queued: int | None = None,
        when_full: str = "wait",
    ) -> None:
        if max_workers is None:
            max_workers = min(32, _os.available_cpus() + 4)
        self._count = self._max_workers = checked_count("max_workers", max_workers, least=1)
        super().__init__(
            handler,
            timeout=timeout,
            shutdown_timeout_seconds=shutdown_timeout_seconds,
            cancel_grace_seconds=cancel_grace_seconds,
            exit_grace_seconds=exit_grace_seconds,
            keep_ended=keep_ended,
            stuck_after_seconds=stuck_after_seconds,
            max_queued=max_queued,
            when_full=when_full,
        )

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._threads: list[OwnThreadLane] = []  # written under the ledger's lock
        self._given_up: set[Lane] = set()  # lanes whose thread was abandoned and has not ended

    def _open(self) -> None:
        lanes = [self._new_lane() for _ in range(self._count)]
        with self._ledger.lock:
            self._threads, self._idle = lanes, list[Lane](reversed(lanes))

    def _new_lane(self) -> OwnThreadLane:
        return OwnThreadLane(self, f"{self._name}-worker")

    def _give_up(self, lane: Lane) -> None:
        assert isinstance(lane, OwnThreadLane)
        if lane.retired:
            return
        lane.retired = True
        self._given_up.add(lane)
        self._threads = [other for other in self._threads if other is not lane]
        if self._ledger.open and len(self._given_up) <= MAX_ABANDONED:
            self._add_lane()

    def _add_lane(self) -> None:
        """One more, in the place of one that was given up. Under the ledger's lock."""
        lane = self._new_lane()
        self._threads.append(lane)
        self._idle.append(lane)

    def _lane_freed(self, lane: Lane) -> bool:
        assert isinstance(lane, OwnThreadLane)
        if not lane.retired:
            return True
        lane.close()  # its thread has come back after all, and ends
        self._given_up.discard(lane)
        if self._ledger.open and len(self._threads) < self._count:
            self._add_lane()
        return False

    def _lanes(self) -> list[Lane]:
        return [lane for lane in self._threads if lane.thread is not None]

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]:
        lanes = self._threads
        for lane in lanes:
            lane.close()
        limit = until_user_code_ends(soft, hard)
        held = [lane.thread.name for lane in lanes if not lane.join(limit) and lane.thread is not None]
        with self._ledger.lock:
            self._threads = []
        return [], held

    def _close_at_exit(self) -> None:
        for lane in self._threads:
            lane.close()

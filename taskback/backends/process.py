"""`ProcessPoolTaskBackend`: runs tasks in worker processes."""

import asyncio
from copy import copy

from taskback import _clock
from taskback._call import Handler, Outcome
from taskback._options import checked_count
from taskback._promises import Promises
from taskback._report import WorkerStats
from taskback._state import TaskState
from taskback.backends._managed import ManagedBackend
from taskback.pools import _os, trees
from taskback.pools.lane import Lane
from taskback.pools.process_lane import ProcessLane, disown_workers


class ProcessPoolTaskBackend(ManagedBackend):
    """Runs tasks in worker processes: for CPU-heavy handlers, and for handlers that must be stoppable for certain.

    Tasks, results and exceptions are pickled. A handler of an importable module is imported by each worker; a
    closure, a lambda or a function of the main script travels by value. A running handler is stopped by an exception
    at its next bytecode, and, after the grace, by killing its worker with all that it has started; another worker
    takes its place.

    Workers are spawned, so the main script needs its `if __name__ == "__main__":`.

    Args:
        handler (Callable[[dict], Any] | None): Sync or async; None leaves it to `set_handler`.
        max_workers (int | None): Processes; None takes the CPUs that this process may use (affinity and cgroup quota).
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take before its worker is killed.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument makes no sense.
        HandlerNotSerializableError: The handler cannot be pickled.
    """

    crosses = True
    promises = Promises(
        returns_before_run=True,
        frees_loop=True,
        uses_cores=True,
        delay=True,
        priority=True,
        timeout=True,
        cancels_running=True,
        stops_anything=True,
        exact_start=True,
        progress=True,
        survives_worker_death=True,
        kills_children=True,
        bounded_shutdown=True,
        exits_without_shutdown=True,
        no_orphans=True,
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
    ) -> None:
        if max_workers is None:
            max_workers = _os.available_cpus()
        self._max_workers = checked_count("max_workers", max_workers, least=1)
        super().__init__(
            handler,
            timeout=timeout,
            shutdown_timeout_seconds=shutdown_timeout_seconds,
            cancel_grace_seconds=cancel_grace_seconds,
            exit_grace_seconds=exit_grace_seconds,
            keep_ended=keep_ended,
        )

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._processes: list[ProcessLane] = []

    def _open(self) -> None:
        self._packer.forget()
        self._processes = [ProcessLane(self, f"{self._name}-{number}") for number in range(self._max_workers)]
        self.keeper.start()
        for lane in self._processes:
            self.keeper.call(lane.start)

    def _lane_freed(self, lane: Lane) -> bool:
        return lane in self._processes  # not one that a callback held until after the shutdown

    def _lanes_wanted(self) -> None:
        for lane in self._processes:
            if lane.dormant:
                self.keeper.call(lane.start)

    def cannot_start(self, lane: Lane, error: BaseException) -> bool:
        """Workers die before they are ready: end what waits for them, unless another worker is there for it."""
        if any(other.hopeful for other in self._processes if other is not lane):
            return True
        with self._ledger.lock:
            waiting = list(self._ledger.queue)
        for run in waiting:
            self.ended(run, Outcome(TaskState.LOST, error=copy(error)))  # whoever raises it adds a traceback
        return False

    def _lanes(self) -> list[Lane]:
        return list(self._processes)

    def _worker_stats(self, lane: Lane) -> WorkerStats | None:
        found = super()._worker_stats(lane)
        if found is None:
            return None
        rss = trees.rss_bytes(found.pid)
        return WorkerStats(found.pid, found.task_id, found.task_type, found.since, rss)

    def _nothing_will_start(self) -> None:
        for lane in self._processes:
            lane.last = True

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]:
        for lane in self._processes:
            lane.close()
        await self._all_gone(soft)
        for lane in self._processes:
            lane.kill()
        await self._all_gone(hard)
        limit = max(hard, _clock.monotonic() + 0.05)
        dying = [pid for lane in self._processes for pid in lane.dying(limit)]
        held = [lane.name for lane in self._processes if not lane.join(limit)]
        self._processes = []
        return dying, held

    async def _all_gone(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                for lane in self._processes:
                    await lane.gone.wait()
        except TimeoutError:
            return

    def forked(self) -> None:
        """This is a fork: hold nothing of the parent's workers, and start afresh."""
        disown_workers()
        for lane in self._processes:
            lane.forked()
        self._inherited.append(self._processes)
        super().forked()

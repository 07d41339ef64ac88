"""`ProcessPoolTaskBackend`: runs tasks in worker processes."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from copy import copy
from typing import Any, Final

from taskback import _clock
from taskback._call import Handler, Outcome
from taskback._context import restores
from taskback._options import checked_count
from taskback._promises import Promises
from taskback._propagate import propagated
from taskback._public import lives_in
from taskback._report import WorkerStats
from taskback._router import NO_POLICY
from taskback._run import Run
from taskback._state import TaskState
from taskback._task import Task, checked_type
from taskback.backends._closing import TURN, until_user_code_ends
from taskback.backends._managed import ManagedBackend
from taskback.backends._packing import modules_of
from taskback.pools import _os
from taskback.pools.child.limits import NO_LIMITS, resident_bytes
from taskback.pools.guardian_client import GuardianClient, checked_limits
from taskback.pools.lane import Lane
from taskback.pools.process_lane import ProcessLane
from taskback.pools.worker_lane import fullest
from taskback.pools.worker_logs import LogReader

KILLED_WITHIN: Final = 0.2  # seconds after the grace of a shutdown, from when on the guardian sees to it


@lives_in("taskback")
class ProcessPoolTaskBackend(ManagedBackend):
    """Runs tasks in worker processes: for CPU-heavy handlers, and for handlers that must be stoppable for certain.

    Tasks, results and exceptions are pickled. A handler of an importable module is imported by each worker; a
    closure, a lambda or a function of the main script travels by value. A running handler is stopped by an exception
    at its next bytecode, and, after the grace, by killing its worker with all that it has started; another worker
    takes its place.

    Workers are forked from a small process of the backend's own, the guardian, which has imported the handler's
    modules: the main script is never imported again and needs no `if __name__ == "__main__":`. The guardian keeps the
    time limits, too, whatever this process is doing, and ends all of it when this process is gone.

    Args:
        handler (Callable[[dict], Any] | None): Sync or async; None leaves it to `set_handler`.
        max_workers (int | None): Processes; None takes the CPUs that this process may use (affinity and cgroup quota).
        max_tasks_per_child (int | None): After so many tasks a worker is replaced; 1 gives each task a fresh process,
            with the handler's modules imported. Its successor is started when it has its last one, so up to twice
            `max_workers` processes are there at a time. None never replaces one.
        max_worker_seconds (float | None): A worker that is older than that is replaced when its task is over; None
            never does.
        max_worker_rss_bytes (int | None): So is one that has more than so many bytes of memory resident by then, with
            what it shares and without what it has started.
        kill_worker_rss_bytes (int | None): A worker that has more than that while it has something to do is killed;
            its task is LOST with a `WorkerDiedError` that says so. It is looked at 50 times a second.
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take before its worker is killed.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.
        stuck_after_seconds (float | None): A task that runs for so long without a `report()` is told, with its stack:
            in the log and as a `TaskStuck`. None tells of none.
        max_queued (int | None): Tasks that may wait for a worker; None sets no limit.
        max_queued_bytes (int | None): Bytes that those may be pickled to; None sets no limit.
        when_full (str): What becomes of a submission beyond that: "wait" has it wait for room, "reject" raises
            `QueueFullError`, "shed" drops the oldest task of the lowest priority for it.
        forward_logs (bool): Whether what workers log or warn of is handled by this process's loggers and filters, with
            the attributes `task_id`, `task_type` and `worker_pid` on each record; if not, by the worker's own.
        propagate (Iterable[ContextVar | str]): Context variables that a handler finds as they were where its task was
            submitted: globals of modules, or their names, "package.module:name". Values are pickled at submit.

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
        limits_beside_busy_loop=True,
        exact_start=True,
        progress=True,
        survives_worker_death=True,
        peak_memory=True,
        kills_children=True,
        kills_detached=True,
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
        max_tasks_per_child: int | None = None,
        max_worker_seconds: float | None = None,
        max_worker_rss_bytes: int | None = None,
        kill_worker_rss_bytes: int | None = None,
        timeout: float | None = None,
        shutdown_timeout_seconds: float = 20.0,
        cancel_grace_seconds: float = 2.0,
        exit_grace_seconds: float = 2.0,
        keep_ended: int = 0,
        stuck_after_seconds: float | None = None,
        max_queued: int | None = None,
        max_queued_bytes: int | None = None,
        when_full: str = "wait",
        forward_logs: bool = True,
        propagate: Iterable[ContextVar[Any] | str] = (),
    ) -> None:
        if max_workers is None:
            max_workers = _os.available_cpus()
        self._count = self._max_workers = checked_count("max_workers", max_workers, least=1)
        if max_tasks_per_child is not None:
            checked_count("max_tasks_per_child", max_tasks_per_child, least=1)
        self._worker_limits = checked_limits(
            max_tasks_per_child, max_worker_seconds, max_worker_rss_bytes, kill_worker_rss_bytes
        )
        self._forward_logs = bool(forward_logs)
        self._propagated = propagated(propagate)
        super().__init__(
            handler,
            timeout=timeout,
            shutdown_timeout_seconds=shutdown_timeout_seconds,
            cancel_grace_seconds=cancel_grace_seconds,
            exit_grace_seconds=exit_grace_seconds,
            keep_ended=keep_ended,
            stuck_after_seconds=stuck_after_seconds,
            max_queued=max_queued,
            max_queued_bytes=max_queued_bytes,
            when_full=when_full,
        )

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._processes: list[ProcessLane] = []
        self._guardian: GuardianClient | None = None

    def _open(self) -> None:
        self._packer.forget()
        with suppress(Exception):  # which each task is told
            self.handler_bytes()  # once, before each lane does it
        logs = LogReader(f"{self._name}-logs") if self._forward_logs else None
        modules = {*modules_of(self._executor), *(self._propagated.modules if self._propagated is not None else ())}
        guardian = self._guardian = GuardianClient(tuple(sorted(modules)), limits=self._worker_limits, logs=logs)
        self._processes = [ProcessLane(self, guardian, f"{self._name}-{number}") for number in range(self._count)]
        self.keeper.start()
        if self._warming is not None:
            self._warming.expect(self._processes)
            for lane in self._processes:
                self.keeper.call(lane.start)

    def lane_ready(self, lane: Lane, error: BaseException | None) -> None:
        """The lane's worker is ready; whoever waits for the first ones is told."""
        warming = self._warming
        if warming is not None:
            warming.ready(lane, error)

    def _accepted(self, run: Run, queue: bool) -> None:
        for lane in self._processes:
            if lane.lowest < run.priority:
                lane.give_back(run.priority)
        super()._accepted(run, queue)

    def _accepted_all(self, runs: list[Run]) -> None:
        highest = max(run.priority for run in runs)
        for lane in self._processes:
            if lane.lowest < highest:
                lane.give_back(highest)
        super()._accepted_all(runs)

    def _chunkable(self, task: Task) -> bool:
        """Whether nothing needs the task by itself."""
        return (
            self._policy(checked_type(task)) is NO_POLICY
            and self._timeout is None
            and self._stuck_after is None
            and not self._keep_ended
            and self._ledger.pressure is None
            and not self._listeners.listening
            and not restores()
            and self._propagated is None
            and self._worker_limits == NO_LIMITS
            and _os.HAS_PACKETS
        )

    def _somebody_is_free(self) -> bool:
        if not self._idle:
            for lane in self._processes:
                if lane.dormant:
                    break
            else:
                return False
        return True

    def next_run(self, lane: Lane) -> Run | None:
        """What the lane is to do: of what another one was sent ahead, too, where nothing is queued."""
        run = super().next_run(lane)
        if run is None:
            fuller = fullest(self._processes, lane)
            if fuller is not None:
                fuller.give_back()
        return run

    def _lane_freed(self, lane: Lane) -> bool:
        return lane in self._processes  # not one that a callback held until after the shutdown

    def _lanes_wanted(self) -> None:
        for lane in self._processes:
            if lane.dormant:
                self.keeper.call(lane.start)

    def cannot_start(self, lane: Lane, error: BaseException, tried_ns: int) -> bool:
        """Workers die before they are ready: end what waits for them, unless another worker is there for it.

        What came after the last try had begun is not told of that: it may find things mended.
        """
        warming = self._warming
        if warming is not None:
            warming.unable(lane, error)
        if any(other.hopeful for other in self._processes if other is not lane):
            return True
        with self._ledger.lock:
            waiting = list(self._ledger.scheduler)
        told = [run for run in waiting if run.queued_ns <= tried_ns]
        for run in told:
            self.ended(run, Outcome(TaskState.LOST, error=copy(error)))  # whoever raises it adds a traceback
        return len(told) < len(waiting)

    def _lanes(self) -> list[Lane]:
        return list(self._processes)

    def _worker_stats(self, lane: Lane) -> WorkerStats | None:
        found = super()._worker_stats(lane)
        if found is None:
            return None
        rss = resident_bytes(found.pid)
        return WorkerStats(found.pid, found.task_id, found.task_type, found.since, rss)

    def _set_limit(self, run: Run) -> None:
        """The guardian keeps it."""

    def _nothing_will_start(self) -> None:
        for lane in self._processes:
            lane.close()
        if self._guardian is not None:  # whatever this process does then
            self._guardian.kill_all_at(_clock.monotonic() + self.grace + KILLED_WITHIN)

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]:
        for lane in self._processes:
            lane.close()
        await self._all_gone(soft)
        for lane in self._processes:
            lane.kill()
        limit = until_user_code_ends(soft, hard)
        await self._all_gone(limit)
        held_by_users = self.held_by_user_code()
        if any(not lane.gone.is_set() and lane.name not in held_by_users for lane in self._processes):
            await self._all_gone(hard)  # what it waits for is the kernel
            limit = max(hard, _clock.monotonic() + TURN)
        if self._guardian is not None:
            self._guardian.close(limit)
        held = [lane.name for lane in self._processes if not lane.join(limit)]
        logs = None if self._guardian is None else self._guardian.logs
        if logs is not None and not logs.join(max(limit, _clock.monotonic() + TURN)):
            held.append(logs.name)
        dying = [pid for lane in self._processes for pid in lane.dying()]
        self._processes = []
        return dying, held

    def _close_at_exit(self) -> None:
        for lane in self._processes:
            lane.close()
        if self._guardian is not None:
            self._guardian.close()

    async def _all_gone(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                for lane in self._processes:
                    await lane.gone.wait()
        except TimeoutError:
            return

    def forked(self) -> None:
        """This is a fork: start afresh; what was open of the parent's workers is closed by now, or will be."""
        self._inherited.append((self._processes, self._guardian))
        super().forked()

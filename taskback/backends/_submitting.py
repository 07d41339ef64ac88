"""How a task comes in: checked, made a run, and accepted, joined to another one, or refused.

Threads: any; what is user code (the key, a merge function, pickling) runs on the submitter's.
Locks: the ledger's, within its methods alone.
Holds: whatever fails before the run is accepted leaves nothing of it behind, its place in the line for room included.
"""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from taskback import _clock, _codec
from taskback._backend import TaskBackend, _refuse_id
from taskback._call import Outcome
from taskback._chunk import Chunk, pack_tasks
from taskback._context import captured
from taskback._errors import BackendClosedError, NoHandlerError, QueueFullError, ShedError
from taskback._handle import TaskHandle
from taskback._options import NO_OPTIONS, UNSET, Options, read_options
from taskback._propagate import Propagated
from taskback._router import NO_POLICY, Policy, TaskRouter
from taskback._run import Run
from taskback._state import BackendState, TaskState
from taskback._task import Task, checked_type
from taskback.backends._ledger import Ledger, Merged
from taskback.backends._ticket import Ticket
from taskback.scheduler.coalescing import Joining
from taskback.scheduler.fields import fair_value_of, key_of

logger = logging.getLogger(__name__)


class SubmittingBackend(TaskBackend):
    """The half of a backend that takes tasks; the other half is `ManagedBackend`."""

    crosses = False  # whether tasks are pickled
    _queues = True  # whether tasks that are submitted wait for lanes

    _name: str
    _state: BackendState
    _ledger: Ledger
    _timeout: float | None
    _propagated: Propagated | None = None  # context variables that cross

    def _prepare(self, run: Run) -> None:
        """A run is about to be accepted on the submitter's thread."""

    @abstractmethod
    def _somebody_is_free(self) -> bool:
        """Whether a lane is idle, or there might be more of them. Takes no lock."""

    @abstractmethod
    def initialize_sync(self, *, warm: bool = True, timeout: float | None = 60.0) -> None:
        """Get ready to take tasks."""

    @abstractmethod
    def look_again(self) -> None:
        """Hand over what may start."""

    @abstractmethod
    def ended(self, run: Run, outcome: Outcome) -> None:
        """The run is over."""

    @abstractmethod
    def release(self, handle: TaskHandle) -> bool:
        """A handle is cancelled; True if its task will not complete for it."""

    def refresh(self, run: Run) -> None:
        """Find out whether a run that was handed over has begun, where nobody tells."""
        self._ledger.refresh(run)

    async def submit(self, task: Task, **options: Any) -> TaskHandle:
        accepted = self._accept(task, options)
        while isinstance(accepted, Ticket):
            try:
                await accepted.wait()
            except BaseException:
                self._ledger.give_up(accepted)
                raise
            accepted = self._admit(accepted.run, accepted.task, True, accepted)
        return accepted

    def submit_sync(self, task: Task, *, wait: float | None = None, **options: Any) -> TaskHandle:
        deadline = _clock.deadline_after(wait)
        accepted = self._accept(task, options)
        while isinstance(accepted, Ticket):
            try:
                if asyncio._get_running_loop() is not None:
                    raise QueueFullError(self._name, "waiting for room would hold up the event loop: await submit()")
                if not accepted.block(deadline):
                    raise TimeoutError(f"{self._name} had no room within {wait:g} s; nothing was submitted")
            except BaseException:
                self._ledger.give_up(accepted)
                raise
            accepted = self._admit(accepted.run, accepted.task, True, accepted)
        return accepted

    async def submit_many(self, tasks: Iterable[Task], **options: Any) -> list[TaskHandle]:
        tasks = list(tasks)
        handles = self._accept_all(tasks, options)
        return await super().submit_many(tasks, **options) if handles is None else handles

    def submit_many_sync(self, tasks: Iterable[Task], *, wait: float | None = None, **options: Any) -> list[TaskHandle]:
        tasks = list(tasks)
        handles = self._accept_all(tasks, options)
        return super().submit_many_sync(tasks, wait=wait, **options) if handles is None else handles

    def _accept_all(self, tasks: list[Task], given: dict[str, Any]) -> list[TaskHandle] | None:
        """Accept several in one step; None where each may have to wait for room, or to join another one."""
        _refuse_id(given)
        options = read_options(self._name, self.promises, given)
        runs = []
        for task in tasks:
            if not isinstance(task, dict):
                raise TypeError(f"a task is a dict, not a {type(task).__name__}")
            task_type = checked_type(task)
            self._be_open(task_type)
            policy = self._policy(task_type)
            if policy.coalesce is not None or self._ledger.pressure is not None or not self._queues:
                return None
            runs.append(self._make_run(task, task_type, options, policy))
        if not runs or self._executor is None:
            return [] if not runs else None
        handles = self._ledger.admit_all(runs, self)
        if handles is None:
            raise BackendClosedError(self._name, self._state.value)
        self._accepted_all(runs)
        return handles

    def _accepted_all(self, runs: list[Run]) -> None:
        self.look_again()

    def _submit_chunk(self, tasks: list[Task]) -> TaskHandle:
        task_type = checked_type(tasks[0])
        self._be_open(task_type)
        run = Run(
            *(_clock.new_task_id(), task_type, None, _codec.dumps_task(pack_tasks(tasks))),
            context={},
            priority=0,
            ready_at=0.0,
            timeout=None,
            policy=NO_POLICY,
            chunk=Chunk(len(tasks)),
        )
        admitted = self._admit(run, {}, True, None)
        assert isinstance(admitted, TaskHandle)  # it joins nothing, and there is room
        return admitted

    def _accept(self, task: Task, given: dict[str, Any], queue: bool = True) -> TaskHandle | Ticket:
        if not isinstance(task, dict):
            raise TypeError(f"a task is a dict, not a {type(task).__name__}")
        task_type = checked_type(task)
        options = read_options(self._name, self.promises, given) if given else NO_OPTIONS
        if self._state is not BackendState.RUNNING:
            self._be_open(task_type)
        policy = self._policy(task_type)
        if options.id is not None:
            joined = self._ledger.join(options.id, self)
            if joined is not None:
                return joined
        run = self._make_run(task, task_type, options, policy)
        limited = queue and self._ledger.pressure is not None and self._executor is not None
        return self._admit(run, task, queue, Ticket(run, task, self._name) if limited else None)

    def _admit(self, run: Run, task: Task, queue: bool, ticket: Ticket | None) -> TaskHandle | Ticket:
        """Have a run accepted; its ticket, if it has to wait for room."""
        schedules = queue and self._executor is not None
        merged: Merged | None = None
        try:
            while isinstance(admitted := self._ledger.admit(run, self, schedules, ticket, merged), Joining):
                merged = self._merged(admitted, task)
            if admitted is None:
                raise BackendClosedError(self._name, self._state.value)
        except BaseException:
            if ticket is not None:
                self._ledger.give_up(ticket)
            raise
        if isinstance(admitted, Ticket):
            return admitted
        if ticket is not None:
            self._ledger.give_up(ticket)  # it has joined another one, or has used its room
            for shed in ticket.shed:
                self.ended(shed, Outcome(TaskState.CANCELLED, error=ShedError(shed.id, self._name)))
        if admitted._run is run:
            self._accepted(run, queue)
        elif admitted._run.id != run.id:  # it may have brought another priority or an earlier time
            self.look_again()
        return admitted

    def _merged(self, joining: Joining[Run], task: Task) -> Merged:
        """What the policy's function makes of the task that waits and of this one. User code, under no lock."""
        assert joining.merge is not None
        merged = joining.merge(joining.item.task(), dict(task))
        if not isinstance(merged, dict):
            raise TypeError(f"coalesce must give a task, which is a dict, not a {type(merged).__name__}")
        merged = dict(merged)
        return Merged(joining, *((None, _codec.dumps_task(merged)) if self.crosses else (merged, None)))

    def _be_open(self, task_type: str | None) -> None:
        if self._state is BackendState.NEW:
            logger.warning("%s: a task of type %r came before initialize; initializing", self._name, task_type)
            self.initialize_sync(warm=False)  # submit is prompt
        elif self._state is not BackendState.RUNNING:
            raise BackendClosedError(self._name, self._state.value)

    def _policy(self, task_type: str | None) -> Policy:
        handler = self._executor
        if not isinstance(handler, TaskRouter):
            return NO_POLICY
        handler.check(task_type)
        return handler.policy(task_type)

    def _make_run(self, task: Task, task_type: str | None, options: Options, policy: Policy) -> Run:
        timeout = options.timeout
        if timeout is UNSET:
            timeout = self._timeout if policy.timeout is None else policy.timeout
        assert timeout is None or isinstance(timeout, float)
        if type(task) is not dict or not self.crosses:
            task = dict(task)
        run = Run(
            options.id or _clock.new_task_id(),
            task_type,
            *((None, _codec.dumps_task(task)) if self.crosses else (task, None)),
            context=captured(options.context),
            priority=policy.priority if options.priority is None else options.priority,
            ready_at=options.ready_at,
            timeout=timeout,
            policy=policy,
            key=None if policy.key is None else key_of(policy, task),
            fair_value=None if policy.fair_by is None else fair_value_of(policy, task),
        )
        if self._propagated is not None:
            run.variables = self._propagated.packed()
        self._prepare(run)
        return run

    def _accepted(self, run: Run, queue: bool) -> None:
        if self._executor is None:
            self.ended(run, Outcome(TaskState.FAILED, error=NoHandlerError(self._name, run.type)))
        elif queue and (run.policy is not NO_POLICY or run.ready_at or self._somebody_is_free()):
            # Race: a lane becomes idle just now. It has looked for a run after this one was queued, and found it.
            self.look_again()

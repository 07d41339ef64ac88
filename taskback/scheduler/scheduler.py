"""A task enters, a worker is free, a time comes, a task ends: which one starts, which one ends, when to look again.

Pure: no thread, no I/O, no clock; `now` is passed in, and its owner's lock is held around every call. No user code runs
in here but the hashes of keys and of values that take turns.

Holds: a task that was added is in one place (see `entry`) until `ended` is told of it, or until it comes out of
`expired`. It comes out of `next` once for each time that it is added, put back, or to run again. A call costs O(log n)
in the tasks that are here, amortised; a time that has come costs that once.

What the rules leave open is decided so: a task that waits for a retry or has put itself off keeps its key, or one that
was submitted later would overtake it. Where both may start, it comes before those that were submitted after it.
`queue_timeout` is over once a task has begun. A task keeps the rules that it came with; cap and floor are those of the
last one of its type that came. Times that are up by `now` are seen to first, in their order, so that `next` gives none
whose time for waiting is up.
"""

import math
import random
from collections.abc import Hashable, Iterator, Mapping
from typing import Final, Generic

from taskback.scheduler import attempts, coalescing, explaining, keys
from taskback.scheduler.attempts import Verdict
from taskback.scheduler.census import Waiting, plus
from taskback.scheduler.coalescing import Joining
from taskback.scheduler.entry import Entry, I, Place
from taskback.scheduler.explaining import Reason
from taskback.scheduler.plain import Plain, PlainTasks, is_plain
from taskback.scheduler.ready import Ready
from taskback.scheduler.rules import Rules
from taskback.scheduler.timers import Timers

_AT_ONCE: Final = -math.inf


class Scheduler(Generic[I]):
    """See the top of the file. `chance` gives the jitter of waits; seeded alike, it gives the same."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = random.Random() if chance is None else chance
        self._entries: dict[int, Entry[I]] = {}  # by sequence number
        self._plain: PlainTasks[I] = PlainTasks()
        self._timers = Timers()
        self._ready = Ready(self._entries)
        self._running_count = 0
        self._expired: list[I] = []

    # --- in ---

    def add(self, item: I, rules: Rules, now: float) -> None:
        """A task is accepted."""
        if self._plain.add(item, rules, now):
            return
        if is_plain(rules) and self._may_be_plain(item.type, rules):
            self._plain.welcome(item.type, rules)
            if self._plain.add(item, rules, now):
                return
        for plain in self._plain.give_all(item.type) if self._plain.rules(item.type) is not rules else ():
            self._make_entry(plain)
        line = self._ready.join(item.type, rules)
        entry = self._entries[item.sequence] = Entry(item, rules, line, now)
        line.census.enter(entry)
        if rules.coalesce is not None and entry.key is not None:
            keys.open(entry)
        self._wait_for_time(entry, now)

    def joining(self, type: str | None, key: Hashable, now: float) -> Joining[I] | None:
        """The task that a submission of this type and key is to join; None has it added. See `coalescing`."""
        self._see_to_times(now)
        line = self._ready.line(type)
        entry = None if key is None or line is None else keys.joinable(line.keys.get(key))
        return None if entry is None else coalescing.joining(entry)

    def join(self, joining: Joining[I], priority: int, ready_at: float, now: float) -> bool:
        """A submission joins; False if that is not so any more and `joining` is to be asked again."""
        self._see_to_times(now)
        entry = self._entries.get(joining.item.sequence)
        if entry is None or not coalescing.still_holds(joining, entry):
            return False
        entry.joins += 1
        if priority > entry.priority:
            self._raise_priority(entry, priority)
        if entry.place is Place.DELAYED and ready_at < entry.due:
            entry.due = ready_at
            entry.wait_from(now)
            self._wait_for_time(entry, now)
        return True

    # --- out ---

    def next(self, now: float) -> I | None:
        """A worker is free: the task that it gets, if one may start."""
        if not self._entries:
            return self._plain.take()
        self._see_to_times(now)
        head = self._plain.head()
        if head is not None and self._ready.yields_to(head):
            return self._plain.take()
        entry: Entry[I] | None = self._ready.take()
        if entry is None:
            return None
        self._begin(entry)
        return entry.item

    def next_plain(self, most: int) -> list[I]:
        """The same for several tasks at once, where no rule has a say in any task that is here; else none."""
        return [] if self._entries else self._plain.take_many(most)

    def put_back(self, item: I) -> None:
        """A task that was handed out has not begun: back to its old place, with its old turn and its key."""
        if self._plain.put_back(item):
            return
        entry = self._running(item)
        self._ready.restore(entry)
        entry.line.census.move(entry, Place.READY)
        self._running_count -= 1
        if entry.unseen:
            self._limit_wait(entry)
            if entry.key is not None and entry.rules.coalesce is not None:
                keys.open(entry)

    def failed(self, item: I, error: BaseException, now: float, epoch: float) -> Verdict:
        """The handler of a task that was handed out raised. Unless it runs again, `ended` is to be told as well."""
        entry = self._running(item)
        return self._judged(entry, attempts.after_error(entry.rules, entry, error, now, epoch, self._chance))

    def crashed(self, item: I, now: float) -> Verdict:
        """The worker of a task that was handed out died. Unless it runs again, `ended` is to be told as well."""
        entry = self._running(item)
        return self._judged(entry, attempts.after_crash(entry.rules, entry, now, self._chance))

    def abandoned(self, item: I) -> None:
        """The thread of a task was given up and replaced. `ended` is to be told once it ends, which frees its key."""
        entry = self._running(item)
        if not entry.abandoned:
            entry.abandoned = True
            self._ready.given_up(entry)

    def ended(self, item: I) -> bool:
        """A task is over, wherever it was, and its work has stopped; False if it was not here."""
        if self._plain.end(item):
            return True
        entry = self._entries.get(item.sequence)
        if entry is None or entry.item is not item:
            return False
        self._remove(entry)
        return True

    def expired(self, now: float) -> list[I]:
        """The tasks whose time for waiting is up, each told once; they are not here any more."""
        self._see_to_times(now)
        expired, self._expired = self._expired, []
        return expired

    def wake_at(self) -> float | None:
        """When `expired` and `next` are to be asked again though nothing else happens; None for never."""
        if self._expired:
            return _AT_ONCE
        return self._timers.next()

    # --- answers ---

    def explain(self, item: I, now: float) -> Reason[I] | None:
        """Why a task waits, None if it is not here. It is asked by people: it may look at all plain tasks."""
        entry = self._entry(item)
        return None if entry is None else explaining.explain(entry, self._ready, self._plain, now)

    def figures(self, now: float) -> Mapping[str | None, Waiting]:
        """How many tasks are where, by type, for the types that have some."""
        found = {line.type: line.census.figures(line.at_cap, now) for line in self._ready.lines()}
        for kind in self._plain.kinds():
            found[kind.type] = plus(found.get(kind.type, Waiting()), kind, now)
        return found

    def may_go_ahead(self, item: I) -> bool:
        """Whether a task that was handed out may be sent to a worker that is still busy: no rule has a say in it."""
        entry = self._entries.get(item.sequence)
        if entry is None:
            return True
        rules = entry.rules
        return entry.key is None and rules.fair_by is None and rules.max_running is None and not rules.reserved

    def spent(self, item: I) -> tuple[int, int]:
        """How many attempts of a task have raised, and how many have taken their worker along."""
        entry = self._entries.get(item.sequence)
        return (0, 0) if entry is None else (entry.failures, entry.crashes)

    def __iter__(self) -> Iterator[I]:
        """The tasks that wait, in no order."""
        yield from self._plain
        yield from (entry.item for entry in self._entries.values() if entry.place is not Place.RUNNING)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._plain) + len(self._entries) - self._running_count

    # --- moves ---

    def _running(self, item: I) -> Entry[I]:
        entry = self._entry(item)
        assert entry is not None, item.sequence
        assert entry.item is item, item.sequence
        assert entry.place is Place.RUNNING, entry.place
        return entry

    def _entry(self, item: I) -> Entry[I] | None:
        """The entry of a task; one that had none gets it."""
        entry = self._entries.get(item.sequence)
        if entry is None:
            plain = self._plain.give(item)
            if plain is not None:
                entry = self._make_entry(plain)
        return entry

    def _make_entry(self, plain: Plain) -> Entry[I]:
        line = self._ready.join(plain.item.type, plain.rules)
        entry: Entry[I] = Entry(plain.item, plain.rules, line, plain.since)
        self._entries[entry.sequence] = entry
        line.census.enter(entry)
        self._get_ready(entry)
        if plain.out:
            self._ready.hand_out(entry)
            self._begin(entry)
        return entry

    def _may_be_plain(self, type: str | None, rules: Rules) -> bool:
        """Whether no task of the type is here with other rules."""
        line = self._ready.line(type)
        return self._plain.rules(type) is None and (line is None or line.rules is rules)

    def _begin(self, entry: Entry[I]) -> None:
        entry.begun = True
        entry.line.census.move(entry, Place.RUNNING)
        self._running_count += 1
        self._timers.drop(entry)
        if entry.key_line is not None:
            keys.close(entry)

    def _see_to_times(self, now: float) -> None:
        while (entry := self._timers.due(now)) is not None:
            if entry.place is Place.DELAYED:
                self._enter_line(entry)
            elif entry.place in (Place.RETRY, Place.DEFER):
                self._get_ready(entry)
            else:
                self._expired.append(entry.item)
                self._remove(entry)

    def _wait_for_time(self, entry: Entry[I], now: float) -> None:
        if entry.due > now:
            self._timers.put(entry, entry.due)
        else:
            self._enter_line(entry)

    def _enter_line(self, entry: Entry[I]) -> None:
        """Its time has come."""
        self._limit_wait(entry)
        if entry.key is None:
            self._get_ready(entry)
            return
        in_front, before = keys.enter(entry)
        if not in_front:
            self._wait_for_key(entry)
            return
        self._get_ready(entry)
        if before is not None:  # after that, so that a value which both share keeps its turn
            self._ready.drop(before)
            self._wait_for_key(before)

    def _wait_for_key(self, entry: Entry[I]) -> None:
        entry.line.census.move(entry, Place.KEY)
        keys.fall_in(entry)

    def _get_ready(self, entry: Entry[I]) -> None:
        entry.line.census.move(entry, Place.READY)
        self._ready.put(entry)

    def _limit_wait(self, entry: Entry[I]) -> None:
        if entry.expires < math.inf:
            self._timers.put(entry, entry.expires)
        else:
            self._timers.drop(entry)

    def _raise_priority(self, entry: Entry[I], priority: int) -> None:
        if entry.place is Place.READY:
            self._ready.drop(entry)
        entry.priority = priority
        if entry.place is Place.READY:
            self._ready.put(entry)

    def _judged(self, entry: Entry[I], verdict: Verdict) -> Verdict:
        if verdict.again is not None:
            self._ready.stopped(entry)
            entry.due = verdict.at
            entry.line.census.move(entry, verdict.again)
            self._running_count -= 1
            self._timers.put(entry, entry.due)
        return verdict

    def _remove(self, entry: Entry[I]) -> None:
        del self._entries[entry.sequence]
        after = None if entry.key_line is None else keys.leave(entry)
        if after is not None:  # first, so that a value which both share keeps its turn
            self._get_ready(after)
        if entry.place is Place.READY:
            self._ready.drop(entry)
        elif entry.place is Place.RUNNING:
            self._ready.stopped(entry)
            self._running_count -= 1
        self._timers.drop(entry)
        entry.line.census.leave(entry)
        self._ready.leave(entry.line)
        del entry.item  # what is out of date in a heap must keep no task

"""The run: round after round, each with one or two new backends beside two that live throughout, and faults in all.

The residents: the workers of one are killed all the time, while its guardian lives; those of the other are left alone,
so that their memory can be looked at. After each round nothing is in flight, and what there is is held against what
there was. A round that does not end in its time is ended by the watch, which tells where everything is.
"""

from __future__ import annotations

import faulthandler
import itertools
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from soak import book, kinds, leaks, places, sabotage
from soak.faults import Faults
from soak.leaks import Held, Memory
from soak.life import Life
from soak.places import PLACES, Place
from taskback import TaskState
from tests import leftovers

ROUND: Final = (1.5, 4.0)  # seconds of load in a round
ROUND_LIMIT: Final = 150.0  # seconds that a round may take with all its shutdowns


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do.

    Attributes:
        seed (int): Of everything that is drawn.
        seconds (float): How long it goes on at least, where no numbers are given.
        tasks (int): It goes on until so many have ended.
        faults (int): And until so many faults were injected.
        rate (float): Faults a second.
        most_bytes (int): Of one payload.
        from_round (int): Rounds before this one are left out.
        only (str): The one place for new lives; empty for all.
        sabotage (str): What is broken on purpose; empty for nothing.
        quiet (bool): Whether rounds are not told.
        limit (float): Seconds that a round may take.
        load (float | None): Seconds of load in a round; None draws them.
    """

    seed: int
    seconds: float
    tasks: int = 0
    faults: int = 0
    rate: float = 50.0
    most_bytes: int = 8 << 20
    from_round: int = 0
    only: str = ""
    sabotage: str = ""
    quiet: bool = False
    limit: float = ROUND_LIMIT
    load: float | None = None

    def again(self, number: int) -> str:
        """The command that runs this again, from a round on."""
        parts = [f"scripts/soak --seed {self.seed} --from-round {number} --seconds 60 --rate {self.rate:g}"]
        if self.only:
            parts.append(f"--only '{self.only}'")
        if self.sabotage:
            parts.append(f"--sabotage {self.sabotage}")
        return " ".join(parts)


class Run:
    """See the top of the file."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcomes: Counter[TaskState] = Counter()
        self.kinds: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.violations: list[str] = []
        self.round = plan.from_round
        self.given_up = 0
        self.guardians_killed = 0
        self.escaped = 0
        self.stuck = 0
        self.shutdowns = 0
        self.longest = ("", 0.0)
        self.latest = ("", 0.0)
        self.memory = {name: Memory(name) for name in ("the program", "a guardian", "a quiet worker")}
        self.first: Held | None = None  # after the warm-up
        self.last: Held | None = None
        self._lives: list[Life] = []
        self._numbers = itertools.count(1)
        self._began = time.monotonic()
        self._deadline = float("inf")
        self._directory = tempfile.mkdtemp(prefix="taskback-soak-")
        self._work = os.path.join(self._directory, "tmp")
        self._faults = Faults(random.Random(f"{plan.seed}-faults"), plan.rate)

    # --- the whole of it ---

    def run(self) -> bool:
        """Do it; whether all held."""
        os.mkdir(self._work)
        tempfile.tempdir = os.environ["TMPDIR"] = self._work
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        before, shared = leftovers.look(), _names_in_shm()
        watch = threading.Thread(target=self._watch, name="soak-watch", daemon=True)
        watch.start()
        try:
            self._faults.start()
            residents = self._residents()
            try:
                while not self._is_enough() and not self.violations:
                    self._one_round(residents)
                    self._look_at_what_is_held(residents)
            finally:
                self._deadline = time.monotonic() + self.plan.limit
                self._faults.aim([])
                for _, subject, _ in residents:
                    subject.shutdown_sync(10)
                residents.clear()
                self._faults.stop()
        except KeyboardInterrupt:
            self.violations.append("it was interrupted")
        if not self.violations:
            self._nothing_is_left(before, shared)
        self._deadline = float("inf")
        for error in self._faults.errors[:5]:
            self.violations.append(f"a fault could not be injected: {error}")
        self.violations += [wrong for memory in self.memory.values() if (wrong := memory.what_is_wrong())]
        shutil.rmtree(self._directory, ignore_errors=True)
        return not self.violations

    def _is_enough(self) -> bool:
        plan = self.plan
        if self.round == plan.from_round:  # one round at least
            return False
        if plan.tasks or plan.faults:
            return self.tasks >= plan.tasks and self.injected >= plan.faults
        return time.monotonic() - self._began >= plan.seconds

    @property
    def tasks(self) -> int:
        """How many have ended."""
        return sum(self.outcomes.values())

    @property
    def injected(self) -> int:
        """How many faults were injected, by handlers as well."""
        return sum(self._faults.counts.values()) + self.by_handlers

    @property
    def by_handlers(self) -> int:
        """How many tasks have taken their worker along."""
        return sum(self.kinds[kind] for kind in ("crash", "crash_once", "close_descriptors"))

    def _residents(self) -> list[tuple[Place, Any, bool]]:
        place = Place("resident", kinds.PROCESS, 0, places.processes)
        make = sabotage.backend(self.plan.sabotage)
        found = []
        for shaken in (True, False):
            subject = make(max_workers=2)
            subject.initialize_sync()
            found.append((place, subject, shaken))
        return found

    # --- a round ---

    def _one_round(self, residents: list[tuple[Place, Any, bool]]) -> None:
        rng = random.Random(f"{self.plan.seed}-{self.round}")
        self._deadline = time.monotonic() + self.plan.limit
        directory = tempfile.mkdtemp(dir=self._directory)
        began = time.monotonic()
        staying = [self._life(place, subject, rng, directory, small=True) for place, subject, _ in residents]
        for life in staying:
            life.book.spares_guardian = True
        new = [self._new_life(place, rng, directory) for place in self._some_places(rng)]
        self._lives = staying + new
        for life in self._lives:
            life.begin()
        self._faults.aim([staying[0], *new])
        drawn = rng.uniform(*ROUND)
        time.sleep(drawn if self.plan.load is None else self.plan.load)
        restarted = []
        for life in new:
            life.end()
            if not life.place.is_pool and rng.random() < 0.3:  # what was shut down begins again
                self._faults.aim([other for other in self._faults.lives if other is not life])
                again = self._life(life.place, life.subject, rng, directory)
                if life.place.where == kinds.FOREIGN:
                    again.book.forgives = True
                restarted.append(again)
                self._lives.append(again)
                again.begin()
        if restarted:
            self._faults.aim([staying[0], *restarted])
            time.sleep(rng.uniform(0.3, 1.0))
        for life in restarted:
            life.end()
        for life in staying:
            life.settle()
        self._faults.aim([])
        sabotage.once_a_round(self.plan.sabotage)
        self._close_round()
        shutil.rmtree(directory)
        if not self.plan.quiet:
            self._tell_round(time.monotonic() - began, [life.place.name for life in new])
        self.round += 1

    def _some_places(self, rng: random.Random) -> list[Place]:
        open_to = [place for place in PLACES if self.plan.only in ("", place.name)]
        return rng.choices(open_to, [place.weight for place in open_to], k=rng.choice((1, 1, 2)))

    def _new_life(self, place: Place, rng: random.Random, directory: str) -> Life:
        return self._life(place, sabotage.subject(self.plan.sabotage, place, rng), rng, directory)

    def _life(self, place: Place, subject: Any, rng: random.Random, directory: str, small: bool = False) -> Life:
        most_bytes = 1 << 16 if small else rng.choice((1 << 10, 1 << 17, self.plan.most_bytes))
        submitters = (1, 1) if small else (rng.choice((1, 1, 2)), rng.choice((0, 1, 2)))
        return Life(place, subject, random.Random(rng.random()), directory, self._numbers, most_bytes, submitters)

    def _close_round(self) -> None:
        for life in self._lives:
            self.outcomes += life.book.outcomes
            self.kinds += life.book.kinds
            self.given_up += life.book.given_up
            self.guardians_killed += life.book.guardians_killed
            self.stuck += life.stuck
            self.places[life.place.name] += life.book.submitted
            self.violations += [f"{life.place.name}: {what}" for what in life.book.violations]
            for how, late, seconds in life.shutdowns:
                self.shutdowns += 1
                self.longest = max(self.longest, (f"{life.place.name}, {how}", seconds), key=lambda each: each[1])
                self.latest = max(self.latest, (f"{life.place.name}, {how}", late), key=lambda each: each[1])
        self._lives = []

    def _look_at_what_is_held(self, residents: list[tuple[Place, Any, bool]]) -> None:
        """Between two rounds, of which nothing is left, not even in local variables."""
        leaks.trim()
        self._count_the_escaped()
        warm = self.round - self.plan.from_round >= 3
        self.last = leaks.settled(self._work, self.first)
        if warm and self.first is None:
            self.first = self.last
        if self.first is not None and self.last.exceeds(self.first):
            self.violations.append(
                f"there is more than after the warm-up: {self.last}, was {self.first}\n  {leaks.details(self._work)}"
            )
        self.memory["the program"].note(leaks.rss(os.getpid()))
        shaken, quiet = residents[0][1], residents[1][1]
        self.memory["a guardian"].note(leaks.rss(places.guardian_of(shaken) or 0))
        self.memory["a quiet worker"].note(max(map(leaks.rss, places.workers_of(quiet)), default=0))

    def _count_the_escaped(self) -> None:
        """End what has left its worker's tree while neither that worker nor its guardian was there to adopt it.

        Both were killed from outside. Then it is init's, and nobody can tell whose it was.
        """
        if self.guardians_killed:
            self.escaped += leaks.end_escaped()
            if self.escaped > self.guardians_killed:
                self.violations.append(f"{self.escaped} escaped, with {self.guardians_killed} guardians killed")

    def _nothing_is_left(self, before: leftovers.Seen, shared: set[str]) -> None:
        self._count_the_escaped()
        left = leftovers.left_since(before, leaks.SETTLE)
        watch = {thread for thread in left.threads if thread.name == "soak-watch"}
        lines = [line for line in left.lines() if not any(repr(thread.name) in line for thread in watch)]
        lines += [f"/dev/shm/{name}" for name in leaks.shared_files(shared, {os.getpid()})]
        lines += [str(path) for path in Path(self._work).rglob("*") if path.is_file()]
        if lines:
            self.violations.append("left behind at the end:\n  " + "\n  ".join(lines))

    # --- the watch ---

    def _watch(self) -> None:
        while time.monotonic() < self._deadline:
            time.sleep(0.2)
        tell_where_everything_is(self._lives, self.plan.limit)
        self.violations.append(f"round {self.round} did not end within {self.plan.limit:g} s; see above")
        self.violations += [what for life in self._lives for what in life.book.violations]
        print(self.summary(), flush=True)
        leftovers.kill(leftovers.processes())
        shutil.rmtree(self._directory, ignore_errors=True)
        os._exit(1)

    # --- what is told ---

    def _tell_round(self, seconds: float, names: list[str]) -> None:
        print(
            f"round {self.round}: {seconds:.1f} s, {', '.join(names)}; {self.tasks:,} tasks, {self.injected:,} faults",
            flush=True,
        )

    def summary(self) -> str:
        """All of it, and what was broken."""
        seconds = time.monotonic() - self._began
        lines = [
            f"soak: seed {self.plan.seed}, {self.round - self.plan.from_round} rounds, {seconds:.0f} s, "
            f"Python {sys.version.split()[0]}",
            f"tasks: {self.tasks:,} ({self.tasks / max(1e-9, seconds):,.0f}/s): "
            + ", ".join(f"{state.value} {count:,}" for state, count in self.outcomes.most_common()),
            f"of the lost ones, told after three starts in a row that no worker could be started: {self.given_up:,}",
            "kinds: " + _counted(self.kinds),
            "where: " + _counted(self.places),
            f"faults: {self.injected:,} ({self.injected / max(1e-9, seconds):.1f}/s): "
            + _counted(self._faults.counts + Counter({"by handlers": self.by_handlers})),
            f"shutdowns: {self.shutdowns:,}; longest {self.longest[1]:.2f} s ({self.longest[0]}); "
            f"longest beyond its timeout {self.latest[1]:.2f} s ({self.latest[0]}); stuck: {self.stuck}",
        ]
        lines.append(f"escaped, for their worker and its guardian were killed together: {self.escaped}")
        for memory in self.memory.values():
            start, warm, end = (size / 2**20 for size in memory.figures())
            told = f"{start:.1f} MiB at the start, {warm:.1f} after the warm-up, {end:.1f} at the end"
            lines.append(f"memory of {memory.name}: {told}")
        lines.append(f"held after the warm-up: {self.first}; at the end: {self.last}")
        if self.violations:
            lines.append(f"\nBROKEN, {len(self.violations)} times:")
            lines += [f"- {what}" for what in self.violations[: 2 * book.MOST_TOLD]]
            lines.append(f"\nagain: {self.plan.again(max(self.plan.from_round, self.round - 1))}")
        else:
            lines.append("all held: nothing lost, nothing twice, nothing left")
        return "\n".join(lines)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _names_in_shm() -> set[str]:
    try:
        return set(os.listdir("/dev/shm"))
    except OSError:
        return set()


def tell_where_everything_is(lives: list[Life], limit: float) -> None:
    """All stacks, and the tasks that have not ended."""
    print(f"\nnot over within {limit:g} s; all stacks:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    for life in lives:
        print(f"\n{life}", file=sys.stderr)
        for pid in (places.guardian_of(life.subject), *places.workers_of(life.subject)):
            print(f"  process {pid}: {_state_of(pid)}", file=sys.stderr)
        for ticket in list(life.book.open.values())[:20]:
            why = ""
            try:
                if not life.place.is_pool and ticket.handle is not None:
                    why = life.subject.explain(ticket.handle)
            except BaseException as error:
                why = repr(error)
            print(f"  task {ticket.number} ({ticket.kind}): {book.describe(ticket)}; {why}", file=sys.stderr)
    sys.stderr.flush()


def _state_of(pid: int | None) -> str:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            state = next((line.strip() for line in file if line.startswith("State:")), "")
        with open(f"/proc/{pid}/wchan", encoding="utf-8") as file:
            return f"{state}, at {file.read()}"
    except OSError as error:
        return str(error)


def prepare(log: str | None) -> None:
    """Make this program one that a soak can run in; with the library's log in a file, if one is named."""
    os.environ[leftovers.MARK] = os.environ.get(leftovers.MARK, "") + f".soak-{os.getpid()}-{time.time_ns()}"
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    warnings.filterwarnings("ignore", category=ResourceWarning)
    # What was killed, dropped or failed is told in the log: thousands of lines here, of what is done on purpose.
    logging.getLogger("taskback").setLevel(logging.CRITICAL if log is None else logging.DEBUG)
    if log is not None:
        logging.basicConfig(filename=log, format="%(relativeCreated)d %(threadName)s %(name)s %(message)s")
    logging.getLogger("concurrent.futures").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable()

"""What is done to the workers, to the guardians and to the program itself, from outside, while tasks run.

A process is named by a pidfd, and found to be a child of the right one after that was opened, so that no stranger is
ever hit. Whatever is stopped or short is set right again on the same thread, at once.

Threads: one, which does one thing after another.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Final

from soak import kinds, places
from soak.life import Life

logger = logging.getLogger("taskback.soak")
_HOG: Final = "while True: pass"


class Faults:
    """See the top of the file.

    Args:
        rng (random.Random): Seeded.
        rate (float): Faults a second that it aims at.

    Attributes:
        counts (Counter[str]): What was done, by kind.
        lives (list[Life]): To whom.
    """

    def __init__(self, rng: random.Random, rate: float) -> None:
        self.counts: Counter[str] = Counter()
        self.lives: list[Life] = []
        self.errors: list[str] = []
        self._rng = rng
        self._pause = 1.0 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-faults", daemon=True)
        self._hog: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._last_guardian = 0.0
        self._ways = (
            (self._kill, 40.0),
            (self._stop_for_a_while, 20.0),
            (self._stop_and_kill, 5.0),
            (self._tell_to_end, 10.0),
            (self._be_nice, 3.0),
            (self._starve_of_descriptors, 3.0),
            (self._kill_guardian, 1.0),
            (self._stop_guardian, 3.0),
            (self._hog_a_processor, 1.0),
            (self._fork_the_program, 1.0),
            (self._starve_the_program, 0.5),
        )

    # --- its own life ---

    def start(self) -> None:
        """Begin."""
        self._hog = subprocess.Popen([sys.executable, "-c", _HOG], stdin=subprocess.DEVNULL)
        self._hog.send_signal(signal.SIGSTOP)
        self._thread.start()

    def stop(self) -> None:
        """End; nothing stays stopped."""
        self._stop.set()
        self._thread.join()
        if self._hog is not None:
            self._hog.kill()
            self._hog.wait()

    def aim(self, lives: list[Life]) -> None:
        """From now on at these; when this returns nothing is under way against others."""
        with self._lock:
            self.lives = lives

    def _run(self) -> None:
        ways, weights = zip(*self._ways, strict=True)
        due = time.monotonic()
        while not self._stop.is_set():
            due = max(due + self._rng.expovariate(1 / self._pause), time.monotonic() - 0.5)
            self._stop.wait(max(0.0, due - time.monotonic()))
            with self._lock:
                targets = [life for life in self.lives if life.place.where in kinds.IN_PROCESSES]
                if not targets:
                    continue
                life = self._rng.choice(targets)
                way = self._rng.choices(ways, weights)[0]
                try:
                    way(life)
                except BaseException as error:
                    self.errors.append(f"{way.__name__}: {error!r}")

    def _count(self, what: str, pid: int | None = None) -> None:
        self.counts[what] += 1
        logger.debug("fault: %s %s", what, pid or "")

    # --- workers ---

    def _worker(self, life: Life) -> int | None:
        """A pidfd of one of its workers."""
        found = places.workers_of(life.subject)
        if not found:
            return None
        parent = places.guardian_of(life.subject) or os.getpid()
        return _pidfd_of_child(self._rng.choice(found), parent)

    def _kill(self, life: Life) -> None:
        self._signal(life, signal.SIGKILL, "worker killed")

    def _signal(self, life: Life, number: int, what: str) -> None:
        worker = self._worker(life)
        if worker is None:
            return
        if number == signal.SIGKILL:
            life.book.kills += 1  # first: its loss may be told at once
        try:
            signal.pidfd_send_signal(worker, number)
            self._count(what)
        except ProcessLookupError:
            pass
        finally:
            os.close(worker)

    def _tell_to_end(self, life: Life) -> None:
        """Signals by which terminals and managers end programs; a worker of ours takes no notice."""
        if life.place.has_guardian:
            number = self._rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
            self._signal(life, number, "worker told to end")

    def _stop_for_a_while(self, life: Life) -> None:
        worker = self._worker(life)
        if worker is None:
            return
        try:
            _stop_by(worker, self._rng.uniform(0.001, 0.04))
            self._count("worker stopped")
        finally:
            os.close(worker)

    def _stop_and_kill(self, life: Life) -> None:
        worker = self._worker(life)
        if worker is None:
            return
        life.book.kills += 1
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker, signal.SIGSTOP)
                time.sleep(self._rng.uniform(0, 0.02))
                signal.pidfd_send_signal(worker, signal.SIGKILL)
                self._count("worker stopped, then killed")
        finally:
            os.close(worker)

    def _be_nice(self, life: Life) -> None:
        for pid in places.workers_of(life.subject)[:1]:
            with suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PROCESS, pid, 19)
                self._count("worker made nice")

    def _starve_of_descriptors(self, life: Life) -> None:
        found = places.workers_of(life.subject)
        if not found:
            return
        pid = self._rng.choice(found)
        life.book.starved = True
        with suppress(OSError):
            has = len(os.listdir(f"/proc/{pid}/fd"))
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (has + self._rng.randrange(2), before[1]))
            try:
                time.sleep(self._rng.uniform(0.005, 0.05))
                self._count("worker short of descriptors")
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    # --- guardians ---

    def _guardian(self, life: Life) -> int | None:
        pid = places.guardian_of(life.subject)
        return None if pid is None or not life.place.has_guardian else _pidfd_of_child(pid, os.getpid())

    def _kill_guardian(self, life: Life) -> None:
        # One that is killed while it starts, again and again, makes for tasks that are told so, and for nothing else.
        spared = life.book.spares_guardian or time.monotonic() - self._last_guardian < 1.0
        guardian = None if spared else self._guardian(life)
        if guardian is None:
            return
        # What was left by handlers of its workers is nobody's from then on but the lifeline's.
        life.book.guardians_killed += 1
        self._last_guardian = time.monotonic()
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(guardian, signal.SIGKILL)
                self._count("guardian killed")
        finally:
            os.close(guardian)

    def _stop_guardian(self, life: Life) -> None:
        guardian = self._guardian(life)
        if guardian is None:
            return
        try:
            _stop_by(guardian, self._rng.uniform(0.001, 0.04))
            self._count("guardian stopped")
        finally:
            os.close(guardian)

    # --- the machine, and the program itself ---

    def _hog_a_processor(self, life: Life) -> None:
        assert self._hog is not None
        self._hog.send_signal(signal.SIGCONT)
        time.sleep(self._rng.uniform(0.01, 0.15))
        self._hog.send_signal(signal.SIGSTOP)
        self._count("processor taken")

    def _fork_the_program(self, life: Life) -> None:
        pid = os.fork()
        if not pid:
            time.sleep(0.01)
            os._exit(0)
        os.waitpid(pid, 0)
        self._count("program forked")

    def _starve_the_program(self, life: Life) -> None:
        for each in self.lives:
            each.book.starved = True
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + self._rng.randrange(1, 3), before[1]))
        try:
            time.sleep(self._rng.uniform(0.001, 0.03))
            self._count("program short of descriptors")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _pidfd_of_child(pid: int, parent: int) -> int | None:
    """A pidfd, if that process is the child of that parent; a number that was given away meanwhile is not."""
    try:
        found = os.pidfd_open(pid)
    except OSError:
        return None
    if _parent_of(pid) == parent:
        return found
    os.close(found)
    return None


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _stop_by(pidfd: int, seconds: float) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)

"""Kills a program with a `DurableTaskBackend` at random moments, and counts: every accepted task must have been done.

`scripts/durable-kills [KILLS] [SEED]` does so for each kind of inner backend, and fails if a task was lost.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.durable_program import JOURNAL
from tests.helpers import ROOT

INNER = ("threads", "processes", "loop", "inline")
LONGEST = 0.5  # seconds that it lives once it is up


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of it."""

    kills: int
    accepted: int
    lost: list[str]
    twice: int  # tasks that were done more than once, as they may be
    left: int  # rows that the journal still has
    early: int  # kills that came while it was starting, more or less


def start(folder: Path, inner: str, what: str) -> subprocess.Popen[str]:
    """A life of the program."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.durable_program", str(folder), inner, what],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def kill_at_random(folder: Path, inner: str, kills: int, chance: random.Random) -> Figures:
    """Let so many lives of it end so, one after the other in one folder, and then let it finish what is left."""
    early, starting = 0, 0.0
    for _ in range(kills):
        begun = time.monotonic()
        program = start(folder, inner, "live")
        assert program.stdout is not None
        if starting and chance.random() < 0.3:
            time.sleep(chance.uniform(0, 1.2 * starting))  # while it imports, reads the journal, submits again
            early += 1
        else:
            assert program.stdout.readline() == "up\n"
            starting = time.monotonic() - begun
            time.sleep(chance.uniform(0, LONGEST))
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL, "it ended by itself"
        program.stdout.close()
    last = start(folder, inner, "drain")
    assert last.wait(60) == 0
    assert last.stdout is not None
    last.stdout.close()
    return counted(folder, kills, early)


def counted(folder: Path, kills: int, early: int) -> Figures:
    """Compare what was accepted with what was done."""
    accepted, done = (
        (folder / name).read_text("ascii").split() if (folder / name).exists() else [] for name in ("accepted", "done")
    )
    times = Counter(done)
    with closing(sqlite3.connect(folder / JOURNAL)) as db:
        left = db.execute("SELECT count(*) FROM tasks").fetchone()[0]
    lost = [task_id for task_id in accepted if not times[task_id]]
    return Figures(kills, len(accepted), lost, sum(count > 1 for count in times.values()), left, early)


def main() -> int:
    """The command."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"{kills} kills for each, seed {seed}", flush=True)
    bad = False
    for inner in INNER:
        with tempfile.TemporaryDirectory() as folder:
            found = kill_at_random(Path(folder), inner, kills, random.Random(f"{seed} {inner}"))
        print(
            f"{inner}: {found.kills} kills ({found.early} while it started), {found.accepted} tasks accepted,"
            f" {len(found.lost)} lost, {found.twice} done more than once, {found.left} rows left",
            flush=True,
        )
        bad = bad or bool(found.lost) or bool(found.left)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())

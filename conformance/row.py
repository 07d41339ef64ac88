"""What a row of the matrix is, and what a probe gives: a cell.

A probe is a function of a `Site`. Its docstring says what a green cell demands; it is printed by `--list`.
"""

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conformance.contenders import OURS, PEERS, PROCESSES, Contender

PATIENCE: Final = 8.0  # seconds after which what has not come hangs
LIMIT: Final = 30.0  # seconds for a whole probe


class NotHereError(Exception):
    """This machine lacks what the row needs, as its text says."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What happened.

    Attributes:
        said (str): In a few words.
        passed (bool | None): Whether that is what the row demands; None where the contender does not offer it, or the
            machine does not grant what it takes.
        why (str): What the words leave out: a text of an error, a traceback; for the JSON file.
    """

    said: str
    passed: bool | None
    why: str = ""

    @property
    def mark(self) -> str:
        """A sign for it."""
        return "–" if self.passed is None else "✓" if self.passed else "✗"


def judged(said: str, problems: Iterable[str]) -> Cell:
    """A cell that is green where there are no problems, and tells them where there are."""
    found = [each for each in problems if each]
    return Cell("; ".join(found), False) if found else Cell(said, True)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a probe works.

    Attributes:
        contender (str): Whom it probes.
        pool (Contender): Open, with two workers, unless the row has programs of its own.
        directory (Path): The probe's own, for as long as it runs.
        stage (Callable[[str], None]): What the probe is at, told where it hangs.
    """

    contender: str
    pool: Contender
    directory: Path
    stage: Callable[[str], None]

    def path(self, name: str) -> str:
        """A file of the probe's own."""
        return str(self.directory / name)


Probe = Callable[[Site], Cell]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the matrix.

    Attributes:
        name (str): For `--only`.
        title (str): For the table.
        subject (str): What its file is about.
        probe (Callable[[Site], Cell]): What is done.
        contenders (tuple[str, ...]): Whom it makes sense for.
        kept_by (frozenset[str]): Those of ours whose cell may not say that they do not offer it.
        seconds (float): The hard limit of a probe.
        alone (bool): Whether no other probe may run meanwhile, for it measures a time or takes much memory.
        opens (bool): Whether the probe gets the pool open; else it starts programs that open theirs.
    """

    name: str
    title: str
    subject: str
    probe: Probe
    contenders: tuple[str, ...]
    kept_by: frozenset[str]
    seconds: float
    alone: bool
    opens: bool

    @property
    def demands(self) -> str:
        """What a green cell demands."""
        return " ".join(textwrap.dedent(self.probe.__doc__ or "").split())


class Subject:
    """The rows of a file.

    Args:
        title (str): What they are about.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[Row] = []

    def row(
        self,
        name: str,
        title: str,
        *,
        but: Iterable[str] = (),
        threads: Iterable[str] = (),
        seconds: float = LIMIT,
        alone: bool = False,
        opens: bool = True,
    ) -> Callable[[Probe], Probe]:
        """Have the function below be the probe of a row.

        Args:
            name (str): For `--only`.
            title (str): For the table.
            but (Iterable[str]): Those of our process pools which by their contract do not offer it.
            threads (Iterable[str]): Those of our pools of threads that it makes sense for.
            seconds (float): The hard limit.
            alone (bool): Whether no other probe may run meanwhile.
            opens (bool): Whether the probe gets the pool open.
        """

        def add(probe: Probe) -> Probe:
            ours = [each for each in OURS if each in PROCESSES or each in set(threads)]
            kept = frozenset(ours) - frozenset(but)
            self.rows.append(Row(name, title, self.title, probe, (*ours, *PEERS), kept, seconds, alone, opens))
            return probe

        return add

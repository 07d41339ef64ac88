"""What a line of the table tells, the bars that it is held to, and whether they are kept. Nothing is measured here."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

PEERS: Final = "the best peer"  # as what a bar is relative to
OURS: Final = frozenset({"backend", "pool", "thread-backend", "thread-pool", "taskback"})
REFERENCES: Final = frozenset({"pipe", "pipe-anywhere", "bare-python"})  # shown, but nobody's peer

Figures = Mapping[str, Sequence[float]]  # by contender, one each round


@dataclass(frozen=True, slots=True)
class Bar:
    """What is asked of the first contender of a line.

    Attributes:
        limit (float): In the line's unit, or a factor.
        of (str | None): Whose figure it is a factor of: a contender, or `PEERS`. None: it is absolute.
        more (bool): `limit` may be added to that one's figure, and is no factor.
        each (bool): Of an absolute one: each round must keep it, and not the median.
    """

    limit: float
    of: str | None = None
    more: bool = False
    each: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Attributes:
        name (str): Its key.
        title (str): What was measured.
        unit (str): "s", "/s", "bytes", "times" or "" for a plain number.
        bars (tuple[Bar, ...]): What is asked of it.
        more_is_better (bool): As of rates.
    """

    name: str
    title: str
    unit: str = "s"
    bars: tuple[Bar, ...] = ()
    more_is_better: bool = False


class Verdict(Enum):
    """What is said of a bar."""

    OK = "ok"
    MISSED = "MISSED"
    NO_FIGURE = "no figure"  # of ours: it cannot do that yet, or it failed
    UNKNOWN = "unknown"  # what it is relative to has no figure
    LEFT_OUT = "left out"  # the peers were, on purpose


KEPT: Final = {Verdict.OK, Verdict.LEFT_OUT}


@dataclass(frozen=True, slots=True)
class Judged:
    """A bar, what was found, and the verdict.

    Attributes:
        bar (Bar): The bar.
        verdict (Verdict): Whether it is kept.
        found (float | None): The figure that is held against its limit.
        of (str | None): The contender that it is relative to.
        at_least (bool): Whether the limit is a floor.
    """

    bar: Bar
    verdict: Verdict
    found: float | None = None
    of: str | None = None
    at_least: bool = False


@dataclass(slots=True)
class Result:
    """What a line came to.

    Attributes:
        line (Line): The line.
        ours (str): The contender that the bars are for.
        figures (dict[str, list[float]]): By contender, one each round.
        absent (dict[str, str]): Contenders without figures, and why.
        notes (dict[str, str]): Of contenders that have something to say.
        without_peers (bool): They were left out on purpose.
    """

    line: Line
    ours: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    without_peers: bool = False

    def judged(self) -> list[Judged]:
        """The verdict on each bar."""
        return [judge(self.line, bar, self.ours, self.figures, self.without_peers) for bar in self.line.bars]

    def to_best_peer(self) -> tuple[float, str] | None:
        """Ours as a multiple of the best peer's, and who that is; None where one of them has no figure."""
        best, ours = best_peer(self.line, self.figures), self.figures.get(self.ours)
        return (
            None if best is None or not ours or not any(self.figures[best]) else (ratio(ours, self.figures[best]), best)
        )


def best_peer(line: Line, figures: Figures) -> str | None:
    """The contender that is neither ours nor a reference and has the best median."""
    peers = [name for name in figures if name not in OURS | REFERENCES and figures[name]]
    pick = max if line.more_is_better else min
    return pick(peers, key=lambda name: statistics.median(figures[name])) if peers else None


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds, so that what the machine did in a round hits both; of medians, where rounds lack."""
    if len(ours) == len(others) and all(others):
        return statistics.median(mine / theirs for mine, theirs in zip(ours, others, strict=True))
    theirs = statistics.median(others)
    return statistics.median(ours) / theirs if theirs else float("inf")


def judge(line: Line, bar: Bar, ours: str, figures: Figures, without_peers: bool = False) -> Judged:
    """Hold the figures against a bar.

    Args:
        line (Line): The line.
        bar (Bar): One of its bars.
        ours (str): The contender that it is for.
        figures (Mapping[str, Sequence[float]]): By contender, one each round.
        without_peers (bool): They were left out on purpose, and are not missed.

    Returns:
        Judged: What was found, and the verdict.
    """
    at_least = line.more_is_better
    if not figures.get(ours):
        return Judged(bar, Verdict.NO_FIGURE, at_least=at_least)
    mine = figures[ours]
    of = best_peer(line, figures) if bar.of == PEERS else bar.of
    if bar.of is None:
        worst = min(mine) if at_least else max(mine)
        found = worst if bar.each else statistics.median(mine)
    elif of is None or not figures.get(of):
        left_out = without_peers and bar.of == PEERS
        return Judged(bar, Verdict.LEFT_OUT if left_out else Verdict.UNKNOWN, at_least=at_least)
    elif bar.more:
        found = statistics.median(mine) - statistics.median(figures[of])
    else:
        found = ratio(mine, figures[of])
    kept = found >= bar.limit if at_least else found <= bar.limit
    return Judged(bar, Verdict.OK if kept else Verdict.MISSED, found, of, at_least)


def all_kept(results: Sequence[Result]) -> bool:
    """Whether each bar is kept, or was left out on purpose."""
    return all(judged.verdict in KEPT for result in results for judged in result.judged())

"""How results are shown: for a terminal, as Markdown, as JSON; and the place in the README where they stand."""

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks import published
from benchmarks.bars import OURS, PEERS, REFERENCES, Judged, Line, Result, Verdict, best_peer
from benchmarks.contenders import KINDS

SECONDS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
BYTES: Final = ((1024.0**2, "MB"), (1024.0, "KB"), (1.0, "B"))
NAMES: Final = {  # as columns and sentences have them
    "stock": "stock",
    "stock-forkserver": "stock, forkserver",
    "stock-threads": "stock",
    "stock-imports": "`concurrent.futures.process`, `asyncio`",
    "mp.Pool": "multiprocessing.Pool",
    "anyio": "anyio.to_process",
    "pipe": "bare pipe, two CPUs",
    "pipe-anywhere": "bare pipe, one CPU",
    "bare-python": "bare interpreter",
}


def named(contender: str) -> str:
    """As it is shown."""
    return NAMES.get(contender, contender)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def amount(value: float, unit: str) -> str:
    """With its unit."""
    if value == 0:
        return "0"
    steps: tuple[tuple[float, str], ...] = SECONDS if unit == "s" else BYTES if unit == "bytes" else ()
    for step, name in steps:
        if abs(value) >= step or (step, name) == steps[-1]:
            return f"{number(value / step)} {name}"
    return number(value) + {"/s": "/s", "times": " ×"}.get(unit, "")


def figure(line: Line, values: Sequence[float]) -> str:
    """The median, with the least and the greatest."""
    low, middle, high = (amount(value, line.unit) for value in (min(values), median(values), max(values)))
    if low == high:
        return middle
    unit = middle.rsplit(" ", 1)[-1]
    if low.endswith(f" {unit}"):
        low = low.removesuffix(f" {unit}")
    elif low.endswith("/s"):
        low, high = low.removesuffix("/s"), high.removesuffix("/s")
    return f"{middle} ({low}–{high})"


def bar_words(line: Line, judged: Judged) -> str:
    """What is asked, and what was found: `0.43 of stock (at most 0.5)`."""
    bar = judged.bar
    asked = "at least" if judged.at_least else "at most"
    if bar.of is None:
        return f"{asked} {amount(bar.limit, line.unit)}"
    of = PEERS if bar.of == PEERS else named(bar.of)
    if bar.more:
        found = "" if judged.found is None else f"{amount(abs(judged.found), line.unit)} "
        found += "" if judged.found is None else "less than " if judged.found < 0 else "more than "
        return f"{found}{of} ({asked} {amount(bar.limit, line.unit)} more)"
    times = "×" if judged.at_least else "of"
    found = "" if judged.found is None else f"{number(judged.found)} {times} "
    return f"{found}{of} ({asked} {bar.limit:g})"


def best_words(result: Result) -> str:
    """How ours is to the best peer: `0.92 of pebble`; empty where one of them has no figure."""
    found = result.to_best_peer()
    if found is None:
        return ""
    return f"{number(found[0])} {'×' if result.line.more_is_better else 'of'} {named(found[1])}"


def machine() -> list[str]:
    """Versions and machine."""
    cpu = platform.processor() or platform.machine()
    try:
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        models = []
    return [
        f"{published.system()} ({models[0] if models else cpu}), a load of {os.getloadavg()[0]:.1f} before it",
        published.versions(kind.package for kind in KINDS.values()),
    ]


def text(results: Sequence[Result]) -> str:
    """For a terminal: a block for each line."""
    blocks = []
    for result in results:
        line = result.line
        lines = [line.title]
        for judged in result.judged():
            lines.append(f"  {judged.verdict.value:9} {bar_words(line, judged)}")
        best = best_peer(line, result.figures)
        if to_best := best_words(result):
            lines.append(f"  {'':9} {to_best}, the best peer")
        for contender, values in result.figures.items():
            marks = [f"{len(values)} rounds" if len(values) > 1 else "1 round"]
            if contender == best:
                marks.append("best peer")
            if note := result.notes.get(contender):
                marks.append(note)
            lines.append(f"    {contender:17} {figure(line, values):36} {', '.join(marks)}")
        reasons: dict[str, list[str]] = {}
        for contender, why in result.absent.items():
            reasons.setdefault(why, []).append(contender)
        lines += [f"    {'-':17} {', '.join(contenders)}: {why}" for why, contenders in reasons.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def cell(result: Result, contender: str, spread: bool = True) -> str:
    """A contender's figure, or a dash."""
    values = result.figures.get(contender)
    if values:
        return figure(result.line, values) if spread else amount(median(values), result.line.unit)
    return "not yet" if result.absent.get(contender, "").startswith("not yet") else "–"


def markdown(results: Sequence[Result], about: Sequence[str]) -> str:
    """As it stands in the README: a table, and below it what it was measured on."""
    heads = ("", "taskback", "its pool", "stock", "the others", "to the best peer", "held against", "")
    rows = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|---|---|---|---|"]
    for result in results:
        line, figures = result.line, result.figures
        ours = [name for name in (result.ours, "pool", "thread-pool") if name in OURS]
        pool = next((name for name in ours[1:] if name in figures), None)
        stock = next((name for name in ("stock", "stock-threads", "stock-imports") if name in figures), None)
        best = best_peer(line, figures)
        others = [
            f"**{shown}**" if name == best else shown
            for name, values in figures.items()
            if name not in (*OURS, stock)
            for shown in [f"{named(name)} {amount(median(values), line.unit)}"]
        ]
        judged = result.judged()
        verdicts = [each.verdict.value if each.verdict is not Verdict.MISSED else "**MISSED**" for each in judged]
        cells = [
            line.title.replace("... ", "… "),
            cell(result, result.ours),
            cell(result, pool) if pool else "",
            cell(result, stock) if stock else "",
            " · ".join(others),
            best_words(result),
            "; ".join(bar_words(line, each) for each in judged),
            "; ".join(verdicts),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    below = [
        "Two workers. Medians, in brackets the least and the greatest round; of the others the medians alone, with the",
        f"best peer in bold where it is not the stock pool. Measured on {date.today().isoformat()}:",
        *(f"{each}." for each in about),
    ]
    return "\n".join(rows) + "\n\n" + "\n".join(below)


def write_readme(table: str) -> None:
    """Put the table where the README has its marks.

    Raises:
        ValueError: It has none.
    """
    published.write("bench", table)


def as_json(results: Sequence[Result], about: Sequence[str]) -> dict[str, Any]:
    """All there is to know, each round's figures included; in seconds and bytes."""
    return {
        "machine": about[0],
        "versions": about[1],
        "lines": {
            result.line.name: {
                "title": result.line.title,
                "unit": result.line.unit,
                "more_is_better": result.line.more_is_better,
                "ours": result.ours,
                "best_peer": best_peer(result.line, result.figures),
                "to_best_peer": (result.to_best_peer() or (None,))[0],
                "references": sorted(REFERENCES & result.figures.keys()),
                "medians": {name: median(values) for name, values in result.figures.items()},
                "rounds": result.figures,
                "absent": result.absent,
                "notes": result.notes,
                "bars": [
                    {
                        "limit": judged.bar.limit,
                        "of": judged.bar.of,
                        "found": judged.found,
                        "verdict": judged.verdict.value,
                    }
                    for judged in result.judged()
                ],
            }
            for result in results
        },
    }

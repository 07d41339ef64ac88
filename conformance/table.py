"""The matrix as text, as Markdown for the README, and as JSON."""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, Final

from benchmarks import published
from conformance.contenders import KINDS
from conformance.driver import Found
from conformance.row import Row

HEADS: Final = {
    "backend": "taskback",
    "pool": "its pool",
    "thread-backend": "threads",
    "thread-pool": "its pool of threads",
}


def head(contender: str) -> str:
    """What a column is called."""
    return HEADS.get(contender, contender)


def failed(found: Found, ours: Iterable[str]) -> bool:
    """Whether one of ours fails a row: by its cell, or by not offering what its contract promises."""
    if found.contender not in ours:
        return False
    if found.cell.passed is None:  # whom the row is not for has no say in it; nor has a machine that lacks something
        return found.contender in found.row.kept_by and not found.cell.said.startswith("not here")
    return not found.cell.passed


def line(found: Found, ours: Iterable[str]) -> str:
    """A cell as it is found."""
    wrong = "  <-- FAILED" if failed(found, ours) else ""
    return (
        f"{found.row.name:24} {found.contender:16} {found.cell.mark} {found.cell.said}  [{found.seconds:.1f} s]{wrong}"
    )


def rows_of(found: Sequence[Found]) -> list[Row]:
    """The rows, in the order of the matrix."""
    from conformance.rows import ROWS

    names = {each.row.name for each in found}
    return [row for row in ROWS.values() if row.name in names]


def columns_of(found: Sequence[Found]) -> list[str]:
    """The contenders, in their order."""
    names = {each.contender for each in found}
    return [name for name in KINDS if name in names]


def text(found: Sequence[Found]) -> str:
    """For a terminal: a block for each row."""
    cells = {(each.row.name, each.contender): each.cell for each in found}
    lines, subject = list[str](), ""
    for row in rows_of(found):
        if row.subject != subject:
            subject = row.subject
            lines += ["", subject]
        lines.append(f"  {row.title}  ({row.name})")
        for contender in columns_of(found):
            if cell := cells.get((row.name, contender)):
                lines.append(f"    {cell.mark} {head(contender):20} {cell.said}")
    return "\n".join(lines)


def summary(found: Sequence[Found], ours: Iterable[str]) -> str:
    """How many rows each has passed."""
    parts = []
    for contender in columns_of(found):
        cells = [each.cell for each in found if each.contender == contender]
        passed = sum(cell.passed is True for cell in cells)
        offered = sum(cell.passed is not None for cell in cells)
        parts.append(f"{head(contender)} {passed} of {offered}")
    failures = [f"{each.row.name} ({each.contender})" for each in found if failed(each, ours)]
    return "\n" + ", ".join(parts) + ("\nFAILED: " + ", ".join(failures) if failures else "")


def markdown(found: Sequence[Found], about: Sequence[str]) -> str:
    """As it stands in the README."""
    cells = {(each.row.name, each.contender): each.cell for each in found}
    columns = columns_of(found)
    rows = [f"| | {' | '.join(map(head, columns))} |", f"|---|{'---|' * len(columns)}"]
    subject = ""
    for row in rows_of(found):
        if row.subject != subject:
            subject = row.subject
            rows.append(f"| **{subject}** |{' |' * len(columns)}")
        shown = []
        for contender in columns:
            cell = cells.get((row.name, contender))
            shown.append(f"{cell.mark} {cell.said.replace('|', '/')}" if cell else "")
        rows.append(f"| {row.title} | {' | '.join(shown)} |")
    counts = []
    for contender in columns:
        mine = [each.cell for each in found if each.contender == contender]
        counts.append(f"{sum(c.passed is True for c in mine)} of {sum(c.passed is not None for c in mine)}")
    rows.append(f"| **rows passed** | {' | '.join(counts)} |")
    below = [
        "✓ as it should be, ✗ not so, – not offered. Two workers, and each one's defaults.",
        f"Probed on {date.today().isoformat()}:",
        *(f"{each}." for each in about),
    ]
    return "\n".join(rows) + "\n\n" + "\n".join(below)


def demands(rows: Sequence[Row]) -> str:
    """What each row demands."""
    return "\n".join(f"{row.name}: {row.subject}: {row.title}\n    {row.demands}" for row in rows)


def machine() -> list[str]:
    """What this is run on: the system, and versions."""
    return [published.system(), published.versions(kind.package for kind in KINDS.values())]


def write_readme(table: str) -> None:
    """Put the table where the README has its marks.

    Raises:
        ValueError: It has none.
    """
    published.write("matrix", table)


def as_json(found: Sequence[Found], about: Sequence[str], ours: Iterable[str]) -> dict[str, Any]:
    """All there is to know."""
    return {
        "machine": about[0],
        "versions": about[1],
        "rows": {
            row.name: {
                "subject": row.subject,
                "title": row.title,
                "demands": row.demands,
                "cells": {
                    each.contender: {
                        "said": each.cell.said,
                        "passed": each.cell.passed,
                        "failed": failed(each, ours),
                        "why": each.cell.why,
                        "seconds": round(each.seconds, 3),
                    }
                    for each in found
                    if each.row is row
                },
            }
            for row in rows_of(found)
        },
    }

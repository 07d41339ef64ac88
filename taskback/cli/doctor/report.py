"""What was found, in words and for machines."""

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from taskback import Promises
from taskback.cli.complaints import OK, SOME_FAILED
from taskback.cli.doctor.finding import ALL, Check, Finding, Mark

Section = tuple[str, Sequence[tuple[Check, Finding]]]
_MARKS: Final = max(len(mark.value) for mark in Mark)


def weakened(sections: Sequence[Section]) -> dict[str, list[str]]:
    """The promises that do not stand, each with the checks that say so."""
    found: dict[str, list[str]] = {}
    for _, checked in sections:
        for check, finding in checked:
            for promise in _weakens(check, finding):
                found.setdefault(promise, []).append(check.name)
    return {promise: found[promise] for promise in ALL if promise in found}


def exit_status(sections: Sequence[Section]) -> int:
    """0 where all promises stand."""
    return SOME_FAILED if weakened(sections) else OK


def as_text(sections: Sequence[Section]) -> str:
    """A line a check, and what follows from those that are not ok."""
    width = max(60, shutil.get_terminal_size((110, 24)).columns)
    names = max(len(check.name) for _, checked in sections for check, _ in checked)
    indent = " " * (_MARKS + names + 6)
    lines: list[str] = []
    for title, checked in sections:
        lines.append(title)
        for check, finding in checked:
            head = f"  {finding.mark.value:<{_MARKS}}  {check.name:<{names}}  "
            lines += textwrap.wrap(finding.seen, width, initial_indent=head, subsequent_indent=indent)
            if finding.mark is not Mark.OK:
                means = finding.means or check.means
                lines += textwrap.wrap(means, width, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   ")
        lines.append("")
    return "\n".join([*lines, *_promises(weakened(sections), width)]) + "\n"


def _promises(weak: Mapping[str, list[str]], width: int) -> list[str]:
    if not weak:
        return [f"All {len(ALL)} promises of ProcessPoolTaskBackend stand."]
    lines = [f"{len(ALL) - len(weak)} of the {len(ALL)} promises of ProcessPoolTaskBackend stand. Weakened:"]
    for promise, checks in weak.items():
        text = f"{promise}: {Promises.words(promise)} ({', '.join(checks)})"
        lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def as_json(sections: Sequence[Section]) -> str:
    """The same as one object."""
    weak = weakened(sections)
    checks = [_check(title, *checked) for title, all_checked in sections for checked in all_checked]
    return json.dumps({"stands": not weak, "weakened": weak, "checks": checks}, indent=2) + "\n"


def _check(section: str, check: Check, finding: Finding) -> dict[str, Any]:
    well = finding.mark is Mark.OK
    return {
        "section": section,
        "name": check.name,
        "mark": finding.mark.value,
        "seen": finding.seen,
        "means": "" if well else finding.means or check.means,
        "weakens": list(_weakens(check, finding)),
        "facts": finding.facts,
    }


def _weakens(check: Check, finding: Finding) -> tuple[str, ...]:
    return check.weakens if finding.weakens is None else finding.weakens

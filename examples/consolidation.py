"""The handler of the demo: merge what a bank of source files says more than once.

A task is `{"type": "consolidation", "bank_id": "json", "paths": ["json/decoder.py", ...]}`. Relative paths
are in the standard library's own folder (see stdlib_banks), so that a file of tasks holds on every machine.

From the shell, in the checkout's root:
    taskback run examples.consolidation:consolidate TASKS.jsonl --backend process --out results.jsonl
"""

from __future__ import annotations

import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import taskback
from examples.near_duplicates import group_near_duplicates
from examples.statements import UNREADABLE, Statement, normalise, read_statements

STDLIB: Final = Path(sysconfig.get_path("stdlib"))


def consolidate(task: dict[str, Any]) -> dict[str, Any]:
    """Merge the statements of one bank.

    Args:
        task (dict[str, Any]): `bank_id`, and `paths` of the source files.

    Returns:
        dict[str, Any]: `bank_id`; `files` read; `unreadable`, path and reason each; `statements` found;
            `distinct`, how many were left once the near duplicates were merged; and `merged`, the statements
            that stand in more than one place, most repeated first. The same task gives the same result in
            every process.
    """
    paths: list[str] = task["paths"]
    statements, unreadable = _read(paths)
    taskback.current_task().report(done=len(paths), total=len(paths), stage="merging")
    merged = merge(statements)
    return {
        "bank_id": task["bank_id"],
        "files": len(paths) - len(unreadable),
        "unreadable": unreadable,
        "statements": len(statements),
        "distinct": len(merged),
        "merged": [entry for entry in merged if len(entry["sources"]) > 1],
    }


def merge(statements: Iterable[Statement]) -> list[dict[str, Any]]:
    """Make one entry of all statements that say nearly the same, most repeated first."""
    by_meaning: defaultdict[str, list[Statement]] = defaultdict(list)
    for statement in statements:
        by_meaning[normalise(statement.text)].append(statement)
    groups = _groups(by_meaning)
    return sorted(map(_entry, groups), key=lambda entry: (-len(entry["sources"]), entry["text"]))


def _read(paths: Sequence[str]) -> tuple[list[Statement], list[dict[str, str]]]:
    """Give the statements of all files, and which files could not be read and why."""
    task = taskback.current_task()
    statements: list[Statement] = []
    unreadable: list[dict[str, str]] = []
    for done, path in enumerate(paths):
        task.report(done=done, total=len(paths), stage="reading")
        try:
            statements += read_statements(path, (STDLIB / path).read_bytes())
        except UNREADABLE as error:
            unreadable.append({"path": path, "reason": f"{type(error).__name__}: {error}"})
    return statements, unreadable


def _groups(by_meaning: Mapping[str, list[Statement]]) -> list[list[Statement]]:
    texts = list(by_meaning)
    return [
        [statement for position in group for statement in by_meaning[texts[position]]]
        for group in group_near_duplicates(texts)
    ]


def _entry(group: Sequence[Statement]) -> dict[str, Any]:
    wordings = Counter(statement.text for statement in group)
    # The most frequent wording speaks for all; of two, the first in the alphabet, wherever it was found.
    text = min(wordings, key=lambda wording: (-wordings[wording], wording))
    return {"text": text, "wordings": len(wordings), "sources": [statement.source for statement in group]}

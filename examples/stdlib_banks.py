"""Which tasks does the demo run? One a package or large module of the standard library, the longest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

LARGE: Final = 40_000  # bytes; a smaller module shares its bank with those of the same first letter

# Tests repeat themselves without end; the others are tables, applications, or not the library's own.
LEFT_OUT: Final = frozenset(
    {"test", "tests", "encodings", "pydoc_data", "idlelib", "lib2to3", "turtledemo"}
    | {"site-packages", "dist-packages", "__pycache__"}
)
MADE_BY_MACHINE: Final = ("_sysconfigdata", "config-")


def stdlib_tasks(root: Path) -> list[dict[str, Any]]:
    """Give a consolidation task for each bank.

    Args:
        root (Path): The folder of the standard library; the paths in the tasks are relative to it.

    Returns:
        list[dict[str, Any]]: The largest first, so that no long task starts last and runs on alone.
    """
    sizes: defaultdict[str, int] = defaultdict(int)
    banks: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(_sources(root)):
        bank_id = _bank_id(path, root)
        sizes[bank_id] += path.stat().st_size
        banks[bank_id].append(path.relative_to(root).as_posix())
    largest_first = sorted(banks, key=lambda bank_id: (-sizes[bank_id], bank_id))
    return [{"type": "consolidation", "bank_id": name, "paths": banks[name]} for name in largest_first]


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in LEFT_OUT or path.name.startswith(MADE_BY_MACHINE):
            continue
        if path.is_dir():
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _bank_id(path: Path, root: Path) -> str:
    top = path.relative_to(root).parts[0]
    if top != path.name:
        return top
    if path.stat().st_size >= LARGE:
        return path.stem
    return f"modules in {path.stem.strip('_')[0].lower()}"

"""Do the results that `taskback run` wrote agree with those of examples.compare?

python -m examples.agree CONSOLIDATED.jsonl RESULTS.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def disagreements(expected: Path, written: Path) -> list[str]:
    """Compare bank by bank.

    Args:
        expected (Path): The handler's results, one a line, in any order.
        written (Path): What `taskback run --out` wrote: a line a task, its result under `result`.

    Returns:
        list[str]: A sentence on each bank that is missing, different, unexpected or there twice.
    """
    wanted = {result["bank_id"]: result for result in _lines(expected)}
    problems = []
    for number, line in enumerate(_lines(written), 1):
        result = line.get("result")
        if not result:
            problems.append(f"line {number}: no result, the task is {line.get('state')}")
        elif wanted.pop(result["bank_id"], None) != result:
            problems.append(f"line {number}: {result['bank_id']} is different, unexpected or there twice")
    return problems + [f"{bank_id} is missing" for bank_id in wanted]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def main() -> int:
    """Print what disagrees; 1 if anything does."""
    expected, written = map(Path, sys.argv[1:])
    problems = disagreements(expected, written)
    print("\n".join(problems) or f"{written}: the same results")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

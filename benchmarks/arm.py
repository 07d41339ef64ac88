"""A process that has one contender open for one row, and measures a round whenever it is told to.

So a contender that hangs, crashes or leaves things behind harms nobody else, and those of a row can take turns, each
with its pool open and warm.

    python -m benchmarks.program benchmarks.arm ROW CONTENDER SCALE

It answers on what was its standard output, in lines of JSON: once it is open, and after each line that it reads.
"""

import json
import os
import sys
from typing import Any

from benchmarks.contenders import CannotError
from benchmarks.rows import ROWS


def main() -> None:
    """Open it, measure when told, close it at the end of the input."""
    row, contender, scale = sys.argv[1:]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a pool or a worker of it prints is no answer

        def answer(**facts: Any) -> None:
            print(json.dumps(facts), file=answers, flush=True)

        try:
            with ROWS[row].opened(contender, float(scale)) as opened:
                answer(note=opened.note, lacks=opened.lacks)
                for _ in sys.stdin:
                    answer(figures=opened.round())
        except CannotError as error:
            answer(cannot=str(error))
        except Exception as error:
            answer(failed=f"{type(error).__name__}: {error}")
            raise

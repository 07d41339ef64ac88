"""`scripts/bench`: taskback and other people's pools, in one run, in turns, beside the bars that taskback is held to.

Two workers everywhere. A figure is the median of the rounds; a ratio is the median of the rounds' ratios. Who cannot
do a row, is not installed or fails in it is shown with the reason, and harms nobody else.

    python -m benchmarks [--only ROW,...] [--rounds 5] [--without-peers] [--check] [--json FILE] [--markdown] [--readme]
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import table
from benchmarks.bars import Result, all_kept
from benchmarks.measure import measure
from benchmarks.rows import ROWS


def main() -> int:
    """Measure and print; 1 with --check where a bar is missed."""
    parser = argparse.ArgumentParser(
        "scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="ROW,...", default=",".join(ROWS), help=f"which ones of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of each row (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks; for trying things out")
    parser.add_argument("--without-peers", action="store_true", help="taskback and what comes with Python alone")
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a bar is missed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README instead")
    parser.add_argument("--readme", action="store_true", help="write that table into the README")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if options.rounds < 1 or options.scale <= 0:
        parser.error("--rounds must be at least 1, --scale more than 0")

    about = table.machine()
    progress = sys.stderr if options.markdown else sys.stdout
    print(*about, "", sep="\n", file=progress, flush=True)
    results: list[Result] = []
    for found in measure(names, options.rounds, options.scale, options.without_peers):
        print(table.text(found), end="\n\n", file=progress, flush=True)
        results += found
    if options.markdown:
        print(table.markdown(results, about))
    if options.json is not None:
        options.json.write_text(json.dumps(table.as_json(results, about), indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.readme:
        table.write_readme(table.markdown(results, about))
    return 1 if options.check and not all_kept(results) else 0


if __name__ == "__main__":
    sys.exit(main())

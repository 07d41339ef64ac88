"""`scripts/matrix`: what taskback and other people's pools do when something goes wrong, a probe a row.

Each probe has a process of its own with a hard limit, below a keeper that leaves nothing. A cell says what happened:
✓ as the row demands, ✗ not so, – not offered by that pool, or not granted by this machine. What a row demands is told
by --list. The exit status is 1 where one of ours (--ours) has a ✗, or a – where its contract promises more.

    python -m conformance [--only ROW,...] [--without-peers] [--json FILE] [--markdown] [--readme] [--list]
"""

import argparse
import json
import os
import sys
from pathlib import Path

from conformance import table
from conformance.contenders import KINDS, OURS
from conformance.driver import Found, run
from conformance.keeper import end_all
from conformance.rows import ROWS
from taskback.pools import _os


def main() -> int:
    """Probe and print; 1 where one of ours fails."""
    parser = argparse.ArgumentParser(
        "scripts/matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="ROW,...", default="", help="some rows, by names or by how they begin")
    parser.add_argument("--contenders", metavar="NAME,...", default=",".join(KINDS), help="of %(default)s")
    parser.add_argument("--without-peers", action="store_true", help="taskback alone")
    parser.add_argument("--ours", metavar="NAME,...", default=",".join(OURS), help="who must not fail (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="probes at a time (%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all that is known there")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README instead")
    parser.add_argument("--readme", action="store_true", help="write that table into the README")
    parser.add_argument("--list", action="store_true", help="tell what each row demands, and end")
    options = parser.parse_args()

    rows = [row for row in ROWS.values() if not options.only or row.name.startswith(tuple(_names(options.only)))]
    for name in _names(options.only):
        if not any(row.name.startswith(name) for row in rows):
            parser.error(f"no row begins with {name!r}; there are {', '.join(ROWS)}")
    contenders, ours = _names(options.contenders), _names(options.ours)
    if unknown := [name for name in (*contenders, *ours) if name not in KINDS]:
        parser.error(f"unknown contender {unknown[0]!r}; there are {', '.join(KINDS)}")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if options.without_peers:
        contenders = [name for name in contenders if name in {*OURS, *ours}]
    if options.list:
        print(table.demands(rows))
        return 0

    _os.adopt_orphans()
    progress = sys.stderr if options.markdown else sys.stdout
    about = table.machine()
    found: list[Found] = []
    try:
        for each in run(rows, contenders, options.jobs):
            found.append(each)
            print(table.line(each, ours), file=progress, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        end_all()  # below a keeper that was killed
    if options.markdown:
        print(table.markdown(found, about))
    else:
        print("", table.text(found), table.summary(found, ours), sep="\n")
    if options.json is not None:
        options.json.write_text(
            json.dumps(table.as_json(found, about, ours), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
    if options.readme:
        table.write_readme(table.markdown(found, about))
    return 1 if any(table.failed(each, ours) for each in found) else 0


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main())

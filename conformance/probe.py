"""A process that probes one contender for one row, below a keeper.

    python -m benchmarks.program conformance.probe ROW CONTENDER DIRECTORY

(By that program, for workers that are spawned import the main module again.) What it finds is in the file `cell` of the
directory as soon as it is found; then the process ends at once, whatever the pool would like to do at its end.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from conformance.contenders import KINDS, CannotError
from conformance.row import Cell, NotHereError, Row, Site
from conformance.rows import ROWS
from taskback.pools import _os


def main() -> None:
    """Probe, tell, end."""
    row, contender, place = ROWS[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
    _os.adopt_orphans()  # what loses its parent is found below this process
    cell = probed(row, contender, place)
    tell(place, "cell", {"said": cell.said, "passed": cell.passed, "why": cell.why})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def probed(row: Row, contender: str, place: Path) -> Cell:
    """The cell of a row."""
    kind = KINDS[contender]
    try:
        if kind.package:
            kind.load()
        pool = kind()
        site = Site(contender, pool, place, lambda stage: tell(place, "stage", stage))
        site.stage("opening")
        return pool.drive(lambda: row.probe(site)) if row.opens else row.probe(site)
    except CannotError as error:
        return Cell(str(error), None)
    except NotHereError as error:
        return Cell(f"not here: {error}", None)
    except ImportError as error:
        return Cell("not installed", None, str(error))
    except BaseException as error:
        return Cell(f"the probe failed: {type(error).__name__}", False, traceback.format_exc())


def tell(place: Path, name: str, fact: Any) -> None:
    """Write something down; whoever finds the file finds it whole."""
    unfinished = place / f"{name}.new"
    unfinished.write_text(json.dumps(fact), encoding="utf-8")
    unfinished.rename(place / name)

"""What is measured: one file for each row, or for a few that are measured together."""

from typing import Final

from benchmarks.rows import (
    awaited,
    behind,
    burst,
    idle,
    importing,
    mapping,
    mixed,
    payloads,
    queued,
    recycled,
    replaced,
    round_trip,
    stall,
    starting,
    threads,
)
from benchmarks.rows._row import Row

ROWS: Final[dict[str, Row]] = {
    "round-trip": round_trip.ROW,
    "burst": burst.ROW,
    "awaited": awaited.ROW,
    "map": mapping.ROW,
    "mixed": mixed.ROW,
    "behind": behind.ROW,
    "array-in": payloads.ARRAY_IN,
    "array-in-out": payloads.ARRAY_IN_OUT,
    "bytes": payloads.BYTES,
    "first-result": starting.ROW,
    "replaced": replaced.ROW,
    "recycled": recycled.ROW,
    "threads": threads.ROW,
    "stall": stall.ROW,
    "queued": queued.COST,
    "queued-memory": queued.MEMORY_ROW,
    "idle": idle.ROW,
    "import": importing.ROW,
}

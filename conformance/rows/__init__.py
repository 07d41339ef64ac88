"""The rows, a file a subject; in the order in which the table has them."""

from typing import Final

from conformance.row import Row
from conformance.rows import (
    cancelling,
    children,
    dying,
    ending,
    exceptions,
    limits,
    memory,
    mischief,
    parents,
    pickling,
    places,
)

SUBJECTS: Final = (
    dying.SUBJECT,
    exceptions.SUBJECT,
    pickling.SUBJECT,
    memory.SUBJECT,
    limits.SUBJECT,
    cancelling.SUBJECT,
    children.SUBJECT,
    parents.SUBJECT,
    ending.SUBJECT,
    places.SUBJECT,
    mischief.SUBJECT,
)
ROWS: Final[dict[str, Row]] = {row.name: row for subject in SUBJECTS for row in subject.rows}

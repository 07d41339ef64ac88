"""Whether a type of task is in trouble: more than half of its last twenty ended badly.

Holds: trouble is told once, and told anew only after no more than a quarter of the last twenty were bad, so that a type
which fails by halves does not fill the log. What a caller cancelled is neither good nor bad, and its owner does not
tell of it. Costs O(1) and one whole number a type. `well` has the types of which the last twenty all ended well: one
more that does need not be told.
"""

from typing import Final

LAST: Final = 20
_ALL: Final = (1 << LAST) - 1


class Trouble:
    """See the top of the file."""

    __slots__ = ("_known", "_told", "well")

    def __init__(self) -> None:
        self._known: dict[str | None, int] = {}  # the last ones as bits, the newest lowest, below a bit that ends them
        self._told: set[str | None] = set()
        self.well: set[str | None] = set()

    def ended(self, type: str | None, badly: bool) -> int | None:
        """A task is over; how many of the last twenty ended badly, where that is to be told now."""
        known = self._known.get(type, 1) << 1 | badly
        if known >> LAST > 1:
            known = known & _ALL | 1 << LAST
        self._known[type] = known
        if not known >> LAST:
            return None
        if known == 1 << LAST:
            self.well.add(type)
        else:
            self.well.discard(type)
        bad = (known & _ALL).bit_count()
        if 4 * bad <= LAST:
            self._told.discard(type)
        elif 2 * bad > LAST and type not in self._told:
            self._told.add(type)
            return bad
        return None

"""A handler raises something odd."""

from typing import Final

from conformance import look, work
from conformance.row import Cell, Probe, Site, Subject, judged

SUBJECT: Final = Subject("A task raises")

THREADS: Final = ("thread-backend", "thread-pool")


def told_as(site: Site, kind: str, *words: str) -> Cell:
    """Have that raised, beside another task; the words are what an error must name."""
    calls = [look.attempt(site, work.throw, kind), look.attempt(site, work.give, 1)]
    odd, innocent = map(look.outcome, calls)
    wrong = f"caller gets {odd}" if not odd.hangs else "caller hangs"
    named = odd.error is not None and all(word in odd.text for word in words)
    said = type(odd.error).__name__ if odd.error is not None else ""
    return Cell(
        *_of(judged(f"told as {said}", ["" if named else wrong, _lost(innocent), look.afterwards(site)])), odd.text
    )


def _of(cell: Cell) -> tuple[str, bool | None]:
    return cell.said, cell.passed


def _lost(innocent: look.Outcome) -> str:
    return "" if innocent.value == 1 else f"innocent: {innocent}"


def _row(name: str, title: str, kind: str, *words: str) -> Probe:
    def probe(site: Site) -> Cell:
        """The caller hears of its type and its text, as itself or in words; no other task is lost, the pool goes on."""
        return told_as(site, kind, *words)

    return SUBJECT.row(f"raises-{name}", title, threads=THREADS)(probe)


_row(
    "two-arguments", "an exception whose `__init__` takes two arguments", "two arguments", "TwoArgumentsError", "odd 7"
)
_row("unpicklable", "… with an attribute that cannot be pickled", "lock", "HoldsALockError", "odd 7")
_row("unrebuildable", "… that raises while it is unpickled", "rebuild raises", "RebuildRaisesError", "odd 7")
_row("no-text", "… whose `str()` raises", "no text", "NoTextError")
_row("base", "a `BaseException`", "base", "OddBaseException", "odd 7")
_row("system-exit", "`SystemExit`", "SystemExit", "SystemExit", "odd 7")
_row("interrupt", "`KeyboardInterrupt`", "KeyboardInterrupt", "KeyboardInterrupt", "odd 7")

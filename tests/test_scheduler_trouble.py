"""When a type of task is said to be in trouble."""

from __future__ import annotations

import random

from taskback.scheduler.trouble import Trouble


def tell(trouble, *ends, type="t"):
    """What is said of each end."""
    return [trouble.ended(type, badly) for badly in ends]


def test_trouble_is_told_when_more_than_half_of_the_last_twenty_ended_badly():
    """Not before twenty have ended, and not at the half itself."""
    trouble = Trouble()

    assert tell(trouble, *[True] * 10, *[False] * 10) == [None] * 20
    assert tell(Trouble(), *[True] * 19) == [None] * 19
    assert tell(Trouble(), *[False] * 20, *[True] * 11) == [None] * 30 + [11]


def test_trouble_is_told_once_until_it_is_over():
    """Well over: a type that fails by halves does not fill the log."""
    trouble = Trouble()

    assert [bad for bad in tell(trouble, *[True] * 40, *[False, True] * 40) if bad] == [20]
    tell(trouble, *[False] * 15)
    assert [bad for bad in tell(trouble, *[True] * 20) if bad] == [11]


def test_each_type_is_on_its_own():
    """Good ones of another type do not make up for bad ones."""
    trouble = Trouble()

    tell(trouble, *[False] * 50, type="good")

    assert tell(trouble, *[True] * 20, type=None) == [None] * 19 + [20]


def test_it_counts_the_last_twenty_and_no_others():
    """As a list would."""
    chance, trouble, ends, told = random.Random(2), Trouble(), [], False
    for _ in range(5_000):
        ends.append(chance.random() < (0.4 if len(ends) % 1000 < 900 else 0.0))
        bad = sum(ends[-20:])
        expected = bad if len(ends) >= 20 and bad > 10 and not told else None
        if "t" in trouble.well and not ends[-1]:
            assert expected is None
            continue
        assert trouble.ended("t", ends[-1]) == expected
        assert ("t" in trouble.well) is (len(ends) >= 20 and not any(ends[-20:]))
        told = len(ends) >= 20 and bad > 5 and (told or bad > 10)

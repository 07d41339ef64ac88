"""What becomes of a submission where the queue is full."""

from __future__ import annotations

import random

import pytest

from taskback.scheduler.pressure import Answer, Limits, Pressure

ADMITTED, WAITS, REFUSED = (Answer.ADMITTED, []), (Answer.WAITS, []), (Answer.REFUSED, [])


def submit(pressure, sequence, size=1, priority=0):
    """A task comes, and is queued if it may be."""
    answer, shed = pressure.ask(f"#{sequence}", size, priority)
    if answer is Answer.ADMITTED:
        pressure.enter(sequence, size, priority)
    return answer, shed


def test_without_limits_all_are_admitted():
    """And counted."""
    pressure = Pressure(Limits())

    assert not Limits().any
    assert [submit(pressure, number, size=10**9) for number in range(100)] == [ADMITTED] * 100
    assert (pressure.queued, pressure.queued_bytes) == (100, 10**11)


def test_those_who_wait_are_served_in_order():
    """One that comes later does not overtake them, though there is room for it."""
    pressure = Pressure(Limits(max_queued_bytes=10))
    assert [submit(pressure, number, size) for number, size in [(1, 8), (2, 5), (3, 1)]] == [ADMITTED, WAITS, WAITS]

    assert pressure.leave(1) == ["#2", "#3"]
    assert pressure.leave(1) == []
    assert (pressure.queued, pressure.queued_bytes, pressure.waiting) == (2, 6, 0)


def test_who_is_admitted_has_its_room():
    """Nobody who comes before it is awake can take that."""
    pressure = Pressure(Limits(max_queued=1))
    submit(pressure, 1)
    submit(pressure, 2)
    assert pressure.leave(1) == ["#2"]

    assert submit(pressure, 3) == WAITS
    pressure.enter(2, 1, 0)
    assert pressure.leave(2) == ["#3"]


def test_a_wait_that_is_cancelled_leaves_nothing_behind():
    """And lets those behind it through that it alone held up; one that was admitted already gives its room back."""
    pressure = Pressure(Limits(max_queued_bytes=10))
    for number, size in [(1, 6), (2, 9), (3, 4), (4, 1)]:
        submit(pressure, number, size)

    assert pressure.give_up("#2") == ["#3"]
    assert pressure.give_up("#2") == []
    assert pressure.give_up("#3") == []
    assert pressure.give_back(4) == ["#4"]
    assert (pressure.queued, pressure.queued_bytes, pressure.waiting) == (2, 7, 0)


def test_closing_wakes_all():
    """In order, once."""
    pressure = Pressure(Limits(max_queued=1))
    for number in (1, 2, 3):
        submit(pressure, number)

    assert pressure.close() == ["#2", "#3"]
    assert pressure.close() == []
    assert pressure.leave(1) == []


def test_rejecting_refuses_until_there_is_room():
    """Nobody waits."""
    pressure = Pressure(Limits(max_queued=1, when_full="reject"))

    assert [submit(pressure, 1), submit(pressure, 2)] == [ADMITTED, REFUSED]
    assert pressure.leave(1) == []
    assert submit(pressure, 3) == ADMITTED


def test_shedding_drops_the_oldest_of_the_lowest_priority():
    """Never one that is above the new one, which is refused then."""
    pressure = Pressure(Limits(max_queued=3, when_full="shed"))
    for number, priority in [(1, 5), (2, 0), (3, 0)]:
        submit(pressure, number, priority=priority)

    assert submit(pressure, 4, priority=1) == (Answer.ADMITTED, [2])
    assert submit(pressure, 5, priority=0) == (Answer.ADMITTED, [3])
    assert submit(pressure, 6, priority=-1) == REFUSED
    assert submit(pressure, 7, priority=0) == (Answer.ADMITTED, [5])
    assert pressure.change(7, 1, 9) == []
    assert submit(pressure, 8, priority=1) == (Answer.ADMITTED, [4])
    assert pressure.queued == 3


def test_a_task_that_left_and_came_back_is_shed_once():
    """And the next one, too, where it takes two."""
    pressure = Pressure(Limits(max_queued_bytes=10, when_full="shed"))
    for number in (1, 2):
        assert submit(pressure, number, size=5) == ADMITTED
    pressure.leave(1)
    pressure.come_back(1, 5, 0)

    assert submit(pressure, 3, size=10) == (Answer.ADMITTED, [1, 2])
    assert (pressure.queued, pressure.queued_bytes) == (1, 10)


def test_as_many_are_shed_as_it_takes_or_none():
    """By size; one that cannot get enough room costs nobody anything."""
    pressure = Pressure(Limits(max_queued_bytes=10, when_full="shed"))
    for number, size, priority in [(1, 3, 0), (2, 3, 0), (3, 4, 5)]:
        submit(pressure, number, size, priority)

    assert submit(pressure, 4, 7, 0) == REFUSED
    assert submit(pressure, 5, 5, 0) == (Answer.ADMITTED, [1, 2])
    assert (pressure.queued, pressure.queued_bytes) == (2, 9)


@pytest.mark.parametrize("when_full", ["wait", "reject", "shed"])
def test_a_task_larger_than_all_room_is_taken_by_an_empty_queue(when_full):
    """It would wait for ever, or never be taken at all."""
    pressure = Pressure(Limits(max_queued_bytes=10, when_full=when_full))

    assert submit(pressure, 1, 50) == ADMITTED
    assert submit(pressure, 2, 60)[0] is not (Answer.ADMITTED if when_full != "shed" else Answer.REFUSED)


def test_a_task_that_comes_back_is_not_refused():
    """It was accepted; others wait until there is room again."""
    pressure = Pressure(Limits(max_queued=1))
    submit(pressure, 1)
    submit(pressure, 2)
    assert pressure.leave(1) == ["#2"]
    pressure.enter(2, 1, 0)

    pressure.come_back(1, 1, 0)

    assert submit(pressure, 3) == WAITS
    assert pressure.leave(1) == []
    assert pressure.leave(2) == ["#3"]


@pytest.mark.parametrize("when_full", ["wait", "shed"])
def test_whatever_comes_and_goes_the_limits_hold(when_full):
    """And no submitter waits while the first of them fits."""
    chance, pressure = random.Random(5), Pressure(Limits(max_queued=8, max_queued_bytes=40, when_full=when_full))
    queued, waiting, sizes = {}, [], {}
    for number in range(5_000):
        woken = []
        if chance.random() < 0.5:
            size, priority = chance.randint(1, 20), chance.randint(0, 2)
            sizes[f"#{number}"] = size
            lowest = min(((rank, each) for each, rank in queued.items()), default=None)
            answer, shed = submit(pressure, number, size, priority)
            if shed:
                assert (queued[shed[0]], shed[0]) == lowest
            for each in shed:
                assert queued.pop(each) <= priority
            if answer is Answer.ADMITTED:
                queued[number] = priority
            elif answer is Answer.WAITS:
                waiting.append(f"#{number}")
        elif waiting and chance.random() < 0.3:
            token = waiting.pop(chance.randrange(len(waiting)))
            woken = pressure.give_up(token)
        elif queued:
            gone = chance.choice(list(queued))
            del queued[gone]
            woken = pressure.leave(gone)
        assert woken == waiting[: len(woken)]
        del waiting[: len(woken)]
        for token in woken:
            queued[int(token[1:])] = 0
            pressure.enter(int(token[1:]), sizes[token], 0)
        total = sum(sizes[f"#{each}"] for each in queued)
        assert (pressure.queued, pressure.queued_bytes, pressure.waiting) == (len(queued), total, len(waiting))
        assert len(queued) <= 8
        assert total <= 40
        if waiting:
            assert len(queued) == 8 or total + sizes[waiting[0]] > 40


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"max_queued": 0}, ValueError),
        ({"max_queued": 1.5}, TypeError),
        ({"max_queued_bytes": -1}, ValueError),
        ({"when_full": "drop"}, ValueError),
        ({"when_full": None}, TypeError),
    ],
)
def test_limits_that_make_no_sense_are_refused_where_they_are_written(given, error):
    """Not when the first task comes."""
    with pytest.raises(error, match=next(iter(given))):
        Limits(**given)

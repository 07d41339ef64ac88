"""What was posted runs once, in order, on the courier's thread; or the post said False."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from taskback._courier import Courier


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Where user code stands until the test lets it go."""
    event = threading.Event()
    yield event
    event.set()


def soon() -> float:
    """A deadline that is not met only by a hang."""
    return time.monotonic() + 10


def test_posts_of_many_threads_run_once_and_in_order():
    """Each thread's posts run in its order, all on one thread that is not the poster's."""
    courier, ran, where = Courier("test-courier"), list[tuple[int, int]](), set[int]()

    def note(poster: int, number: int) -> None:
        ran.append((poster, number))
        where.add(threading.get_ident())

    def post(poster: int) -> None:
        for number in range(500):
            assert courier.post(note, poster, number)

    threads = [threading.Thread(target=post, args=(poster,)) for poster in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert courier.stop(soon())

    for poster in range(4):
        assert [number for who, number in ran if who == poster] == list(range(500))
    assert len(ran) == 2000
    assert len(where) == 1
    assert threading.get_ident() not in where


def test_what_raises_is_logged_and_the_next_one_runs(caplog):
    """Of whatever base the exception is."""
    courier, ran = Courier("test-courier"), threading.Event()

    def raise_it() -> None:
        raise SystemExit(3)

    with caplog.at_level(logging.ERROR, "taskback"):
        courier.post(raise_it)
        courier.post(ran.set)
        assert courier.stop(soon())

    assert ran.is_set()
    assert "raise_it" in caplog.text


def test_more_than_the_limit_is_refused(gate):
    """What stands in user code does not count, and what was refused does not run."""
    courier, began, ran = Courier("test-courier", limit=2), threading.Event(), list[int]()
    courier.post(lambda: (began.set(), gate.wait(10)))
    assert began.wait(5), "the courier never began"

    taken = [courier.post(ran.append, number) for number in range(4)]
    gate.set()

    assert courier.stop(soon())
    assert taken == [True, True, False, False]
    assert ran == [0, 1]


def test_stop_gives_up_on_user_code_at_the_deadline(gate):
    """It says so, what waits is dropped, and the thread ends when user code lets go."""
    courier, began, ran = Courier("test-courier"), threading.Event(), list[int]()
    courier.post(lambda: (began.set(), gate.wait(10)))
    assert began.wait(5), "the courier never began"
    courier.post(ran.append, 1)
    thread = courier._thread
    assert thread is not None

    stopped = courier.stop(time.monotonic())
    gate.set()

    assert not stopped
    thread.join(5)
    assert not thread.is_alive()
    assert ran == []


def test_it_starts_again_after_its_end():
    """A post after a stop has a thread of its own."""
    courier, ran = Courier("test-courier"), list[int]()
    assert courier.stop(soon()), "there was nothing to stop"
    courier.post(ran.append, 1)
    assert courier.stop(soon())

    courier.post(ran.append, 2)

    assert courier.stop(soon())
    assert ran == [1, 2]


def test_what_was_posted_is_let_go_when_it_has_run(gate):
    """An idle courier holds on to nothing."""

    class Large:
        def use(self) -> None:
            pass

    courier, large, idle = Courier("test-courier"), Large(), threading.Event()
    held = weakref.ref(large)
    courier.post(large.use)
    del large
    courier.post(idle.set)
    assert idle.wait(5), "the courier never came to it"

    assert held() is None

    assert courier.stop(soon())


def test_a_program_that_ends_takes_no_posts(monkeypatch):
    """No thread can be started, so the post says False, and does not run later."""
    courier, ran = Courier("test-courier"), list[int]()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        refused = courier.post(ran.append, 1)
    taken = courier.post(ran.append, 2)

    assert (refused, taken) == (False, True)
    assert courier.stop(soon())
    assert ran == [2]


def test_posts_meet_stops_and_none_is_lost():
    """Threads post while another stops again and again: each post runs once."""
    courier, ran, over = Courier("test-courier"), list[tuple[int, int]](), threading.Event()

    def post(poster: int) -> None:
        for number in range(500):
            assert courier.post(ran.append, (poster, number))

    def stop() -> None:
        while not over.is_set():
            assert courier.stop(soon())

    stopper = threading.Thread(target=stop)
    posters = [threading.Thread(target=post, args=(poster,)) for poster in range(3)]
    for thread in (stopper, *posters):
        thread.start()
    for thread in posters:
        thread.join()
    over.set()
    stopper.join()
    assert courier.stop(soon())

    for poster in range(3):
        assert [number for who, number in ran if who == poster] == list(range(500))
    assert len(ran) == 1500

"""The page that a worker shares with its parent."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from taskback.pools.child import status_page
from taskback.pools.child.status_page import IDLE, IN_USER_CODE, PROGRESS_ROOM, READING, REPLYING, Snapshot, StatusPage


@pytest.fixture
def pages() -> Iterator[tuple[StatusPage, StatusPage]]:
    """The worker's mapping and the parent's."""
    fd = status_page.create()
    worker, parent = StatusPage(fd), StatusPage(fd)
    os.close(fd)
    yield worker, parent
    worker.close()
    parent.close()


def test_the_parent_sees_each_step_of_a_call(pages):
    """Which call, since when, and whether its handler has begun."""
    worker, parent = pages
    seen = [parent.snapshot()]
    worker.begin(5, 100)
    seen.append(parent.snapshot())
    worker.enter(200)
    seen.append(parent.snapshot())
    worker.leave()
    seen.append(parent.snapshot())
    worker.end()
    seen.append(parent.snapshot())

    assert seen == [
        Snapshot(0, IDLE, 0, 0),
        Snapshot(5, READING, 100, 0),
        Snapshot(5, IN_USER_CODE, 200, 0),
        Snapshot(5, REPLYING, 200, 0),
        Snapshot(5, IDLE, 200, 1),
    ]


def test_a_call_is_told_to_stop_by_its_id(pages):
    """Another call is not meant."""
    worker, parent = pages

    parent.ask_to_stop(7, firmly=False)

    assert worker.stop_wanted(7)
    assert not worker.stop_wanted(8)
    assert not worker.firmly(7)
    parent.ask_to_stop(7, firmly=True)
    assert worker.firmly(7)


def test_progress_is_whole_or_none(pages):
    """A reader never gets parts of two reports, however it meets the writer."""
    worker, parent = pages
    ended = threading.Event()

    def write() -> None:
        for number in range(20_000):
            worker.report(bytes([number % 251]) * (100 + number % 200))
        ended.set()

    writer = threading.Thread(target=write)
    seen = 0
    writer.start()
    while not ended.is_set():
        data = parent.progress()
        if data is not None:
            assert len(set(data)) == 1
            seen += 1
    writer.join()

    assert seen
    assert parent.progress() == bytes([19_999 % 251]) * (100 + 19_999 % 200)


def test_a_new_call_has_no_progress(pages):
    """That of the call before is not taken for its own."""
    worker, parent = pages
    worker.begin(1, 1)
    worker.report(b"half")
    assert parent.progress() == b"half"

    worker.begin(2, 2)

    assert parent.progress() is None


def test_too_much_progress_is_refused(pages):
    """The page has its size."""
    worker, parent = pages
    worker.report(bytes(PROGRESS_ROOM))

    with pytest.raises(ValueError, match="there is room for"):
        worker.report(bytes(PROGRESS_ROOM + 1))

    assert parent.progress() == bytes(PROGRESS_ROOM)


def test_the_page_cannot_be_cut_short():
    """A handler that truncates whatever it finds would end its parent with SIGBUS."""
    fd = status_page.create()
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)

"""Bytes that nobody of ours has sent: each ends in an error, and in no hang, crash or memory without bound.

What is fuzzed is the framing: packets and streams, payloads in shared memory, journals, the status page. The contents
of a pickle are trusted, for a worker runs the program's own code.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskback import ProcessPoolTaskBackend, TaskState, WorkerDiedError
from taskback._chunk import MOST, Chunk
from taskback._packed import Parts
from taskback.pools import _os
from taskback.pools.child import calls, chunks, journal, layout, loop, memory, packets, status_page, streams
from taskback.pools.child.packets import Packet
from tests.faults import LIMIT
from tests.helpers import process_backends

ALL = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
WORDS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 63, 64, 4096, 2**31, 2**32, 2**40, 2**63, 2**64 - 1])
KINDS = st.sampled_from(sorted(packets.KINDS)) | st.integers(0, 255)


@contextmanager
def no_descriptor_is_left() -> Iterator[None]:
    """As many are open after it as before."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def mutated(message: bytes) -> st.SearchStrategy[bytes]:
    """A real one with some bytes changed, cut off or put in."""

    def change(changes: list[tuple[int, int, bytes]]) -> bytes:
        data = bytearray(message)
        for at, length, new in changes:
            data[at % (len(data) + 1) : at % (len(data) + 1) + length] = new
        return bytes(data)

    edit = st.tuples(st.integers(0, 200), st.integers(0, 9), st.binary(max_size=9))
    return st.lists(edit, min_size=1, max_size=3).map(change)


REAL_PACKET = struct.pack("<BQ", packets.RESULT | 0x80, 7) + struct.pack("<BQQQ", 0, 1, 65536, 1024)
HEADED = st.builds(lambda kind, id, rest: struct.pack("<BQ", kind, id) + rest, KINDS, WORDS, st.binary(max_size=60))


def descriptor(choice: str) -> int:
    """One that comes beside a message."""
    if choice == "sealed":
        return _os.unnamed_memory(65536)
    if choice == "unsealed":
        return _os.unnamed_file("taskback-test")
    return os.open("/dev/null", os.O_RDWR)


@ALL
@given(
    message=st.binary(min_size=1, max_size=80) | HEADED | mutated(REAL_PACKET),
    beside=st.lists(st.sampled_from(["sealed", "unsealed", "null"]), max_size=2),
)
def test_a_message_is_a_packet_or_an_error(message, beside):
    """Whatever comes beside it is closed, and the next packet is read."""
    with no_descriptor_is_left():
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = packets.Socket(near), packets.Socket(far)
        fds = [descriptor(choice) for choice in beside]
        socket.send_fds(far, [message], fds) if fds else far.send(message)
        for fd in fds:
            os.close(fd)
        writer.send(packets.RESULT, 9, b"next")

        try:
            found = reader.receive()
            assert isinstance(found, Packet)
            del found
        except ValueError:
            pass
        assert reader.receive() == Packet(packets.RESULT, 9, b"next")
        reader.close()
        writer.close()


@ALL
@given(
    place=st.binary(max_size=40)
    | st.builds(lambda *words: struct.pack("<BQQQ", *words), st.integers(0, 255), WORDS, WORDS, WORDS),
    choice=st.sampled_from(["sealed", "unsealed", "null", ""]),
    content=st.binary(max_size=200)
    | st.builds(lambda *words: bytes(64) + struct.pack("<QQQQ", *words), WORDS, WORDS, WORDS, WORDS),
)
def test_a_payload_is_parts_or_an_error(place, choice, content):
    """No more is read than is there."""
    with no_descriptor_is_left():
        receiver = memory.Receiver()
        fds = [descriptor(choice)] if choice else []
        if choice in ("sealed", "unsealed"):
            os.pwrite(fds[0], content, 0)
        try:
            parts = receiver.get(place, fds)
            assert sum(map(len, [*parts.heads, *parts.buffers])) <= 65536
            del parts
        except (ValueError, OSError):
            pass
        for fd in fds:
            os.close(fd)
        receiver.close()


@ALL
@given(
    st.binary(max_size=200)
    | st.builds(lambda *words: struct.pack("<QQQQQ", *words) + bytes(300), WORDS, WORDS, WORDS, WORDS, WORDS)
)
def test_parts_lie_within_their_memory(content):
    """Or this is no payload."""
    try:
        found = layout.find(memoryview(content))
    except ValueError:
        return
    assert all(0 <= begin <= end <= len(content) for begin, end in found.places)


def a_stream() -> bytes:
    """Two real packets, one of them in parts."""
    near, far = socket.socketpair()
    writer = streams.Stream(near)
    writer.send(packets.RESULT, 5, b"a result")
    writer.send(packets.RESULT, 6, Parts((b"head",), [bytearray(b"buffer")]))
    data = far.recv(65536)
    writer.close()
    far.close()
    return data


@ALL
@given(
    st.binary(max_size=200)
    | mutated(a_stream())
    | st.builds(lambda length, rest: struct.pack("<Q", length) + rest, WORDS, HEADED)
)
def test_a_stream_is_packets_or_an_error(data):
    """It takes no more memory than was sent, whatever lengths it claims, and ends with its sender."""
    near, far = socket.socketpair()
    reader = streams.Stream(near)
    far.sendall(data)
    far.close()
    tracemalloc.start()
    try:
        while True:
            assert isinstance(reader.receive(), Packet)
    except (ValueError, EOFError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        reader.close()
    assert peak < 2_000_000  # it reads at most 262,144 bytes at a time


def records(sent: bytes) -> Chunk:
    """What a parent makes of them."""
    chunk = Chunk(3)
    chunk.add(*journal.unpack(sent))
    return chunk


REAL_JOURNAL = struct.pack("<QQQQ", 0, 2, 3, 7) + b"abcdefg"


@ALL
@given(
    st.binary(max_size=100)
    | mutated(REAL_JOURNAL)
    | st.builds(lambda base, count, rest: struct.pack("<QQ", base, count) + rest, WORDS, WORDS, st.binary(max_size=80))
)
def test_a_journal_is_records_or_an_error(sent):
    """Never more results than tasks, and none in the place of one that is missing."""
    try:
        chunk = records(sent)
    except ValueError:
        return
    found = list(chunk.records())
    assert len(found) == chunk.known <= 3
    assert sum(len(data) for _, data in found) <= len(sent) * max(1, len(found))


@ALL
@given(st.binary(max_size=60))
def test_other_frames_are_read_or_refused(data):
    """A chunk's answer, and a task that travels as its id and bytes."""
    for read in (chunks.unpack, lambda brief: calls.unpack_brief(1, brief)):
        try:
            read(data)
        except (ValueError, struct.error, IndexError):
            continue


@ALL
@given(words=st.lists(st.tuples(st.integers(0, status_page.SIZE // 8 - 1), WORDS), max_size=30), call=WORDS)
def test_a_status_page_that_a_handler_has_written_to_is_read(words, call):
    """What is read has a bound, and no reader waits for a writer that never ends."""
    fd = status_page.create()
    page = status_page.StatusPage(fd)
    try:
        for at, word in words:
            os.pwrite(fd, struct.pack("<Q", word), 8 * at)
        os.pwrite(fd, struct.pack("<Q", call), 0)
        page.snapshot()
        assert len(page.progress() or b"") <= status_page.PROGRESS_ROOM
        assert len(page.stderr()) <= status_page.STDERR_ROOM
        for at in range(3):  # the journal's own words
            os.pwrite(fd, struct.pack("<Q", call), status_page._JOURNAL_AT + 8 * at)
        left = page.journal.left(call)
        assert len(left) <= 16 + 8 * MOST + journal.DATA
        with suppress(ValueError):
            records(left)
    finally:
        page.close()
        os.close(fd)


# --- live ---


def act(task: dict[str, Any]) -> int:
    """Write to a connection of this worker's what it says, and wait; or return the number."""
    if "on" not in task:
        return int(task["n"])
    assert loop.this is not None
    with socket.socket(fileno=os.dup(getattr(loop.this._fds, task["on"]))) as connection:
        fds = [os.open("/dev/null", os.O_RDONLY)] if task.get("beside") else []
        socket.send_fds(connection, [task["bytes"]], fds) if fds else connection.send(task["bytes"])
    if task.get("waits", True):
        time.sleep(600)
    return int(task["n"])


GARBAGE = {
    "noise": b"\xff" * 40,
    "short": b"\x12",
    "unknown call": struct.pack("<BQ", packets.RESULT, 2**60) + b"x",
    "huge payload": struct.pack("<BQ", packets.RESULT | 0x80, 1) + struct.pack("<BQQQ", 0, 9, 2**62, 2**61),
    "torn place": struct.pack("<BQ", packets.RESULT | 0x80, 1) + b"abc",
}


@pytest.fixture
def backend() -> Iterator[ProcessPoolTaskBackend]:
    """Two workers."""
    with process_backends(act, grace=0.3) as make:
        yield make(max_workers=2)


@pytest.mark.parametrize("beside", [False, True], ids=["", "with a descriptor"])
@pytest.mark.parametrize("what", GARBAGE)
def test_a_worker_that_talks_nonsense_costs_its_own_task_at_most(backend, what, beside):
    """On the connection of its replies: its task ends, the others and all that come later are done."""
    task = backend.submit_sync({"on": "replies", "bytes": GARBAGE[what], "beside": beside}, timeout=2)
    others = [backend.submit_sync({"n": n}) for n in range(20)]

    error = task.exception(LIMIT)

    assert task.state in (TaskState.LOST, TaskState.TIMED_OUT, TaskState.FAILED)  # the last by a reply in its name
    assert isinstance(error, (WorkerDiedError, TimeoutError, OSError))
    assert [other.result(LIMIT) for other in others] == list(range(20))
    assert [backend.run_sync({"n": n}) for n in range(4)] == list(range(4))


@pytest.mark.parametrize("what", GARBAGE)
def test_nonsense_on_the_socket_for_its_log_costs_no_task(backend, what):
    """It is told, and tasks go on."""
    task = backend.submit_sync({"on": "logs", "bytes": GARBAGE[what], "waits": False, "n": 5})

    assert task.result(LIMIT) == 5
    assert [backend.run_sync({"n": n}) for n in range(4)] == list(range(4))
    assert not backend.shutdown_sync(1).stuck

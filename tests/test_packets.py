"""Packets between parent and worker, on packet sockets and on streams: whole or not at all, and never a wait."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from taskback.pools.child import packets, streams
from taskback.pools.child.packets import CALL, INLINE, RESULT, NoRoomError, Packet


class Pair:
    """Both sides of a worker's two pairs, in one process."""

    def __init__(self, transport: Any) -> None:
        self.calls, self.replies = transport.Calls(), transport.Replies()
        self.worker_calls = transport.worker_end(os.dup(self.calls.far_fileno()))
        self.worker_replies = transport.worker_end(os.dup(self.replies.far_fileno()))
        self.calls.given()
        self.replies.given()

    def close(self) -> None:
        """Close what is open."""
        for end in (self.calls, self.replies, self.worker_calls, self.worker_replies):
            end.close()


@pytest.fixture(params=[packets, streams], ids=["packets", "streams"])
def pair(request) -> Iterator[Pair]:
    """On either transport."""
    pair = Pair(request.param)
    yield pair
    pair.close()


@pytest.fixture
def packet_pair() -> Iterator[Pair]:
    """On packet sockets."""
    pair = Pair(packets)
    yield pair
    pair.close()


@pytest.mark.parametrize("size", [0, 1, INLINE, INLINE + 1, 3_000_000])
def test_a_packet_arrives_as_it_was_sent(pair, size):
    """Kind, id and bytes, of any size, both ways."""
    data = os.urandom(size)

    pair.calls.send(CALL, 2**63, data)
    reader = threading.Thread(target=_flush_all, args=(pair.calls,))
    reader.start()  # a stream takes a large one only as the worker reads it
    call = pair.worker_calls.receive(wait=True)
    reader.join()
    sender = threading.Thread(target=lambda: pair.worker_replies.send(RESULT, 7, data, wait=True))
    sender.start()
    reply = None
    while reply is None:
        reply = pair.replies.receive()
    sender.join()

    assert (call.kind, call.id, _bytes(call), call.problem) == (CALL, 2**63, data, "")
    assert (reply.kind, reply.id, _bytes(reply)) == (RESULT, 7, data)


def _bytes(packet: Packet) -> bytes:
    """What it holds, whichever way it came."""
    return packet.data if type(packet.data) is bytes else bytes(packet.data.heads[0])


def _flush_all(end: Any) -> None:
    while end.unsent:
        end.flush()


def test_nothing_to_receive_is_none_and_the_end_is_an_error(pair):
    """An empty socket does not look like a closed one."""
    assert pair.replies.receive() is None

    pair.worker_replies.send(RESULT, 1, b"last words")
    pair.worker_replies.close()

    assert pair.replies.receive() == Packet(RESULT, 1, b"last words")
    with pytest.raises(EOFError):
        pair.replies.receive()


def test_sending_to_a_worker_that_does_not_read_never_waits(pair):
    """It is told that there is no room; what was taken arrives once the worker reads."""
    data, sent = bytes(10_000), 0
    with pytest.raises(NoRoomError):  # noqa: PT012  # it is the last of them that does not fit
        while sent < 10_000:
            pair.calls.send(CALL, sent + 1, data)
            sent += 1

    got = 0
    while got < sent:
        pair.calls.flush()
        packet = pair.worker_calls.receive()
        assert packet is not None
        assert packet.id == got + 1
        got += 1

    assert got == sent > 1
    assert pair.worker_calls.receive() is None


def test_garbage_is_an_error_and_no_packet(pair):
    """What something else wrote is not taken for a reply."""
    os.write(pair.worker_replies.fileno(), b"\xff" * 40)

    with pytest.raises(ValueError):
        pair.replies.receive()


def test_a_short_or_cut_message_is_garbage(packet_pair):
    """Less than a header, or more than any packet of ours."""
    raw = socket.socket(fileno=os.dup(packet_pair.worker_replies.fileno()))
    with raw:
        raw.send(b"\x12\x00")
        raw.send(bytes([RESULT]) + bytes(packets._ROOM))

    for _ in range(2):
        with pytest.raises(ValueError):
            packet_pair.replies.receive()


def test_what_the_worker_has_not_read_is_taken_back(packet_pair):
    """By the parent, all of it, with its ids."""
    for number in range(1, 6):
        packet_pair.calls.send(CALL, number, b"x")

    taken = packet_pair.calls.take_back()

    assert [packet.id for packet in taken] == [1, 2, 3, 4, 5]
    assert packet_pair.worker_calls.receive() is None


def test_take_back_may_have_holes_and_loses_nothing(packet_pair):
    """While the parent takes back, the worker reads on; each call goes to one of the two."""
    total = 5_000
    read: list[int] = []
    taken: list[int] = []
    worker = threading.Thread(target=_read_to_the_end, args=(packet_pair.worker_calls, read))
    worker.start()

    number = 0
    while number < total:
        try:
            packet_pair.calls.send(CALL, number + 1, b"")
            number += 1
        except NoRoomError:
            taken += [packet.id for packet in packet_pair.calls.take_back()]
        if number % 7 == 0:
            taken += [packet.id for packet in packet_pair.calls.take_back()]
    packet_pair.calls.send(packets.BYE, 0)
    worker.join(20)

    assert not worker.is_alive() or packet_pair.calls.take_back()
    assert sorted(read + taken) == list(range(1, total + 1))


def _read_to_the_end(end: Any, into: list[int]) -> None:
    while (packet := end.receive(wait=True)).kind != packets.BYE:
        into.append(packet.id)


def test_a_stream_takes_nothing_back():
    """What was sent counts as read."""
    pair = Pair(streams)
    pair.calls.send(CALL, 1, b"x")

    assert pair.calls.take_back() == []
    assert pair.worker_calls.receive() == Packet(CALL, 1, b"x")
    pair.close()


def test_half_a_packet_of_a_stream_holds_nobody():
    """A peer that stopped in the middle leaves nothing to wait for."""
    pair = Pair(streams)
    pair.worker_replies._socket.send(struct.pack("<QBQ", 9 + 100, RESULT, 1) + bytes(50))

    assert pair.replies.receive() is None
    pair.worker_replies._socket.send(bytes(50))
    assert pair.replies.receive() == Packet(RESULT, 1, bytes(100))
    pair.close()


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_a_large_packet_waits_and_a_small_one_goes(packet_pair):
    """It is no error of the worker's, and nothing of it is sent."""
    with no_descriptors_left():
        with pytest.raises(NoRoomError) as caught:
            packet_pair.calls.send(CALL, 1, bytes(INLINE + 1))
        packet_pair.calls.send(CALL, 2, b"small")

    assert caught.value.errno == errno.EMFILE
    assert packet_pair.worker_calls.receive() == Packet(CALL, 2, b"small")


def test_a_payload_that_finds_no_descriptor_is_told_of(packet_pair):
    """The packet arrives, with the reason in the place of its bytes."""
    packet_pair.worker_replies.send(RESULT, 3, bytes(INLINE + 1))

    with no_descriptors_left():
        packet = packet_pair.replies.receive()

    assert (packet.kind, packet.id) == (RESULT, 3)
    assert "no file descriptor left" in packet.problem

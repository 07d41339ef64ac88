"""Slabs by themselves, both sides in one process: the orders in which sender and receiver can meet."""

from __future__ import annotations

import gc
import os
import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest

from taskback import _codec
from taskback._packed import LARGE, Parts, in_envelope, opened
from taskback.pools.child import layout, memory, packets
from taskback.pools.child.packets import CALL, NoRoomError
from tests import payload_work


class Pair:
    """A calls pair: the parent's side and the worker's."""

    def __init__(self) -> None:
        self.calls = packets.Calls()
        self.worker = packets.worker_end(os.dup(self.calls.far_fileno()))

    def send(self, value: Any, number: int = 1) -> None:
        """Send it as a call."""
        self.calls.send(CALL, number, _codec.pack(value))

    def receive(self) -> Any:
        """What the worker reads next, rebuilt."""
        packet = self.worker.receive()
        assert packet is not None
        assert not packet.problem
        return _codec.loads(packet.data)

    def close(self) -> None:
        """Let go of all."""
        self.calls.close()
        self.worker.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Nothing of it is left afterwards."""
    pair = Pair()
    yield pair
    pair.close()
    gc.collect()
    assert payload_work.memory_left() == (0, 0)


def array(seed: int = 1, count: int = 200_000) -> Any:
    """An array like no other, large enough to be mapped."""
    return numpy.random.default_rng(seed).random(count)


def same(one: Any, other: Any) -> bool:
    """Whether they hold the same numbers."""
    return bool(numpy.array_equal(one, other))


def slabs(pair: Pair) -> list[int]:
    """The numbers of those that the sender has."""
    return [slab.number for slab in pair.calls._sender._held()]


def test_one_slab_serves_what_comes_one_at_a_time(pair):
    """Its descriptor travels once more until it is known to be known, and is closed then."""
    for seed in range(5):
        pair.send(array(seed))
        assert same(pair.receive(), array(seed))

    assert slabs(pair) == [1]
    assert payload_work.memory_left()[1] == 1  # the receiver's


def test_what_is_taken_back_unread_frees_its_slab(pair):
    """The receiver has not seen its descriptor then, which travels again."""
    pair.send(array(1), 1)
    pair.send(array(2), 2)

    assert [packet.id for packet in pair.calls.take_back()] == [1, 2]
    pair.send(array(3), 3)

    assert same(pair.receive(), array(3))
    assert slabs(pair) == [1, 2]


def test_when_all_slabs_are_sent_there_is_no_room_until_one_is_read(pair):
    """Nothing of the call is sent, and nothing of those before is touched."""
    for number in range(memory.SLABS):
        pair.send(array(number), number)

    with pytest.raises(NoRoomError):
        pair.send(array(9), 9)
    assert same(pair.receive(), array(0))
    pair.send(array(9), 9)

    for number in (1, 2, 3, 9):
        assert same(pair.receive(), array(number))
    assert slabs(pair) == [1, 2, 3, 4]


def test_what_is_kept_is_given_away(pair):
    """An array that outlives its call has its memory for good; its sender makes another, and few of them."""
    kept = []
    for seed in range(10):
        pair.send(array(seed))
        kept.append(pair.receive())
    kept[4][:] = -1

    assert len(slabs(pair)) <= memory.SLABS
    for seed, one in enumerate(kept):
        assert same(one, array(seed)) == (seed != 4)


def test_slabs_given_away_while_their_packets_are_unread_can_still_be_read(pair):
    """In the order in which they were sent, those of one place too."""
    for seed in range(3):  # so that no descriptor travels any more
        pair.send(array(seed))
        pair.receive()
    for seed in range(12):
        pair.send(array(seed), seed)
        pair.calls.give_memory_away()

    for seed in range(12):
        assert same(pair.receive(), array(seed))


def test_a_call_that_is_not_over_has_its_slab_whatever_becomes_of_its_array(pair):
    """The array is gone and the pickle not: the slab is not free."""
    pair.send(array(1))
    packet = pair.worker.receive()
    assert packet is not None

    with memoryview(packet.data.buffers.pop()):
        pass

    assert pair.calls._sender._slabs[0].memory[0] == memory.SENT
    del packet
    assert pair.calls._sender._slabs[0].memory[0] == memory.FREE


def test_a_larger_payload_takes_the_place_of_a_slab_that_is_too_small(pair):
    """And a smaller one uses the larger slab."""
    for count in (200_000, 2_000_000, 200_000):
        pair.send(array(1, count))
        assert same(pair.receive(), array(1, count))

    assert slabs(pair) == [2]


def test_what_would_be_too_much_to_keep_is_used_once(pair, monkeypatch):
    """It arrives like any other, and neither side has anything of it afterwards."""
    monkeypatch.setattr(memory, "MOST_KEPT", 3 << 20)
    for _ in range(3):
        pair.send(array(1, 1_000_000))
        assert same(pair.receive(), array(1, 1_000_000))

    assert slabs(pair) == []
    assert payload_work.memory_left() == (0, 0)


@contextmanager
def in_fork() -> Iterator[bool]:
    """True in a fork, which ends with this; False in the parent, once that has ended."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        yield False
        return
    try:
        yield True
    finally:
        os._exit(0)


def test_a_fork_frees_nothing_and_nothing_that_it_had_is_used_again(pair):
    """Nobody can know what the fork still looks at: it lets go, and its parent later, and the slab stays."""
    pair.send(array(1))
    received = pair.receive()
    with in_fork() as forked:
        if forked:
            received[:] = -1
            del received
    assert pair.calls._sender._slabs[0].memory[0] == memory.KEPT

    assert same(received, array(1))
    del received
    assert pair.calls._sender._slabs[0].memory[0] == memory.KEPT


def test_memory_that_could_shrink_is_refused(pair):
    """Who reads a file that has become shorter is ended by a signal."""
    fd = os.memfd_create("taskback-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)

    with pytest.raises(ValueError, match="made shorter"):
        memory.Receiver().get(struct.pack("<BQQQ", 0, 1, 1 << 20, 1 << 19), fds := [fd])

    assert fds == [fd]
    os.close(fd)


@pytest.mark.parametrize(
    "garbage",
    [b"", bytes(40), struct.pack("<QQ", 1, 0), struct.pack("<QQQQ", 2**60, 2, 0, 0), struct.pack("<QQQ", 1, 0, 2**63)],
)
def test_what_is_no_payload_is_an_error(garbage):
    """And no read beyond its end."""
    with pytest.raises(ValueError):
        layout.find(memoryview(garbage))


def test_where_sockets_have_less_room_a_packet_goes_through_memory(pair):
    """What the system refuses as too large for a message arrives all the same."""
    raw = pair.calls._socket
    pair.calls._socket = Narrow(raw)
    data = os.urandom(LARGE)
    try:
        pair.calls.send(CALL, 1, data)
    finally:
        pair.calls._socket = raw

    packet = pair.worker.receive()
    assert packet is not None
    assert bytes(packet.data.heads[0]) == data


def test_where_sockets_have_less_room_and_all_slabs_are_sent_there_is_no_room(pair):
    """It is no other error: nothing is wrong with the worker."""
    for number in range(memory.SLABS):
        pair.send(array(number), number)
    raw, pair.calls._socket = pair.calls._socket, Narrow(pair.calls._socket)
    try:
        with pytest.raises(NoRoomError):
            pair.calls.send(CALL, 1, os.urandom(LARGE))
    finally:
        pair.calls._socket = raw


class Narrow:
    """A socket of a system with little room."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def sendmsg(self, buffers: Any, *rest: Any) -> Any:
        """Refuse what is large, as the kernel does."""
        if sum(map(len, buffers)) > 10_000:
            raise OSError(90, "Message too long")
        return self._sock.sendmsg(buffers, *rest)

    def send(self, data: bytes, *rest: Any) -> Any:
        """The same."""
        return self.sendmsg((data,), (), *rest)


# --- parts ---


def test_envelopes_come_off_in_the_order_in_which_they_were_put_on():
    """Each is read without a look at what is in it."""
    value = {"array": array(), "bytes": os.urandom(LARGE)}
    packed = in_envelope(b"outer", in_envelope(b"inner", _codec.pack(value)))

    outer, rest = opened(packed)
    inner, rest = opened(rest)

    assert (outer, inner) == (b"outer", b"inner")
    got = _codec.loads(rest)
    assert same(got["array"], value["array"])
    assert got["bytes"] == value["bytes"]
    assert opened(b"plain") == (b"plain", None)


def test_parts_can_be_pickled_for_pools_that_know_nothing_of_them():
    """They arrive whole, and can be written into."""
    packed = _codec.pack(array())
    assert type(packed) is Parts

    again = pickle.loads(pickle.dumps(packed))

    got = _codec.loads(again)
    got[0] = 7
    assert same(got[1:], array()[1:])


@pytest.mark.parametrize("large_before", [False, True])
def test_a_small_value_is_bytes_whatever_came_before(large_before, monkeypatch):
    """A single pickle, as it always was."""
    monkeypatch.setattr(_codec, "_last_was_large", large_before)
    for value in ({"a": [1, 2], "b": "text"}, array(1, 100), bytes(1000)):
        assert type(_codec.pack(value)) is bytes
        assert same(_codec.loads(_codec.pack(value)), value) or _codec.loads(_codec.pack(value)) == value


def test_bytes_are_not_copied_to_be_kept_and_what_can_change_is(monkeypatch):
    """Nobody can change the former."""
    monkeypatch.setattr(_codec, "_last_was_large", True)
    text, changing = os.urandom(300_000), bytearray(300_000)

    packed = _codec.pack((text, changing))
    changing[:] = b"x" * 300_000

    assert type(packed) is Parts
    assert any(piece is text for piece in packed.heads[0])
    assert _codec.loads(packed) == (text, bytes(300_000))

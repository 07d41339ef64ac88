"""How the parts of a pickle lie in one piece of memory: a table of their sizes, then each part at a multiple of 64.

The table says how many of them are pickles and how many are buffers. What is read is checked against the size of the
memory, so that nonsense is an error and no read beyond its end.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from taskback import _packed
from taskback._packed import Parts

_COUNTS: Final = struct.Struct("<QQ")
_SIZE: Final = struct.Struct("<Q")
ALIGNMENT: Final = 64  # bytes; what numerical code likes its arrays to begin at


class Found(NamedTuple):
    """Parts that were laid out, as views."""

    heads: list[memoryview]
    buffers: list[memoryview]
    places: list[tuple[int, int]]  # where the buffers begin and end


def size_of(parts: Parts) -> int:
    """How many bytes they need."""
    total = _begin(len(parts.heads) + len(parts.buffers))
    for part in _all(parts):
        total = _aligned(total) + _packed.size_of(part)
    return total


def fill(memory: memoryview, parts: Parts) -> None:
    """Put them there: one copy."""
    at = _begin(len(parts.heads) + len(parts.buffers))
    _COUNTS.pack_into(memory, 0, len(parts.heads), len(parts.buffers))
    for number, part in enumerate(_all(parts)):
        at = begin = _aligned(at)
        for piece in part if type(part) is tuple else (part,):
            memory[at : at + len(piece)] = piece
            at += len(piece)
        _SIZE.pack_into(memory, _COUNTS.size + number * _SIZE.size, at - begin)


def find(memory: memoryview) -> Found:
    """Where they are.

    Raises:
        ValueError: This is nothing that `fill` has put there.
    """
    if len(memory) < _COUNTS.size:
        raise ValueError("no payload is that short")
    heads, buffers = _COUNTS.unpack_from(memory)
    at = _begin(heads + buffers)
    if not heads or at > len(memory):
        raise ValueError(f"no payload of {len(memory)} bytes has {heads} pickles and {buffers} buffers")
    places = []
    for number in range(heads + buffers):
        (size,) = _SIZE.unpack_from(memory, _COUNTS.size + number * _SIZE.size)
        at = _aligned(at)
        places.append((at, at + size))
        at += size
    if at > len(memory):
        raise ValueError(f"a payload of {at} bytes in {len(memory)}")
    views = [memory[begin:end] for begin, end in places]
    return Found(views[:heads], views[heads:], places[heads:])


def _all(parts: Parts) -> Iterator[Any]:
    yield from parts.heads
    yield from parts.buffers


def _begin(count: int) -> int:
    return _COUNTS.size + count * _SIZE.size


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT

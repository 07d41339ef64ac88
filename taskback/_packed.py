"""A pickle in parts: what is large in a value is not copied into its pickle, but lies beside it, or is a piece of it.

Pickle (protocol 5) offers the buffers of arrays and the like to whoever pickles; those above LARGE are taken aside.
What else is large, `bytes` above all, it hands as it is to the file that it writes to; so a large pickle is a tuple of
pieces, one after the other. A small value is one call of `pickle.dumps`, as ever, and bytes.

Holds: nobody can change parts that were taken to be kept: they are copies, or `bytes`, which need none. Borrowed
buffers are views of the value's own memory, for whoever sends them at once.
"""

import mmap
import pickle
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any, Final, final

PROTOCOL: Final = 5
LARGE: Final = 131_072  # bytes; what is larger travels beside its packet (measured: see ARCHITECTURE.md)
_PIECE: Final = 65_536  # bytes; from here on pickle makes what is one value a piece of its own
_HUGE: Final = 32 * 1024 * 1024  # bytes; from here on malloc gives each block new pages, which cost more than the copy
SMALL: Final = 4096  # bytes; to look through more of them takes longer than to look at a few values
_FEW: Final = 16  # values in one
_PLAIN: Final = frozenset((bytes, bytearray, str, int, float, bool, complex, type(None)))
_FRAME: Final = 0x95
_PICKLE: Final = 0x80


@final
class Parts:
    """See the top of the file.

    Args:
        heads (Sequence): Pickles, one in the other: an envelope, what is in it, and so on. At least one. Each is bytes,
            or a tuple of pieces.
        buffers (Sequence): Of the last one, in the order in which it asks for them.
        claim (object): Kept for as long as this is: where they came in memory of somebody else's, it holds that.
    """

    __slots__ = ("buffers", "claim", "heads")

    def __init__(self, heads: Sequence[Any], buffers: Sequence[Any] = (), claim: object = None) -> None:
        self.heads = heads
        self.buffers = buffers
        self.claim = claim

    def __len__(self) -> int:
        return sum(map(size_of, self.heads)) + sum(map(len, self.buffers))

    def __reduce__(self) -> "tuple[type[Parts], tuple[list[Any], list[bytearray]]]":
        # For pools that are not ours, which take bytes and objects alone.
        return Parts, ([_in_one(head) for head in self.heads], [bytearray(buffer) for buffer in self.buffers])

    def load(self) -> Any:
        """The value, which has the buffers for its own from then on."""
        return pickle.loads(_in_one(self.heads[-1]), buffers=self.buffers)

    def load_a_copy(self) -> Any:
        """The value, which shares nothing with this."""
        return pickle.loads(_in_one(self.heads[-1]), buffers=[bytearray(buffer) for buffer in self.buffers])


Packed = bytes | Parts


def size_of(head: Any) -> int:
    """How many bytes a pickle has that may be in pieces."""
    return sum(map(len, head)) if type(head) is tuple else len(head)


def _in_one(head: Any) -> Any:
    return b"".join(head) if type(head) is tuple else head


def in_envelope(envelope: bytes, packed: Packed) -> Parts:
    """Something packed, and what is to be read before it."""
    if type(packed) is Parts:
        return Parts((envelope, *packed.heads), packed.buffers, packed.claim)
    return Parts((envelope, packed))


def opened(packed: Packed) -> "tuple[Any, Parts | None]":
    """What is to be read first, and what is in it; None where there is no envelope, or what was in it lies there."""
    if type(packed) is not Parts:
        return packed, None
    if len(packed.heads) == 1:
        return packed.heads[0], None
    return packed.heads[0], Parts(packed.heads[1:], packed.buffers, packed.claim)


def as_bytes(packed: Packed) -> bytes:
    """Of what was sent as bytes: those, and none that lie in memory of somebody else's."""
    return packed if type(packed) is bytes else bytes(opened(packed)[0])


class HasLargeError(Exception):
    """A value has a large buffer."""


def refuse_large(buffer: "pickle.PickleBuffer") -> bool:
    """Of a buffer that pickle offers: True, to have it in the pickle.

    Raises:
        HasLargeError: It is large.
    """
    if _is_large(buffer):
        raise HasLargeError
    return True


class _File:
    """What a pickler writes its pieces to."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], object]) -> None:
        self.write = write


def take_apart(value: Any, borrow: bool, pickler: Callable[..., Any] = pickle.Pickler) -> Packed:
    """Pickle a value that may be large; `borrow`: without copying anything that is."""
    pieces: list[Any] = []
    taken: list[pickle.PickleBuffer] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        large = _is_large(buffer)
        if large:
            taken.append(buffer)
        return not large

    pickler(_File(pieces.append), PROTOCOL, buffer_callback=stays).dump(value)
    if not taken and sum(map(len, pieces)) <= LARGE:
        return b"".join(pieces)
    head = tuple(piece if type(piece) is bytes else bytes(piece) for piece in pieces)
    return Parts((head,), [buffer.raw() if borrow else _copied(buffer.raw()) for buffer in taken])


def _is_large(buffer: "pickle.PickleBuffer") -> bool:
    view = memoryview(buffer)
    return view.nbytes > LARGE and view.contiguous


def _copied(view: memoryview) -> "bytes | memoryview":
    size = view.nbytes
    if type(view.obj) is bytes and len(view.obj) == size:
        return view.obj  # it cannot change
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytes(view)
    room = _spare_one(size) or _new_room(size)
    copy = memoryview(room)[:size]
    copy[:] = view
    weakref.finalize(copy, _give_back, room).atexit = False
    return copy


# Memory of copies that nobody has any more: to get pages anew takes 1 to 5 ms a MiB, to write into them 0.1 ms. Who has
# a copy has this very view of it; nothing in this process is built upon it but copies.
_spare: list[mmap.mmap] = []
_MOST_SPARE: Final = 2
_MOST_SPARE_BYTES: Final = 320 * 1024 * 1024


def _new_room(size: int) -> mmap.mmap:
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return room


def _spare_one(size: int) -> mmap.mmap | None:
    """One that is large enough, and not much too large. Threads may be at it together: each step is one."""
    for room in list(_spare):
        if size <= len(room) <= 4 * size:
            with suppress(ValueError):  # another thread has it
                _spare.remove(room)
                return room
    return None


def _give_back(room: mmap.mmap) -> None:
    """Its copy is needed no more. Where a garbage collection strikes: takes no lock."""
    _spare.append(room)
    while _spare and (len(_spare) > _MOST_SPARE or sum(map(len, _spare)) > _MOST_SPARE_BYTES):
        with suppress(IndexError):
            _spare.pop(0)


def names_main(packed: Packed, value: Any) -> bool:
    """Whether a value's pickle names `__main__`, or looks as if it did.

    To look through a megabyte takes half a millisecond, 20 times as long as to copy it. So plain values are not looked
    through, nor what is large in a pickle in pieces: it is a piece by itself, and those that hold names begin as a
    frame or a pickle does.
    """
    if type(packed) is not Parts:
        return not (len(packed) > SMALL and _is_plain(value)) and _has_main(packed)
    pieces = packed.heads[-1]
    return any(_has_main(piece) for piece in pieces if len(piece) < _PIECE or piece[0] in (_FRAME, _PICKLE))


def _has_main(data: bytes) -> bool:
    return b"main__" in data and (b"__main__" in data or b"__mp_main__" in data)


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Whether it is small in number, and nothing in it is pickled by a name of the main script."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is FunctionType:
        return type(value.__module__) is str and value.__module__ not in ("__main__", "__mp_main__")
    if not depth or kind not in (tuple, list, dict) or len(value) > _FEW:
        return False
    if kind is dict and not all(type(key) is str for key in value):
        return False
    return all(_is_plain(part, depth - 1) for part in (value.values() if kind is dict else value))

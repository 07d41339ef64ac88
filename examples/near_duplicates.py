"""Which of these texts say nearly the same?

Shingles turn a text into a set, MinHash turns the set into a short signature, banding finds the pairs whose
signatures agree somewhere, the true Jaccard similarity decides, and union-find joins the pairs to groups.
It is pure Python on purpose: it stands for any CPU-heavy job that holds the interpreter's lock.

Source:
    A. Broder, "On the resemblance and containment of documents" (1997); J. Leskovec, A. Rajaraman, J. Ullman,
    "Mining of Massive Datasets", chapter 3.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Final, TypeAlias

SHINGLE: Final = 5  # bytes of text a shingle
# A pair of similarity s agrees in all rows of some band with the chance 1 - (1 - s**ROWS)**BANDS: 0.97 for
# 0.7, so that few are missed, 0.008 for 0.1, so that most pairs need not be compared.
BANDS: Final = 8
ROWS: Final = 3
SIMILAR: Final = 0.7  # Jaccard similarity, of 1

Shingles: TypeAlias = frozenset[int]
Signature: TypeAlias = tuple[int, ...]

_PRIME: Final = (1 << 61) - 1  # above every shingle, so that x -> (a * x + b) % _PRIME is a permutation


def _permutation(number: int) -> tuple[int, int]:
    """Give a and b. Digests, not `random` or `hash()`: every process and every Python must draw the same."""
    digest = blake2b(number.to_bytes(4, "big"), digest_size=16).digest()
    return 1 + int.from_bytes(digest[:8], "big") % (_PRIME - 1), int.from_bytes(digest[8:], "big") % _PRIME


_PERMUTATIONS: Final = [_permutation(number) for number in range(BANDS * ROWS)]


def group_near_duplicates(texts: Sequence[str]) -> list[list[int]]:
    """Group the texts that are alike, directly or through others.

    Args:
        texts (Sequence[str]): Normalised texts, none of them twice.

    Returns:
        list[list[int]]: Positions in `texts`, ascending; each text is in exactly one group.
    """
    sets = [shingles(text) for text in texts]
    groups = DisjointSets(len(texts))
    for one, other in _candidates([signature(each) for each in sets]):
        if groups.find(one) != groups.find(other) and jaccard(sets[one], sets[other]) >= SIMILAR:
            groups.union(one, other)
    return groups.members()


def shingles(text: str) -> Shingles:
    """Give every stretch of SHINGLE bytes as a number; a shorter text is one stretch."""
    data = text.encode()
    last = max(len(data) - SHINGLE, 0)
    return frozenset(zlib.crc32(data[start : start + SHINGLE]) for start in range(last + 1))


def signature(members: Shingles) -> Signature:
    """Give the smallest member under each permutation: two sets agree in one as often as they are similar."""
    return tuple([min([(a * member + b) % _PRIME for member in members]) for a, b in _PERMUTATIONS])


def jaccard(one: Shingles, other: Shingles) -> float:
    """Give the share of what two sets have in common, from 0 to 1."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _candidates(signatures: Sequence[Signature]) -> Iterator[tuple[int, int]]:
    """Give the pairs that agree in all rows of some band; a pair may come once a band."""
    for start in range(0, BANDS * ROWS, ROWS):
        buckets: defaultdict[Signature, list[int]] = defaultdict(list)
        for position, whole in enumerate(signatures):
            buckets[whole[start : start + ROWS]].append(position)
        for bucket in buckets.values():
            yield from combinations(bucket, 2)


class DisjointSets:
    """Union-find over the numbers below `size`; the smallest member stands for its set."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def find(self, member: int) -> int:
        """Give the smallest member of the set that `member` is in."""
        while (parent := self._parents[member]) != member:
            self._parents[member] = self._parents[parent]  # halves the path for the next search
            member = parent
        return member

    def union(self, one: int, other: int) -> None:
        """Make one set of the two that these are in."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parents[high] = low

    def members(self) -> list[list[int]]:
        """Give the sets, each and all of them ascending."""
        sets: defaultdict[int, list[int]] = defaultdict(list)
        for member in range(len(self._parents)):
            sets[self.find(member)].append(member)
        return list(sets.values())

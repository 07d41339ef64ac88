"""What the control groups of this process allow it: read from Linux's version 1 and version 2, or from both at once.

A group is held to what it is set, and to what those above it are set. What of that lies outside of what is mounted
here cannot be seen. Where there is no control group, or none can be read, nothing is limited as far as anybody knows.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

ROOT = "/"  # below which proc and the groups are mounted
_NO_LIMIT = 2**62  # bytes; version 1 says so with a number near 2**63


class Group(NamedTuple):
    """Where one kind of limit is set for this process.

    Attributes:
        version (int): 1 or 2.
        path (str): The group, as the kernel calls it here.
        folders (tuple[str, ...]): That of the group itself, then those above it as far as they can be seen.
    """

    version: int
    path: str
    folders: "tuple[str, ...]"


def group(controller: str) -> Group | None:
    """The group that sets limits of a kind, `memory`, `cpu` or `pids`; None where there is none.

    With both versions mounted each controller belongs to one of them, version 1 first.
    """
    ours = dict(_memberships())
    for version, path in ((1, ours.get(controller)), (2, ours.get(""))):
        if path is None:
            continue
        for mounted_version, root, mount, controllers in _mounts():
            if mounted_version == version and (version == 2 or controller in controllers):
                return Group(version, path, tuple(_folders(path, root, mount)))
    return None


def cpu_quota() -> float | None:
    """So many CPUs' time this process and those beside it may use; None without a limit."""
    found = group("cpu")
    if found is None:
        return None
    quotas = []
    for folder in found.folders:
        if found.version == 2:
            words = _read(folder, "cpu.max").split()
        else:
            words = [_read(folder, "cpu.cfs_quota_us"), _read(folder, "cpu.cfs_period_us")]
        numbers = [_number(word) for word in words]
        if len(numbers) == 2 and numbers[0] is not None and numbers[0] > 0 and numbers[1]:
            quotas.append(numbers[0] / numbers[1])
    return min(quotas, default=None)


def memory_max() -> int | None:
    """Bytes from which on the kernel kills; None without a limit."""
    return _least("memory", {1: "memory.limit_in_bytes", 2: "memory.max"})


def memory_high() -> int | None:
    """Bytes from which on the kernel slows down, of version 2 alone; None without a limit."""
    return _least("memory", {2: "memory.high"})


def pids_max() -> int | None:
    """Processes and threads that may be there; None without a limit."""
    return _least("pids", {1: "pids.max", 2: "pids.max"})


def oom_group() -> str | None:
    """The highest group that is killed as one where memory runs out (`memory.oom.group`); None if there is none."""
    found = group("memory")
    folders = found.folders if found is not None and found.version == 2 else ()
    return next((folder for folder in reversed(folders) if _read(folder, "memory.oom.group") == "1"), None)


def _least(controller: str, names: "dict[int, str]") -> int | None:
    found = group(controller)
    if found is None or found.version not in names:
        return None
    numbers = [_number(_read(folder, names[found.version])) for folder in found.folders]
    return min((each for each in numbers if each is not None and each < _NO_LIMIT), default=None)


def _number(word: str) -> int | None:
    return int(word) if word.removeprefix("-").isdecimal() else None  # else "max", or nothing


def _read(*path: str) -> str:
    try:
        with open(os.path.join(*path), encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _memberships() -> "Iterator[tuple[str, str]]":
    """Each controller of version 1, and "" for version 2, with this process's group."""
    for line in _read(ROOT, "proc/self/cgroup").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                yield controller, fields[2]


def _mounts() -> "Iterator[tuple[int, str, str, list[str]]]":
    """What is mounted: its version, the group that is its top, where it lies, and version 1's controllers."""
    for line in _read(ROOT, "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) >= 5 and len(kinds) >= 3 and kinds[0] in ("cgroup", "cgroup2"):
            version = 2 if kinds[0] == "cgroup2" else 1
            yield (
                version,
                _unescaped(fields[3]),
                os.path.join(ROOT, _unescaped(fields[4]).lstrip("/")),
                kinds[2].split(","),
            )


def _unescaped(path: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(octal, character)
    return path


def _folders(path: str, root: str, mount: str) -> "Iterator[str]":
    """The group's, then those above it. A group outside of what is mounted here is seen from its top alone."""
    root = root.rstrip("/")
    below = path[len(root) :].strip("/") if path == root or path.startswith(f"{root}/") else ""
    parts = [] if ".." in below.split("/") else below.split("/") if below else []
    for length in range(len(parts), -1, -1):
        yield os.path.join(mount, *parts[:length])

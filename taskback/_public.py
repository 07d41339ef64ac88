"""Public names: each says which package it lives in, and is looked up when it is used.

Whoever imports the package pays for what is used of it alone; a guardian above all, and each worker that is no fork,
whose start is an import. Errors and pickles name `taskback.X`, so that private files can move.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def lives_in(package: str) -> Callable[[T], T]:
    """Have a class or a function say that it lives in a package, whose public name it is."""

    def said(thing: T) -> T:
        thing.__module__ = package
        return thing

    return said


def finder(package: str, files: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """A package's `__getattr__`, given the files that its public names are written in."""
    homes = {name: f"{package}.{file}" for file, names in files.items() for name in names}

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        found = getattr(importlib.import_module(home), name)
        setattr(sys.modules[package], name, found)  # once: the next look-up does not come here
        return found

    return find

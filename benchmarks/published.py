"""What tables of the README have in common: the place where one stands, and what it was made on."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def place(name: str) -> "re.Pattern[str]":
    """Where a table stands: between its marks, which are the first and the second group."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def write(name: str, table: str) -> None:
    """Put a table where the README has its marks.

    Raises:
        ValueError: It has none.
    """
    old = README.read_text(encoding="utf-8")
    if not place(name).search(old):
        raise ValueError(f"{README} has no place for it: <!-- {name} --> and <!-- /{name} -->")
    README.write_text(place(name).sub(lambda found: f"{found[1]}{table}\n{found[2]}", old), encoding="utf-8")


def system() -> str:
    """Interpreter, system and processors."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.release()}, {os.cpu_count()} CPUs"


def versions(packages: Iterable[str | None]) -> str:
    """Of taskback and of these, as they are installed; None stands for what has none."""
    found = {"taskback": importlib.metadata.version("taskback")}
    for package in packages:
        if package:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "not installed"
    return ", ".join(f"{name} {version}" for name, version in found.items())

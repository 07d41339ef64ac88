"""What this process is doing for taskback: whether it is a worker that imports its handler just now.

A module that makes and starts a backend when it is imported would otherwise start one in each of its own workers,
and so on without end.
"""

import multiprocessing.process
from collections.abc import Iterator
from contextlib import contextmanager

_importing: str | None = None


@contextmanager
def importing(what: str) -> Iterator[None]:
    """Around the import of a handler in a worker."""
    begin_import(what)
    try:
        yield
    finally:
        end_import()


def begin_import(what: str) -> None:
    """The same as two calls, which cost a tenth."""
    global _importing
    _importing = what


def end_import() -> None:
    """It is done."""
    global _importing
    _importing = None


def refuse_to_start(backend: str) -> None:
    """Raise a `RuntimeError` where no backend may start."""
    if _importing is not None:
        raise RuntimeError(
            f"{backend} cannot start while a worker imports its handler ({_importing}): a module that starts a "
            "backend when it is imported would start one in each worker"
        )
    # Set by multiprocessing while a new process prepares itself, and re-imports the main script.
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"{backend} cannot start while a worker process imports the main script; "
            'put what the script does under `if __name__ == "__main__":`'
        )

"""A gate that tasks wait at: workers that are held are busy, and it is known which they are."""

import os
import select
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

LIMIT: Final = 30.0  # seconds that a task may take to come to the gate


class Gate:
    """Two named pipes: on one, tasks say that they have come; from the other, each reads one byte."""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        gate, told = (Path(self._directory.name, name) for name in ("gate", "told"))
        os.mkfifo(gate)
        os.mkfifo(told)
        self._gate = os.open(gate, os.O_RDWR)  # both ways: whoever opens it then does not wait for another one
        self._told = os.open(told, os.O_RDWR)
        self._rest = b""
        self.task: dict[str, Any] = {"gate": str(gate), "told": str(told)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._gate)
        os.close(self._told)
        self._directory.cleanup()

    def come(self) -> int:
        """Wait for the next task to come; gives its process."""
        while b"\n" not in self._rest:
            if not select.select([self._told], [], [], LIMIT)[0]:
                raise TimeoutError(f"no task began within {LIMIT:g} s")
            self._rest += os.read(self._told, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        return int(line)

    def open(self, number: int = 1) -> None:
        """Let so many tasks go on."""
        os.write(self._gate, b"." * number)

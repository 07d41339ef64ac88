"""The error of a task whose worker has died, apart from the others: what it derives from takes long to import.

Nothing of the standard pool is needed in a guardian or a worker, and half of their start would go there.
"""

import signal
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from taskback._errors import TaskbackError
from taskback._public import lives_in


@lives_in("taskback")
class WorkerDiedError(TaskbackError, BrokenProcessPool):
    """The task's worker died, and the task with it.

    `exitcode` is negative for a signal, as in `multiprocessing`; `peak_rss_bytes` is None where the system did
    not tell. `ran` is None if the task may not have started.
    """

    def __init__(
        self,
        pid: int | None,
        exitcode: int | None,
        ran: float | None = None,
        peak_rss_bytes: int | None = None,
        why: str = "",
    ) -> None:
        self.pid = pid
        self.exitcode = exitcode
        self.ran = ran
        self.peak_rss_bytes = peak_rss_bytes
        self.why = why
        super().__init__(self._text())

    @property
    def signal_name(self) -> str | None:
        """The signal that ended the worker (`SIGKILL`), or None if it exited."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return signal.Signals(-self.exitcode).name
        except ValueError:  # a real-time signal has no name of its own
            return f"signal {-self.exitcode}"

    def _text(self) -> str:
        if self.exitcode is None:
            how = "ended"
        elif self.signal_name:
            how = f"was ended by {self.signal_name}"
        else:
            how = f"exited with status {self.exitcode}"
        text = f"worker pid={self.pid} {how}"
        if self.ran is not None:
            text += f" after its task had run for {self.ran:.3f} s"
        if self.peak_rss_bytes is not None:
            text += f", peak memory {self.peak_rss_bytes / 2**20:.0f} MiB"
        return f"{text}; {self.why}" if self.why else text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pid, self.exitcode, self.ran, self.peak_rss_bytes, self.why)

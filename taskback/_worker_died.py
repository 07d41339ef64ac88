"""The error of a task whose worker has died, apart from the others: what it derives from takes long to import.

Nothing of the standard pool is needed in a guardian or a worker, and half of their start would go there.
"""

import signal
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Final

from taskback._errors import TaskbackError
from taskback._public import lives_in

if TYPE_CHECKING:
    from taskback._progress import Progress

FATAL: Final = "Fatal Python error: "  # so begins what Python says of the signal that ends it
LINES: Final = 20  # of its stderr, and of where it crashed, that stand in the text; the rest is in the attribute


@lives_in("taskback")
class WorkerDiedError(TaskbackError, BrokenProcessPool):
    """The task's worker died, and the task with it.

    Attributes:
        pid (int | None): The worker.
        exitcode (int | None): Negative for a signal, as in `multiprocessing`; None if nobody could tell.
        ran (float | None): Seconds that the task had run; None if it may not have started.
        peak_rss_bytes (int | None): The most memory that the worker ever had; None where the system did not tell.
        why (str): What of ours had to do with it: a limit, a shutdown; empty if nothing.
        out_of_memory (str): What speaks for a lack of memory: a count of the kernel's, a limit; empty if nothing does.
        progress (Progress | None): What the task had last reported.
        stderr (str): What the worker had last written to `sys.stderr`, at most 4 KiB, and where it was when a signal
            such as SIGSEGV ended it. Output of code in C that bypasses Python is not in it.
    """

    def __init__(
        self,
        pid: int | None,
        exitcode: int | None,
        ran: float | None = None,
        peak_rss_bytes: int | None = None,
        why: str = "",
        out_of_memory: str = "",
        progress: "Progress | None" = None,
        stderr: str = "",
    ) -> None:
        self.pid = pid
        self.exitcode = exitcode
        self.ran = ran
        self.peak_rss_bytes = peak_rss_bytes
        self.why = why
        self.out_of_memory = out_of_memory
        self.progress = progress
        self.stderr = stderr
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

    @property
    def stage(self) -> str | None:
        """What the task had last said that it was doing."""
        return None if self.progress is None else self.progress.stage

    def because(self, why: str) -> "WorkerDiedError":
        """The same with a reason more."""
        why = f"{self.why}; {why}" if self.why else why
        facts = (why, self.out_of_memory, self.progress, self.stderr)
        same = type(self)(self.pid, self.exitcode, self.ran, self.peak_rss_bytes, *facts)
        same.__cause__ = self.__cause__
        return same

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
        text += _last_seen(self.progress)
        if self.peak_rss_bytes is not None:
            text += f", peak memory {self.peak_rss_bytes / 2**20:.0f} MiB"
        if self.why:
            text += f"; {self.why}"
        if self.out_of_memory:
            text += f"; likely out of memory: {self.out_of_memory}"
        last = _last_words(self.stderr)
        return "\n    ".join((f"{text}; last on its stderr:", *last)) if last else text

    def __reduce__(self) -> tuple[Any, ...]:
        facts = (self.pid, self.exitcode, self.ran, self.peak_rss_bytes, self.why)
        return type(self), (*facts, self.out_of_memory, self.progress, self.stderr)


def _last_seen(progress: "Progress | None") -> str:
    if progress is None:
        return ""
    text = f" in its stage {progress.stage!r}" if progress.stage is not None else ""
    if progress.done is not None:
        of = f" of {progress.total:g}" if progress.total is not None else ""
        text += f", {progress.done:g}{of} done"
    return text


def _last_words(stderr: str) -> list[str]:
    """The last lines, and of a crash the first: the innermost calls of the thread that it befell."""
    before, fatal, where = stderr.partition(FATAL)
    lines = before.strip().splitlines()[-LINES:]
    if fatal:
        what, *stacks = where.strip().splitlines()
        hit = next((number for number, line in enumerate(stacks) if line.startswith("Current thread")), 0)
        lines += [fatal + what, *stacks[hit : hit + LINES]]
    return lines

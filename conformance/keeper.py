"""The process above a probe: it has a limit, and leaves nothing.

It is a child subreaper, so that whatever a probe starts stays below it, with or without a session of its own. When the
probe has ended, its time is up or whoever started the keeper is gone (its standard input ends), it kills all that is
below it, round by round until nothing is left, and prints what the probe has told.

    python -m conformance.keeper SECONDS ROW CONTENDER
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from taskback.pools import _os
from taskback.pools.child import descendants

KILLING: Final = 10.0  # seconds in which what is killed must be gone


def main() -> None:
    """Keep a probe, and print its outcome as a line of JSON."""
    seconds, row, contender = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whoever started it decides, by ending its input
        signal.signal(number, _os.do_nothing)
    if not _os.adopt_orphans():
        raise OSError("this system has no child subreapers, so what a probe starts could not be found")
    directory = Path(tempfile.mkdtemp(prefix="taskback-matrix-"))
    try:
        print(json.dumps(keep(float(seconds), row, contender, directory)), flush=True)
    finally:
        end_all()
        remove_groups(directory)
        shutil.rmtree(directory, ignore_errors=True)


def keep(seconds: float, row: str, contender: str, directory: Path) -> dict[str, Any]:
    """Run the probe; gives what is known of its outcome."""
    with (directory / "errors").open("wb") as errors:
        probe = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.program", "conformance.probe", row, contender, str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    began = time.monotonic()
    pidfd = os.pidfd_open(probe.pid)
    ready, _, _ = select.select([pidfd, 0], [], [], seconds)
    os.close(pidfd)
    outcome: dict[str, Any] = {"seconds": time.monotonic() - began, "in_time": pidfd in ready}
    for name in ("cell", "stage"):
        with suppress(FileNotFoundError):
            outcome[name] = json.loads((directory / name).read_text(encoding="utf-8"))
    with (directory / "errors").open("rb") as errors:
        outcome["errors"] = errors.read()[-4000:].decode(errors="replace")
    end_all()
    outcome["status"] = probe.poll()
    return outcome


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits to be waited for."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def end_all() -> None:
    """Kill all that is below this process, until nothing is left."""
    deadline = time.monotonic() + KILLING
    while (below := descendants.below(descendants.children(os.getpid()))) and time.monotonic() < deadline:
        descendants.kill(below, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)


def remove_groups(directory: Path) -> None:
    """Remove the cgroups that the probe has made, whose paths it has written down."""
    with suppress(FileNotFoundError):
        for path in (directory / "cgroups").read_text(encoding="utf-8").split():
            with suppress(OSError):
                os.rmdir(path)


if __name__ == "__main__":
    main()

"""The command line: what can be asked for, and what was."""

import argparse
import importlib.metadata
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taskback.pools import _os

BACKENDS: Final = ("sync", "async", "thread", "process")
SHUTDOWN_TIMEOUT: Final = 20.0  # seconds; with the grace below the 30 s that process managers grant
POLICIES: Final = ("idle_timeout", "queue_timeout", "max_attempts", "key")
CHECK_TIMEOUT: Final = 30.0  # seconds; what takes milliseconds where all is well
ASYNC_AT_ONCE: Final = 32  # tasks; what `--workers` is for the async backend, which has no workers

DESCRIPTION: Final = """\
Run each task of a file through a handler and write one result line a task.

HANDLER is module:attribute, a function, an async function or a taskback.TaskRouter; the module is looked for in
the current directory too. TASKS holds one JSON object a line; - is standard input; empty lines are skipped. A task
may have an "id", a string of 1 to 64 characters or a whole number, which names its result; without one, line 7 is
"line-7".
"""

EPILOG: Final = """\
example:
  taskback run jobs:consolidate tasks.jsonl --workers 4 --timeout 60 --out results.jsonl
  taskback run jobs:consolidate tasks.jsonl --workers 4 --timeout 60 --out results.jsonl --resume

Time limits, --max-attempts and --key are for tasks whose type says nothing of its own on a TaskRouter. Its other
policies hold as well. An attempt that fails is followed by the next one after 1 s, 2 s, 4 s and so on.

A result line has id, line (of TASKS), type, state, result or error, seconds, attempt and worker_pid. Lines come in
the order in which tasks end. What handlers print goes to standard error when the results go to standard output.

--resume skips the lines of TASKS that have a result in --out, whatever it is; a failed task is not run again. A task
is known by its line number; its id and type are compared, and a run is refused when they have changed. Lines may be
added at the end of TASKS.

Ctrl-C or SIGTERM stops taking lines and waits --shutdown-timeout seconds for the tasks in flight; once more cancels
them at once; a third time kills the command. What was not finished has no result line and is run by --resume.

exit status: 0 all succeeded (earlier results of a resumed run included), 1 some did not, 2 usage, 130 interrupted
before all was done
"""

DOCTOR: Final = """\
Try each part of the mechanism on this machine, in processes that are gone afterwards, and say which promises of
ProcessPoolTaskBackend stand here.

exit status: 0 all promises stand, 1 some are weakened, 2 usage
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was asked for.

    Attributes:
        handler (str): `module:attribute`.
        tasks (str): A path, or `-`.
        backend (str): One of `BACKENDS`.
        workers (int): Tasks that may run at once.
        timeout (float | None): Seconds a task may run; None for no limit.
        policy (dict[str, Any]): Fields of the policy of tasks whose type says nothing of its own.
        max_queued (int | None): Tasks that may wait beside those that run; None leaves it to the command.
        shutdown_timeout (float): Seconds to wait for the tasks in flight after the first signal.
        out (str | None): The results file, or None for standard output.
        resume (bool): Go on where the results file ends.
        resume_command (str | None): What to type to go on after an interruption; None without a results file.
    """

    handler: str
    tasks: str
    backend: str
    workers: int
    timeout: float | None
    policy: dict[str, Any]
    max_queued: int | None
    shutdown_timeout: float
    out: str | None
    resume: bool
    resume_command: str | None

    @property
    def tasks_name(self) -> str:
        """What messages call the input."""
        return "<stdin>" if self.tasks == "-" else self.tasks


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What `taskback doctor` was asked for.

    Attributes:
        json (bool): Whether the findings are for machines.
        timeout (float): Seconds that each check may take.
    """

    json: bool
    timeout: float


def read_arguments(argv: Sequence[str]) -> Options | DoctorOptions:
    """Read the command line; `SystemExit` as argparse raises it, for `--help` and for mistakes."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.command == "doctor":
        return DoctorOptions(json=given.json, timeout=given.timeout)
    if given.backend == "sync" and given.workers not in (None, 1):
        parser.error("--backend sync runs one task at a time; --workers needs another backend")
    policy = {name: value for name in POLICIES if (value := getattr(given, name)) is not None}
    if policy and given.backend == "sync":
        option = f"--{next(iter(policy)).replace('_', '-')}"
        parser.error(f"--backend sync runs each task as it comes, without a queue; {option} needs another backend")
    if given.max_queued is not None and given.backend not in ("thread", "process"):
        parser.error(f"--backend {given.backend} has no queue to bound; --max-queued needs thread or process")
    if given.resume and given.out is None:
        parser.error("--resume needs --out: the results file says which tasks are done")
    return Options(
        handler=given.handler,
        tasks=given.tasks,
        backend=given.backend,
        workers=given.workers or _default_workers(given.backend),
        timeout=given.timeout,
        policy=policy,
        max_queued=given.max_queued,
        shutdown_timeout=given.shutdown_timeout,
        out=given.out,
        resume=given.resume,
        resume_command=_resume_command(argv, given.resume) if given.out else None,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="taskback", description="Background work for Python, from the shell.")
    parser.add_argument("--version", action="version", version=f"taskback {_version()}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run a file of tasks through a handler",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_run_arguments(run)
    doctor = commands.add_parser(
        "doctor",
        help="try what this machine grants, and say which promises stand here",
        description=DOCTOR,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--json", action="store_true", help="write one JSON object")
    doctor.add_argument(
        "--timeout",
        type=_limit,
        default=CHECK_TIMEOUT,
        metavar="S",
        help="seconds a check may take (default: %(default)g)",
    )
    return parser


def _add_run_arguments(run: argparse.ArgumentParser) -> None:
    run.add_argument("handler", metavar="HANDLER", help="module:attribute")
    run.add_argument("tasks", metavar="TASKS", help="a file with one JSON object a line, or - for standard input")
    run.add_argument("--backend", choices=BACKENDS, default="process", help="where tasks run (default: process)")
    run.add_argument("--workers", type=_count, metavar="N", help="tasks that run at once (default: by the machine)")
    run.add_argument("--timeout", type=_limit, metavar="S", help="seconds a task may run (default: no limit)")
    run.add_argument("--idle-timeout", type=_limit, metavar="S", help="seconds a task may run without a report()")
    run.add_argument("--queue-timeout", type=_limit, metavar="S", help="seconds a task may wait before it begins")
    run.add_argument("--max-attempts", type=_count, metavar="N", help="attempts a task has if its handler raises")
    run.add_argument("--key", metavar="FIELD", help="a field of the tasks; of those with one value, one runs at a time")
    run.add_argument("--max-queued", type=_count, metavar="N", help="tasks that are read ahead of those that run")
    run.add_argument(
        "--shutdown-timeout",
        type=_seconds,
        default=SHUTDOWN_TIMEOUT,
        metavar="S",
        help="seconds that an interrupted run waits for the tasks in flight (default: %(default)g)",
    )
    run.add_argument("--out", metavar="FILE", help="the results file (default: results go to standard output)")
    run.add_argument("--resume", action="store_true", help="go on with the results file of an earlier run")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:  # argparse would name this function instead of the mistake
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more, not {text!r}")
    return value


def _limit(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _default_workers(backend: str) -> int:
    cores = _os.available_cpus()
    return {"sync": 1, "async": ASYNC_AT_ONCE, "thread": min(32, cores + 4), "process": cores}[backend]


def _version() -> str:
    try:
        return importlib.metadata.version("taskback")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _resume_command(argv: Sequence[str], resumed: bool) -> str:
    """The command line as it was given, with `--resume`, quoted for the shell."""
    return shlex.join([*_called_as(), *argv, *([] if resumed else ["--resume"])])


def _called_as() -> list[str]:
    program = Path(sys.argv[0])
    if program.name != "taskback":  # python -m taskback, or a program that calls main()
        return [sys.executable, "-m", "taskback"]
    found = shutil.which(program.name)
    return [program.name if found and Path(found) == program else str(program)]

"""The command: from the command line to the exit status."""

import contextlib
import os
import queue
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from taskback import (
    AsyncFireAndTrackBackend,
    ProcessPoolTaskBackend,
    SyncTaskBackend,
    TaskBackend,
    ThreadPoolTaskBackend,
)
from taskback.cli.arguments import DoctorOptions, Options, read_arguments
from taskback.cli.complaints import INTERRUPTED, USAGE, CommandError, say
from taskback.cli.feed import Feed
from taskback.cli.handler import load_handler, with_policy
from taskback.cli.interrupts import Interrupts
from taskback.cli.messages import Messages
from taskback.cli.progress import open_progress
from taskback.cli.results_file import results_file, standard_output
from taskback.cli.run import Parts, Run
from taskback.cli.streams import STDIN, STDOUT, fill_closed, is_terminal
from taskback.cli.summary import exit_status, summarize
from taskback.cli.tally import Tally
from taskback.cli.tasks_file import open_tasks, size_of
from taskback.cli.window import Window

TASKS_A_WORKER: Final = 4  # in flight: one runs, the others keep the worker from waiting for the feed
WINDOW_BYTES: Final = 64 * 2**20  # of input lines in flight


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `taskback`.

    Args:
        argv (Sequence[str] | None): The arguments, without the program's name; None takes those of the process.

    Returns:
        int: The exit status: 0 all succeeded, 1 some did not, 2 usage, 130 interrupted
            before all was done. Of `doctor`: 0 all promises stand, 1 some are weakened.
    """
    closed = fill_closed()
    try:
        options = read_arguments(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else USAGE
    if isinstance(options, DoctorOptions):
        return _examine(options)
    try:
        return _open_and_run(options, closed)
    except CommandError as error:
        say(str(error))
        return error.status
    except KeyboardInterrupt:
        say("interrupted before the first task")
        return INTERRUPTED


def _examine(options: DoctorOptions) -> int:
    from taskback.cli.doctor.examine import examine  # it uses what not every system has

    try:
        return examine(options.timeout, options.json)
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_and_run(options: Options, closed: frozenset[int]) -> int:
    """Open what a run needs, the results file last, and run."""
    if options.tasks == "-" and STDIN in closed:
        raise CommandError("standard input is closed; give it TASKS, or name a file of them")
    if options.out is None and STDOUT in closed:
        raise CommandError("standard output is closed; give it --out FILE")
    on_terminal = options.out is None and is_terminal(sys.stdout)
    messages: Messages = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(messages))
        # Before the handler is imported: that may print.
        stdout = stack.enter_context(standard_output()) if options.out is None else None
        handler = with_policy(load_handler(options.handler), options.policy)
        backend = _make_backend(options, handler)
        tasks = stack.enter_context(open_tasks(options.tasks))
        results = stdout or stack.enter_context(results_file(str(options.out), resume=options.resume, tasks=tasks))
        window = Window(_tasks_in_flight(options), WINDOW_BYTES)
        feed = Feed(tasks, options.tasks_name, backend, window=window, finished=results.finished, messages=messages)
        progress = open_progress(in_process=options.backend != "process", results_on_terminal=on_terminal)
        parts = Parts(
            backend=backend,
            feed=feed,
            window=window,
            messages=messages,
            results=results,
            tally=Tally(results.finished.by_state),
            progress=progress,
            interrupts=interrupts,
            input_bytes=size_of(tasks),
            shutdown_timeout=options.shutdown_timeout,
        )
        return _run(parts, options)


def _run(parts: Parts, options: Options) -> int:
    """Run, sum up, and give the exit status; the process ends here if a thread of it cannot be ended."""
    parts.interrupts.arm(parts.backend.hurry, parts.progress.last_words)
    with contextlib.closing(parts.progress):
        ending = Run(parts).execute()
    if ending.failure is not None and ending.failure.__cause__ is not None:
        _show_cause(ending.failure.__cause__)
    for line in summarize(ending, parts.tally, options, parts.results):
        say(line)
    status = exit_status(ending, parts.tally)
    if ending.threads_left:
        _exit_now(status)
    return status


def _show_cause(error: BaseException) -> None:
    if not isinstance(error, OSError):  # the message says all there is to an OSError
        for line in "".join(traceback.format_exception(error)).splitlines():
            say(line)


def _make_backend(options: Options, handler: Any) -> TaskBackend:
    limit, grace = options.timeout, options.shutdown_timeout
    makers: Mapping[str, Callable[[], TaskBackend]] = {
        "sync": lambda: SyncTaskBackend(handler, timeout=limit),
        "async": lambda: AsyncFireAndTrackBackend(handler, timeout=limit, shutdown_timeout_seconds=grace),
        "thread": lambda: ThreadPoolTaskBackend(handler, timeout=limit, max_workers=options.workers),
        "process": lambda: ProcessPoolTaskBackend(
            handler, timeout=limit, max_workers=options.workers, shutdown_timeout_seconds=grace
        ),
    }
    try:
        return makers[options.backend]()
    except (TypeError, ValueError) as error:  # a handler that cannot be pickled, a limit that cannot be kept
        raise CommandError(f"--backend {options.backend} does not take this: {error}") from error


def _tasks_in_flight(options: Options) -> int:
    """An async backend runs whatever it is given, so that the window alone keeps `--workers`."""
    if options.max_queued is not None:
        return options.workers + options.max_queued
    return options.workers * (1 if options.backend == "async" else TASKS_A_WORKER)


def _exit_now(status: int) -> NoReturn:
    """End the process although a thread of it runs on.

    A handler that did not stop, on `--backend thread` say, cannot be killed, and a normal exit would join its thread
    for ever. Everything of ours has been written by now; what skips its turn are exit hooks of the handler's modules.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)

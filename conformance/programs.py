"""Programs that have a pool, so that something can befall them.

    python -m benchmarks.program conformance.programs NAME CONTENDER DIRECTORY

Each tells in the directory's file `ready` that it is as it should be; where it has a task, that tells in `victim`.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from conformance import work
from conformance.contenders import KINDS, Contender

TASKS: Final[dict[str, Callable[[str], Any]]] = {
    "busy": work.spin,
    "gil": work.hold_the_gil,
    "stubborn": work.swallow,
    "stopped": work.sleep,
}


def main() -> None:
    """Run one of them."""
    name, contender, directory = sys.argv[1:]
    what, _, state = name.partition(":")
    if what == "daemonic":
        daemonic(contender, directory)
        return
    pool = KINDS[contender]()
    act = {"waits": waits, "closes": waits, "forgets": begin, "shuts down": shuts_down, "forks": forks}[what]
    pool.drive(lambda: act(pool, state, directory), closes=what == "closes")


def begin(pool: Contender, state: str, directory: str) -> Any:
    """Have the pool be in that state, and say so."""
    if state == "starting":
        work.tell(os.path.join(directory, "ready"))
        return pool.submit(work.sleep, os.path.join(directory, "victim"))
    for first in [pool.submit(work.pid) for _ in range(4)]:
        first.result()
    call: Any = None
    if state != "idle":
        victim = os.path.join(directory, "victim")
        call = pool.submit(TASKS[state], victim)
        work.await_file(victim)
    work.tell(os.path.join(directory, "ready"))
    return call


def waits(pool: Contender, state: str, directory: str) -> None:
    """Wait for the task, or for ever."""
    call = begin(pool, state, directory)
    if call is not None:
        call.result()
    time.sleep(work.FOREVER)


def shuts_down(pool: Contender, moment: str, directory: str) -> None:
    """Shut down so many seconds after the first call, say when that has returned, and wait."""
    begin(pool, "starting", directory)
    time.sleep(float(moment))
    pool.shutdown(1.0)
    work.tell(os.path.join(directory, "done"))
    time.sleep(work.FOREVER)


def forks(pool: Contender, _: str, directory: str) -> None:
    """Fork twice while tasks run; one fork lives on, the other one ends as programs end."""
    gate = os.path.join(directory, "gate")
    calls = [pool.submit(work.noted, os.path.join(directory, "notes"), n, gate) for n in range(4)]
    work.await_file(os.path.join(directory, "notes"))
    lives = os.fork()
    if not lives:
        time.sleep(work.FOREVER)
    ends = os.fork()
    if not ends:
        return
    work.tell(os.path.join(directory, "ready"), lives, ends)
    if [call.result() for call in calls] == [0, 1, 2, 3]:
        work.tell(os.path.join(directory, "results"))
    status = os.waitstatus_to_exitcode(os.waitpid(ends, 0)[1])
    pool.shutdown(1.0)
    work.tell(os.path.join(directory, "done"), status)
    time.sleep(work.FOREVER)


def daemonic(contender: str, directory: str) -> None:
    """Use the pool in a daemonic process, and write down what came of it."""
    process = multiprocessing.Process(target=use, args=(contender, directory), daemon=True)
    process.start()
    process.join(12)
    if process.exitcode is None:
        with open(os.path.join(directory, "result"), "w", encoding="utf-8") as file:
            file.write("its process never ends")
        os._exit(0)


def use(contender: str, directory: str) -> None:
    """Make a call."""
    pool = KINDS[contender]()
    try:
        number = pool.drive(lambda: pool.submit(work.give, 7).result(8), closes=True)
        said = "works" if number == 7 else f"a wrong result: {number!r}"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    with open(os.path.join(directory, "result"), "w", encoding="utf-8") as file:
        file.write(said)


if __name__ == "__main__":
    main()

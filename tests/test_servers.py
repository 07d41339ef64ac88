"""Backends in real servers, uvicorn's and gunicorn's: they serve, and nothing is left however the server ends.

Each server runs on a port of its own on 127.0.0.1 that the system picks; handlers are in a module beside the app, as
they should be: who starts a worker imports that.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.faults import LIMIT, await_gone
from tests.helpers import is_running, until
from tests.running import PRELUDE, Program, Programs, programs
from tests.test_readme import EXAMPLES

JOBS: Final = (
    PRELUDE
    + '''
import json, subprocess

def work(task):
    return globals()[task["do"]](task)

def where(task):
    return [os.getpid(), os.getppid(), task["n"]]

def stubborn(task):
    """Never ends by itself, and starts what has left its group."""
    tell(f"busy {os.getpid()} {subprocess.Popen(['sleep', '600'], start_new_session=True).pid}")
    while True:
        try:
            while True: time.sleep(0.005)
        except BaseException:
            pass

def gated(task):
    tell(f"busy {os.getpid()}")
    while not os.path.exists("go"): time.sleep(0.005)
    return "done"

OPTIONS = {"max_workers": 2, "shutdown_timeout_seconds": 0.5, "cancel_grace_seconds": 0.3, "exit_grace_seconds": 1.0}

del threads  # gunicorn takes this module for its configuration, and would take that for a setting

def post_worker_init(worker):
    tell(f"up {worker.pid}")
'''
)

APP: Final = """
from jobs import *

backend = None

async def app(scope, receive, send):
    global backend
    if scope["type"] == "lifespan":
        await receive()
        backend = taskback.ProcessPoolTaskBackend(work, **OPTIONS)
        await backend.initialize()
        if {do!r}:
            await backend.submit({{"do": {do!r}}})
        await send({{"type": "lifespan.startup.complete"}})
        tell(f"up {{os.getpid()}}")
        await receive()
        tell("closing")
        if {shuts_down}:
            report = await backend.shutdown({timeout})
            tell(f"report {{len(report.succeeded)}} {{len(report.killed)}} {{len(report.stuck)}}")
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    assert scope["type"] == "http"
    answer = await backend.run({{"do": "where", "n": scope["path"]}})
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]}})
    await send({{"type": "http.response.body", "body": json.dumps([os.getpid(), *answer]).encode()}})
"""


def asgi(do: str = "", shuts_down: bool = True, timeout: float | None = None) -> str:
    """An ASGI app whose lifespan has a backend with this under way, and shuts it down or forgets that."""
    return APP.format(do=do, shuts_down=shuts_down, timeout=timeout)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Programs]:
    """Starts servers and ends them."""
    with programs(tmp_path) as started:
        yield started


JOBS_BESIDE: Final = {"jobs.py": JOBS}


def uvicorn(start: Programs, code: str, workers: int = 1, beside: Mapping[str, str] = JOBS_BESIDE) -> Program:
    """Serves the app."""
    how = ("-m", "uvicorn", "program:app", "--host", "127.0.0.1", "--port", "0", "--workers", str(workers))
    return start(code, *how, "--no-access-log", beside=beside)


def port_of(server: Program) -> int:
    """On which it listens, which it logs."""
    found: list[str] = []

    def listens() -> bool:
        found[:] = re.findall(r"http://127\.0\.0\.1:(\d+)", (server.directory / "err").read_text(encoding="utf-8"))
        return bool(found)

    until(listens)
    return int(found[0])


def get(server: Program, path: str = "/x") -> Any:
    """What it answers: its own pid, the worker's, the guardian's, and the path."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port_of(server)}{path}", timeout=LIMIT) as reply:
        return json.load(reply)


def lines(server: Program, count: int) -> dict[str, list[list[int]]]:
    """The next lines that are told: by first word the numbers behind it."""
    told: dict[str, list[list[int]]] = {}
    for _ in range(count):
        word, *numbers = server.line().split()
        told.setdefault(word, []).append([int(number) for number in numbers])
    return told


def flat(told: dict[str, list[list[int]]], word: str) -> list[int]:
    """All numbers behind that word."""
    return [number for line in told[word] for number in line]


SIGNALS: Final = ((signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2))


def end(server: Program, number: signal.Signals) -> float:
    """End a server: Ctrl-C goes to its whole group, all else to the server alone. How many seconds it took."""
    began = time.monotonic()
    if number == signal.SIGINT:
        server.interrupt()
    else:
        server.process.send_signal(number)
    server.end()
    return time.monotonic() - began


def assert_not_ours(server: Program) -> None:
    """What the server complains of, as gunicorn does of a request that Ctrl-C cuts short, does not come from us."""
    assert not re.search(r"taskback/(pools/|backends/|_)", server.err), server.err


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shuts_down", [True, False])
def test_uvicorn_leaves_nothing(start, workers, shuts_down):
    """SIGTERM, Ctrl-C once and twice, with a shutdown in the lifespan and without: what does not end is killed in time.

    uvicorn sends itself the signal once more when it is done, so no exit hook runs.
    """
    servers = [uvicorn(start, asgi("stubborn", shuts_down), workers) for _ in SIGNALS]
    told = [lines(server, 2 * workers) for server in servers]
    answers = [get(server, "/hello") for server in servers]
    gone: list[int] = []

    for server, each, answer, (number, times) in zip(servers, told, answers, SIGNALS, strict=True):
        if times == 2:
            server.interrupt()
            assert server.line() == "closing"
        assert end(server, number) < 5, server.err
        gone += [*flat(each, "up"), *flat(each, "busy"), *answer[1:3]]

    for each, answer in zip(told, answers, strict=True):
        assert answer[0] in flat(each, "up")
        assert answer[3] == "/hello"
    if shuts_down:  # it has waited for that
        assert not any(map(is_running, gone))
    await_gone(*gone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_uvicorn_drains(start, number):
    """What runs when the signal comes may end."""
    server = uvicorn(start, asgi("gated", timeout=20))
    told = lines(server, 2)

    server.process.send_signal(number)
    assert server.line() == "closing"
    (server.directory / "go").touch()

    assert server.line() == "report 1 0 0"
    server.end()
    assert not any(map(is_running, flat(told, "busy")))


def gunicorn(
    start: Programs, code: str, *options: str, app: str = "program:app", beside: Mapping[str, str] = JOBS_BESIDE
) -> Program:
    """Serves the app with two workers, each of which tells when it is up."""
    how = ("-m", "gunicorn", app, "--config", "python:jobs", "--bind", "127.0.0.1:0", "--workers", "2")
    return start(code, *how, "--graceful-timeout", "5", "--no-control-socket", *options, beside=beside)


WSGI: Final = """
from jobs import *

backend = taskback.ProcessPoolTaskBackend(work, **OPTIONS)
if {used}:
    handle = backend.submit_sync({{"do": "gated"}})
    tell(f"master {{os.getpid()}} {{backend.run_sync({{'do': 'where', 'n': 0}})[0]}}")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/hang":
        backend.submit_sync({{"do": "stubborn"}})
        time.sleep(600)
    if {used}:
        try:
            handle.result()
        except taskback.ForeignHandleError as error:
            path += f" {{error.pid}}"
    answer = json.dumps([os.getpid(), *backend.run_sync({{"do": "where", "n": path}}, wait=10)])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [answer.encode()]
"""


def two_answers(server: Program, path: str = "/x") -> list[Any]:
    """One of each worker."""
    found: dict[int, Any] = {}

    def both() -> bool:
        answer = get(server, path)
        found[answer[0]] = answer
        return len(found) == 2

    until(both)
    return list(found.values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("preload", ["used", "unused", "no"])
def test_each_worker_of_gunicorn_has_a_pool_of_its_own(start, number, preload):
    """With `--preload` and without, the backend at work before the fork or not; nothing is left."""
    server = gunicorn(start, WSGI.format(used=preload == "used"), *(["--preload"] if preload != "no" else []))
    told = lines(server, 4 if preload == "used" else 2)

    answers = two_answers(server, "/x")
    took = end(server, number)

    assert took < 10, server.err
    assert sorted(answer[0] for answer in answers) == sorted(flat(told, "up"))
    guardians = {answer[2] for answer in answers}
    assert len(guardians) == 2
    if preload == "used":
        assert {answer[3] for answer in answers} == {f"/x {server.process.pid}"}
        assert told["master"][0][0] == server.process.pid
    await_gone(*flat(told, "up"), *told.get("busy", [[]])[0], *guardians, *(answer[1] for answer in answers))
    assert_not_ours(server)


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_a_reload_of_gunicorn_takes_the_old_pools_along(start, preload):
    """SIGHUP: new workers serve with pools of their own, those of the old ones are gone."""
    server = gunicorn(start, WSGI.format(used=False), *preload)
    old = flat(lines(server, 2), "up")
    before = two_answers(server)

    server.process.send_signal(signal.SIGHUP)
    new = flat(lines(server, 2), "up")
    await_gone(*old, *(pid for answer in before for pid in answer[1:3]))
    after = two_answers(server)

    end(server, signal.SIGTERM)
    assert sorted(answer[0] for answer in after) == sorted(new)
    await_gone(*(pid for answer in after for pid in answer[:3]))
    assert_not_ours(server)


@pytest.mark.parametrize("how", ["timeout", "SIGKILL", "SIGABRT"])
def test_a_killed_worker_of_gunicorn_takes_its_pool_along(start, how):
    """By gunicorn, for it took too long, or by anybody: its pool and what that has started end, the others serve."""
    server = gunicorn(start, WSGI.format(used=False), "--preload", "--timeout", "2" if how == "timeout" else "60")
    old = flat(lines(server, 2), "up")
    before = {answer[0]: answer for answer in two_answers(server)}

    hung = subprocess_of_a_request(f"http://127.0.0.1:{port_of(server)}/hang")
    try:
        busy = flat(lines(server, 1), "busy")
        (victim,) = (pid for pid, answer in before.items() if psutil.Process(busy[0]).ppid() == answer[2])
        if how != "timeout":
            os.kill(victim, getattr(signal, how))
        await_gone(victim, *before[victim][1:3], *busy)
    finally:
        hung.kill()
        hung.wait()
    (new,) = flat(lines(server, 1), "up")
    after = two_answers(server)

    end(server, signal.SIGTERM)
    assert {answer[0] for answer in after} == {*old, new} - {victim}
    await_gone(*(pid for answer in after for pid in answer[:3]))


def subprocess_of_a_request(url: str) -> subprocess.Popen[bytes]:
    """Waits for an answer, so that the test need not."""
    code = f"import urllib.request; urllib.request.urlopen({url!r}).read()"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("shuts_down", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gunicorn_with_uvicorns_worker_leaves_nothing(start, shuts_down, number):
    """What does not end is killed in time, whether the lifespan shuts down or not."""
    server = gunicorn(start, asgi("stubborn", shuts_down), "--worker-class", "uvicorn_worker.UvicornWorker")
    told = lines(server, 6)  # gunicorn's hook and the lifespan, both say that they are up
    answer = get(server, "/hello")

    assert end(server, number) < 10, server.err

    assert answer[3] == "/hello"
    await_gone(*flat(told, "up"), *flat(told, "busy"), *answer[1:3])


LEAVES: Final = """

import os, threading, time

async def leave(request):
    await backend.submit({"text": ""})
    return JSONResponse(0)

app.router.routes.append(Route("/leave", leave))

def watch():
    while backend._state.value != "draining": time.sleep(0.005)
    tell("draining")

def tell(text):
    fd = os.open(os.environ["TELL"], os.O_WRONLY)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)

threading.Thread(target=watch, daemon=True).start()
"""


def test_the_async_example_of_the_readme_serves(start):
    """As it stands; a second Ctrl-C ends the patience of its shutdown."""
    plain = uvicorn(start, EXAMPLES["service.py"], beside={"words.py": EXAMPLES["words.py"]})
    lame = {"words.py": JOBS + "count_words = stubborn"}
    held = uvicorn(start, EXAMPLES["service.py"] + LEAVES, beside=lame)

    assert get(plain, "/count?text=to+be+or+not+to+be") == 6
    get(held, "/leave")
    busy = flat(lines(held, 1), "busy")
    held.interrupt()
    assert held.line() == "draining"

    assert end(held, signal.SIGINT) < 2 + 1 + 2, held.err  # and not the 10 s of its shutdown
    assert end(plain, signal.SIGTERM) < 5, plain.err
    await_gone(*busy)
    assert_not_ours(plain)


def test_the_wsgi_example_of_the_readme_serves(start):
    """As it stands, with `--preload`."""
    beside = {"wsgi.py": EXAMPLES["wsgi.py"], "words.py": EXAMPLES["words.py"], "jobs.py": JOBS}
    server = gunicorn(start, "", "--preload", app="wsgi:app", beside=beside)

    assert [get(server, "/?to+be+or+not") for _ in range(4)] == [4] * 4

    assert end(server, signal.SIGTERM) < 10, server.err
    assert_not_ours(server)

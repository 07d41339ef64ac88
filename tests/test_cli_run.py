"""`taskback run`, as a user runs it: real processes, real files."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskback.cli import main
from tests.cli_helpers import JOBS, LIMIT, Desk, in_order, make_desk
from tests.helpers import run_python

BACKENDS = ("sync", "async", "thread", "process")
FIELDS = ["id", "line", "type", "state", "result", "seconds", "attempt", "worker_pid"]
FAILED_FIELDS = [name if name != "result" else "error" for name in FIELDS]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A directory to run the command in."""
    yield from make_desk(tmp_path)


def numbered(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(1, count + 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("handler", ["echo", "echo_async", "routed"])
def test_one_result_line_a_task(desk: Desk, backend: str, handler: str) -> None:
    """On every backend, with every kind of handler, each task has its line with all that is known of it."""
    desk.write_tasks(*({"type": "echo", "id": f"id-{n}", "n": n} for n in range(1, 11)))

    status, command = desk.run(f"jobs:{handler}", "--backend", backend, "--out", "results.jsonl")

    assert status == 0, command.err.text
    assert command.out.text == ""
    results = desk.results()
    assert [list(record) for record in results] == [FIELDS] * 10
    assert [(record["id"], record["line"], record["result"]) for record in results] == [
        (f"id-{n}", n, n) for n in range(1, 11)
    ]
    assert {(record["type"], record["state"], record["attempt"]) for record in results} == {("echo", "succeeded", 1)}
    assert all(0 <= record["seconds"] < LIMIT for record in results)
    in_command = {record["worker_pid"] == command.process.pid for record in results}
    assert in_command == {backend != "process"}
    assert "10 tasks in" in command.err.text


def test_processes_are_the_default_and_results_go_to_standard_output(desk: Desk) -> None:
    """Without options, tasks run in worker processes and the result lines can be piped on."""
    desk.write_tasks(*numbered(5))

    status, command = desk.run("jobs:echo")

    assert status == 0
    results = in_order(command.out.text)
    assert [record["result"] for record in results] == [1, 2, 3, 4, 5]
    assert command.process.pid not in {record["worker_pid"] for record in results}
    assert command.leaves_nothing()


@pytest.mark.parametrize("backend", ["sync", "thread", "process"])
def test_what_a_handler_prints_does_not_mix_with_results(desk: Desk, backend: str) -> None:
    """With results on standard output, prints go to standard error."""
    desk.write_tasks({"do": "print"})

    status, command = desk.run("jobs:chosen", "--backend", backend)

    assert status == 0
    assert [record["result"] for record in in_order(command.out.text)] == ["print"]
    assert "printed by the handler" in command.err.text


def test_what_a_handler_prints_stays_where_it_is_with_a_results_file(desk: Desk) -> None:
    """With --out, standard output is the handler's."""
    desk.write_tasks({"do": "print"})

    status, command = desk.run("jobs:chosen", "--out", "results.jsonl")

    assert status == 0
    assert command.out.text == "printed by the handler\n"


def test_tasks_come_from_standard_input(desk: Desk) -> None:
    """`-` reads a pipe; messages call it <stdin>."""
    status, command = desk.run("jobs:echo", "--backend", "sync", tasks="-", stdin=b'{"n": 1}\n[]\n{"n": 3}')

    assert status == 1
    results = in_order(command.out.text)
    assert [record.get("result") for record in results] == [1, None, 3]
    assert results[1]["error"]["message"] == "<stdin>:2: no JSON object, but an array"


def test_lines_run_as_they_arrive(desk: Desk) -> None:
    """The producer behind a pipe may be slow: nothing waits for the input's end, nor for more lines."""
    read, write = os.pipe()
    command = desk.start("jobs:count", "--backend", "thread", tasks="-", stdin=read)
    os.close(read)
    with open(write, "wb", buffering=0) as producer:
        for n in range(3):
            producer.write(json.dumps({"n": n}).encode() + b"\n")
            assert desk.told.read_line() == str(n)
            command.out.wait_for(f'"result": {n},')

    assert command.finish() == 0


def test_bad_lines_get_an_error_and_the_others_run(desk: Desk) -> None:
    """A clear error with file and line, in the result and in the summary; empty lines are nothing."""
    desk.write_tasks({"n": 1}, b"{oops\n", b"\n", b"\xff\n", b"[1]\r\n", {"n": 6})

    status, command = desk.run("jobs:echo", "--out", "results.jsonl")

    assert status == 1
    results = desk.results()
    assert [(record["line"], record["state"]) for record in results] == [
        (1, "succeeded"), (2, "failed"), (4, "failed"), (5, "failed"), (6, "succeeded"),
    ]  # fmt: skip
    bad = results[1]
    assert list(bad) == FAILED_FIELDS
    assert (bad["id"], bad["type"], bad["seconds"], bad["attempt"], bad["worker_pid"]) == (
        "line-2",
        None,
        None,
        0,
        None,
    )
    assert bad["error"]["message"].startswith("tasks.jsonl:2: no JSON: ")
    assert results[2]["error"]["message"].startswith("tasks.jsonl:4: no UTF-8: ")
    assert results[3]["error"]["message"] == "tasks.jsonl:5: no JSON object, but an array"
    assert "tasks.jsonl:2: no JSON: " in command.err.text


def test_an_id_that_will_not_do_is_an_error_of_its_line(desk: Desk) -> None:
    """It is not replaced in silence; the others still run, and --resume knows the line again."""
    desk.write_tasks(
        {"id": "a", "n": 1}, {"id": "x" * 65, "n": 2}, {"id": "", "type": "t"}, {"id": 1.5}, {"id": 5, "n": 5}
    )
    options = ("--backend", "sync", "--out", "results.jsonl", "--resume")

    status, command = desk.run("jobs:count", *options)

    assert status == 1
    results = desk.results()
    assert [record["id"] for record in results] == ["a", "line-2", "line-3", "line-4", "5"]
    assert [record["state"] for record in results] == ["succeeded", "failed", "failed", "failed", "succeeded"]
    message = "tasks.jsonl:2: id must be a string of 1 to 64 characters or a whole number"
    assert (results[1]["error"]["type"], results[1]["error"]["message"]) == ("BadIdError", message)
    assert message in command.err.text
    assert desk.run("jobs:count", *options)[0] == 1
    assert len(desk.results()) == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failure_is_told_with_the_workers_traceback(desk: Desk, backend: str) -> None:
    """Type, message and the place in the user's code."""
    desk.write_tasks({"do": "raise", "text": "broken\nin two lines"}, {"do": "nothing"})

    status, command = desk.run("jobs:chosen", "--backend", backend, "--out", "results.jsonl")

    assert status == 1
    failed, succeeded = desk.results()
    assert list(failed) == FAILED_FIELDS
    assert failed["state"] == "failed"
    assert (failed["error"]["type"], failed["error"]["message"]) == ("ValueError", "broken\nin two lines")
    assert "in chosen" in failed["error"]["traceback"]
    assert succeeded["state"] == "succeeded"
    assert "tasks.jsonl:1: failed: ValueError: broken\n" in command.err.text


@pytest.mark.parametrize("backend", ["sync", "process"])
@pytest.mark.parametrize(("do", "why"), [("set", "set is not JSON serializable"), ("nan", "not JSON compliant")])
def test_a_result_that_is_no_json_is_an_error(desk: Desk, backend: str, do: str, why: str) -> None:
    """It names file and line, and the others still run."""
    desk.write_tasks({"do": "nothing"}, {"do": do}, {"do": "nothing"})

    status, _ = desk.run("jobs:chosen", "--backend", backend, "--out", "results.jsonl")

    assert status == 1
    first, bad, last = desk.results()
    assert (first["state"], bad["state"], last["state"]) == ("succeeded", "failed", "succeeded")
    assert bad["error"]["message"].startswith("tasks.jsonl:2: the result is no JSON: ")
    assert why in bad["error"]["message"]


def test_any_text_stays_one_line(desk: Desk) -> None:
    """Lone surrogates and strange line ends come through as escapes."""
    desk.write_tasks({"do": "surrogate"})

    status, _ = desk.run("jobs:chosen", "--backend", "sync", "--out", "results.jsonl")

    assert status == 0
    assert desk.out.read_bytes().isascii()
    assert desk.results()[0]["result"] == "\ud800 \u2028"


def test_a_type_without_a_handler_is_an_error_of_its_line(desk: Desk) -> None:
    """The router's complaint stands in the result; the others still run."""
    desk.write_tasks({"type": "echo", "n": 1}, {"type": "other"}, {"n": 3}, {"type": "echo", "n": 4})

    status, _ = desk.run("jobs:routed", "--out", "results.jsonl")

    assert status == 1
    results = desk.results()
    assert [record["state"] for record in results] == ["succeeded", "failed", "failed", "succeeded"]
    assert results[1]["error"]["type"] == "UnknownTaskTypeError"
    assert results[1]["error"]["message"].startswith("tasks.jsonl:2: no handler for task type 'other'")


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_task_whose_time_is_up_is_timed_out(desk: Desk, backend: str) -> None:
    """--timeout stops a loop that never ends; the next task runs."""
    desk.write_tasks({"do": "loop"}, {"do": "nothing"})

    status, _ = desk.run(
        "jobs:chosen", "--backend", backend, "--workers", "1", "--timeout", "0.5", "--out", "results.jsonl"
    )

    assert status == 1
    timed_out, succeeded = desk.results()
    assert (timed_out["state"], timed_out["error"]["type"]) == ("timed_out", "TaskTimeoutError")
    assert timed_out["seconds"] >= 0.5
    assert succeeded["state"] == "succeeded"


def test_an_abandoned_thread_does_not_keep_the_command_from_its_end(desk: Desk) -> None:
    """A thread cannot be killed: its task is ABANDONED, the others run, and the command ends without it."""
    (desk.directory / "mixed.py").write_text(
        "import jobs\ndef handler(task):\n    return jobs.stuck(task) if task['n'] == 1 else task['n']\n"
    )
    desk.write_tasks(*numbered(3))

    status, command = desk.run(
        "mixed:handler", "--backend", "thread", "--workers", "1", "--timeout", "0.1", "--out", "results.jsonl"
    )

    assert status == 1, command.err.text
    assert [record["state"] for record in desk.results()] == ["abandoned", "succeeded", "succeeded"]
    assert command.leaves_nothing()


def test_a_dead_worker_costs_its_task_and_no_other_line_is_missing(desk: Desk) -> None:
    """Every line has its result, whatever dies."""
    desk.write_tasks({"do": "nothing"}, {"do": "die"}, {"do": "nothing"}, {"do": "nothing"})

    status, _ = desk.run("jobs:chosen", "--workers", "1", "--out", "results.jsonl")

    assert status == 1
    results = desk.results()
    assert [record["line"] for record in results] == [1, 2, 3, 4]
    assert (results[1]["state"], results[1]["error"]["type"]) == ("lost", "WorkerDiedError")
    assert results[3]["state"] == "succeeded"


def test_tasks_of_one_id_are_all_run(desk: Desk) -> None:
    """Ids need not be unique: a second task in flight does not join the first one's run."""
    desk.write_tasks(*({"id": "same", "n": n} for n in range(20)))

    status, _ = desk.run("jobs:count", "--backend", "thread", "--workers", "4", "--out", "results.jsonl")

    assert status == 0
    assert sorted(int(desk.told.read_line()) for _ in range(20)) == list(range(20))
    assert [(record["id"], record["result"]) for record in desk.results()] == [("same", n) for n in range(20)]


@pytest.mark.parametrize(
    ("handler", "complaint"),
    [
        ("jobs", "HANDLER must be module:attribute, not 'jobs'"),
        (
            "absent:echo",
            "cannot import the module 'absent': ModuleNotFoundError: No module named 'absent'; looked in",
        ),
        ("jobs.py:echo", "give the module's name, not its file's"),
        ("jobs:eco", r"the module 'jobs' \(.*jobs\.py\) has no attribute 'eco'; did you mean 'echo'\?"),
        ("jobs:no_handler", "jobs:no_handler is no handler: it is of type int and cannot be called"),
        (
            "broken:echo",
            r"cannot import the module 'broken': .*broken\.py:2: ZeroDivisionError: division by zero",
        ),
        ("wrong:echo", r"cannot import the module 'wrong': .*wrong\.py:1: SyntaxError: "),
        ("needy:echo", r"cannot import the module 'needy': .*needy\.py:1: ModuleNotFoundError: .*'absent'"),
        ("leaving:echo", r"cannot import the module 'leaving': .*leaving\.py:1: SystemExit: 0"),
    ],
)
def test_a_handler_that_cannot_be_imported(desk: Desk, handler: str, complaint: str) -> None:
    """Which part failed, where, and why, in one line; nothing was run, and no results file begun."""
    desk.write_tasks({"n": 1})
    (desk.directory / "broken.py").write_text("import os\n1 / 0\n")
    (desk.directory / "wrong.py").write_text("def echo(:\n")
    (desk.directory / "needy.py").write_text("import absent\n")
    (desk.directory / "leaving.py").write_text("raise SystemExit(0)\n")

    status, command = desk.run(handler, "--out", "results.jsonl")

    assert status == 2
    assert re.match(f"taskback: .*{complaint}.*\n$", command.err.text), command.err.text
    assert not desk.out.exists()


@pytest.mark.parametrize("raised", ["ModuleNotFoundError(\"No module named 'gone'\")", "SystemExit(3)"])
def test_a_handler_that_cannot_be_imported_in_workers(desk: Desk, raised: str) -> None:
    """The error, and where it was raised; no task is spent on it, so --resume runs them all."""
    desk.write_tasks(*numbered(3))
    # The first one to import it is the command itself.
    (desk.directory / "picky.py").write_text(
        "import os\ntry:\n    os.close(os.open('imported', os.O_CREAT | os.O_EXCL))\n"
        f"except FileExistsError:\n    raise {raised}\ndef handle(task): ...\n"
    )

    status, command = desk.run("picky:handle", "--out", "results.jsonl")

    assert status == 2
    assert "taskback: the workers cannot be started: " + raised.partition("(")[0] in command.err.text
    assert 'picky.py", line 5' in command.err.text
    assert desk.results() == []
    (desk.directory / "picky.py").write_text("def handle(task): return task['n']\n")
    status, command = desk.run("picky:handle", "--out", "results.jsonl", "--resume")
    assert (status, [record["result"] for record in desk.results()]) == (0, [1, 2, 3]), command.err.text


def test_the_current_directory_is_searched_by_the_console_script_too(desk: Desk) -> None:
    """Here and in workers: what `python -m` finds, `taskback` finds."""
    desk.write_tasks({"do": "path"})
    script = "import sys; from taskback.cli import main\nif __name__ == '__main__': sys.exit(main())"

    command = desk.start("jobs:chosen", program=[sys.executable, "-P", "-c", script])

    assert command.finish() == 0, command.err.text
    assert in_order(command.out.text)[0]["state"] == "succeeded"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["run"], "HANDLER, TASKS"),
        (["run", "jobs:echo", "tasks.jsonl", "--backend", "cluster"], "invalid choice: 'cluster'"),
        (["run", "jobs:echo", "tasks.jsonl", "--workers", "0"], "must be at least 1"),
        (["run", "jobs:echo", "tasks.jsonl", "--workers", "two"], "--workers: must be a whole number, not 'two'"),
        (["run", "jobs:echo", "tasks.jsonl", "--timeout", "1m"], "--timeout: must be a number of seconds, 0 or more"),
        (["run", "jobs:echo", "tasks.jsonl", "--shutdown-timeout", ""], "number of seconds, 0 or more, not ''"),
        (["run", "jobs:echo", "tasks.jsonl", "--timeout", "0"], "must be more than 0"),
        (["run", "jobs:echo", "tasks.jsonl", "--timeout", "nan"], "number of seconds"),
        (["run", "jobs:echo", "tasks.jsonl", "--shutdown-timeout", "-1"], "number of seconds"),
        (["run", "jobs:echo", "tasks.jsonl", "--shutdown-timeout", "inf"], "number of seconds"),
        (["run", "jobs:echo", "tasks.jsonl", "--resume"], "--resume needs --out"),
        (["run", "jobs:echo", "tasks.jsonl", "--backend", "sync", "--workers", "2"], "one task at a time"),
        (
            ["run", "jobs:echo", "absent.jsonl"],
            "cannot read the tasks: absent.jsonl: No such file or directory",
        ),
        (["run", "jobs:echo", "."], "cannot read the tasks: .: Is a directory"),
        (
            ["run", "jobs:echo", "tasks.jsonl", "--out", "tasks.jsonl"],
            "the file that the tasks are read from",
        ),
        (["run", "jobs:echo", "tasks.jsonl", "--out", "jobs.py"], "jobs.py is not empty"),
    ],
)
def test_mistakes_end_with_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    """A message says what was wrong; nothing is run and nothing written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "jobs", raising=False)
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "tasks.jsonl").write_text('{"n": 1}\n')

    assert main(arguments) == 2

    assert complaint in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "jobs.py",
        "tasks.jsonl",
    ]


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """Options, an example, the exit status."""
    assert main(["run", "--help"]) == 0

    text = capsys.readouterr().out
    assert "taskback run jobs:consolidate tasks.jsonl" in text
    assert "exit status: 0 all succeeded" in text
    assert all(
        f"--{option}" in text for option in ("backend", "workers", "timeout", "shutdown-timeout", "out", "resume")
    )


def test_version(desk: Desk) -> None:
    """`taskback --version` says which it is."""
    command = desk.start_command("--version")

    assert command.finish() == 0
    assert command.out.text.startswith("taskback ")


def test_an_empty_input_is_no_failure(desk: Desk) -> None:
    """Nothing to do, nothing went wrong."""
    desk.write_tasks()

    status, command = desk.run("jobs:echo", "--out", "results.jsonl")

    assert status == 0
    assert "0 tasks" in command.err.text
    assert desk.results() == []


def test_a_results_file_is_not_overwritten(desk: Desk) -> None:
    """A second run without --resume is refused, with a hint."""
    desk.write_tasks(*numbered(3))
    desk.run("jobs:echo", "--backend", "sync", "--out", "results.jsonl")
    before = desk.out.read_bytes()

    status, command = desk.run("jobs:echo", "--backend", "sync", "--out", "results.jsonl")

    assert status == 2
    assert "results.jsonl is not empty; --resume goes on with it" in command.err.text
    assert desk.out.read_bytes() == before


def test_resume_runs_what_has_no_result_yet(desk: Desk) -> None:
    """Lines that were added are run, all others are not, failed ones neither; the status speaks of the whole file."""
    desk.write_tasks({"n": 1}, b"bad\n", {"n": 3})
    assert desk.run("jobs:count", "--backend", "sync", "--out", "results.jsonl")[0] == 1
    assert [desk.told.read_line(), desk.told.read_line()] == ["1", "3"]
    with open(desk.tasks, "ab") as tasks:
        tasks.write(b'{"n": 4}\n')

    status, command = desk.run("jobs:count", "--backend", "sync", "--out", "results.jsonl", "--resume")

    assert status == 1
    assert desk.told.read_line() == "4"
    assert desk.told.poll_line(0) is None
    assert [record.get("result") for record in desk.results()] == [1, None, 3, 4]
    assert "1 task in" in command.err.text
    assert "3 done earlier, 1 of which did not succeed" in command.err.text


def test_resume_reads_the_same_pipe_again(desk: Desk) -> None:
    """Lines of standard input are known by their number as well."""
    both = b'{"n": 1}\n{"n": 2}\n'
    options = ("--backend", "sync", "--out", "results.jsonl", "--resume")
    assert desk.run("jobs:count", *options, tasks="-", stdin=both[:9])[0] == 0
    assert desk.run("jobs:count", *options, tasks="-", stdin=both)[0] == 0

    assert [desk.told.read_line(), desk.told.read_line()] == ["1", "2"]
    assert desk.told.poll_line(0) is None
    assert [record["result"] for record in desk.results()] == [1, 2]


def test_resume_is_refused_when_the_input_changed(desk: Desk) -> None:
    """A result is never taken for that of another task; what came before the change is kept."""
    desk.write_tasks({"id": "a", "n": 1}, {"id": "b", "n": 2})
    desk.run("jobs:echo", "--backend", "sync", "--out", "results.jsonl")
    before = desk.out.read_bytes()
    desk.write_tasks({"id": "a", "n": 1}, {"id": "c", "n": 2}, {"id": "d", "n": 3})

    status, command = desk.run("jobs:echo", "--backend", "sync", "--out", "results.jsonl", "--resume")

    assert status == 2
    assert "tasks.jsonl:2: this line has a result, of a task with another id or type" in command.err.text
    assert desk.out.read_bytes() == before


def test_a_shorter_input_is_noticed(desk: Desk) -> None:
    """Results beyond the input's end make one wonder."""
    desk.write_tasks(*numbered(5))
    desk.run("jobs:echo", "--backend", "sync", "--out", "results.jsonl")
    desk.write_tasks(*numbered(2))

    status, command = desk.run("jobs:echo", "--backend", "sync", "--out", "results.jsonl", "--resume")

    assert status == 0
    assert "results.jsonl has results for lines beyond the end of tasks.jsonl" in command.err.text


def test_a_reader_that_goes_away_is_a_clear_error(desk: Desk) -> None:
    """`taskback ... | head -1`: status 1, one message, nothing left running."""
    desk.write_tasks(*numbered(1_000))
    read, write = os.pipe()
    os.close(read)

    command = desk.start("jobs:echo", stdout=write)
    os.close(write)

    assert command.finish() == 1
    assert "cannot write standard output: Broken pipe" in command.err.text
    assert "a run cannot be resumed when its results go to standard output" in command.err.text
    assert command.leaves_nothing()


def test_nobody_needs_to_read_standard_error(desk: Desk) -> None:
    """`2>&1 >/dev/null | head` takes nothing from the run, and its status stays."""
    desk.write_tasks(*numbered(5))
    run = f"{sys.executable} -m taskback run jobs:echo tasks.jsonl --backend sync --out results.jsonl"
    shell = f"{run} 2>&1 | true; exit ${{PIPESTATUS[0]}}"

    command = desk.start_command(program=["bash", "-c", shell])

    assert command.finish() == 0
    assert len(desk.results()) == 5


def test_a_full_disk_ends_the_run_and_resume_goes_on(desk: Desk) -> None:
    """The error names the file; the torn line is cut off, and in the end there is one result a task."""
    desk.write_tasks(*numbered(200))
    limited = (
        "import resource, runpy\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        "if __name__ == '__main__': runpy.run_module('taskback', run_name='__main__', alter_sys=True)"
    )
    command = desk.start(
        "jobs:echo", "--backend", "thread", "--out", "results.jsonl", program=[sys.executable, "-c", limited]
    )

    assert command.finish() == 1
    assert "cannot write results.jsonl: File too large" in command.err.text
    assert "to resume: " in command.err.text
    assert desk.out.stat().st_size == 5_000

    status, command = desk.run("jobs:echo", "--backend", "thread", "--out", "results.jsonl", "--resume")
    assert status == 0, command.err.text
    assert [record["result"] for record in desk.results()] == list(range(1, 201))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_nothing_but_a_file_is_resumed(desk: Desk) -> None:
    """A device cannot be read back, and --resume would refuse it: it is not advised."""
    desk.write_tasks(*numbered(3))

    status, command = desk.run("jobs:echo", "--backend", "sync", "--out", "/dev/full")

    assert status == 1
    assert "cannot write /dev/full: No space left on device" in command.err.text
    assert "a run cannot be resumed when its results go to /dev/full; give it --out FILE" in command.err.text
    assert "to resume" not in command.err.text


@pytest.mark.parametrize("backend", ["async", "thread", "process"])
def test_the_input_is_read_no_further_than_needed(desk: Desk, backend: str) -> None:
    """While a task holds everything up, a bounded number of lines is taken from the pipe."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    command = desk.start("jobs:gated", "--backend", backend, "--workers", "1", tasks="-", stdin=read)
    os.close(read)
    taken = 0
    line = json.dumps({"n": 0, "pad": "x" * 4_000}).encode() + b"\n"
    try:
        with open(write, "wb", buffering=0) as producer:
            while taken < 64 or desk.told.poll_line(0) is None:
                if producer.write(line) is None:  # the pipe is full
                    desk.told.read_line()
                    break
                taken += 1
            while producer.write(line) is not None:
                taken += 1
            assert taken < 100  # of them some 30 are in pipe and buffer
    finally:
        command.kill()


def peak_kib(desk: Desk, lines: int) -> int:
    """What a run of so many lines needs at the most, as its last task sees it."""
    with open(desk.tasks, "w") as tasks:
        tasks.writelines('{"do": "nothing", "pad": "................................"}\n' for _ in range(lines - 1))
        tasks.write('{"do": "peak"}\n')
    status, command = desk.run("jobs:chosen", "--backend", "sync", "--out", f"{lines}.jsonl")
    assert status == 0, command.err.text
    with open(desk.directory / f"{lines}.jsonl") as results:
        records: list[Any] = [json.loads(line) for line in results if f'"line": {lines},' in line]
    return int(records[0]["result"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its own peak memory from /proc")
def test_many_lines_take_no_more_memory_than_few(desk: Desk) -> None:
    """It reads lazily: what is kept does not grow with the input."""
    few, many = peak_kib(desk, 1_000), peak_kib(desk, 50_000)

    assert many < few * 1.1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its own peak memory from /proc")
def test_resuming_many_results_takes_little_memory(desk: Desk) -> None:
    """A few bytes a finished line, whatever the results hold."""
    few, done = peak_kib(desk, 1_000), 200_000
    with open(desk.tasks, "w") as tasks, open(desk.out, "w") as results:
        for line in range(1, done + 1):
            tasks.write("{}\n")
            record = {
                "id": f"line-{line}",
                "line": line,
                "type": None,
                "state": "succeeded",
                "result": "." * 100,
            }
            results.write(json.dumps(record) + "\n")
        tasks.write('{"do": "peak"}\n')

    status, command = desk.run("jobs:chosen", "--backend", "sync", "--out", "results.jsonl", "--resume")

    assert status == 0, command.err.text
    with open(desk.out) as results:
        peak = json.loads(list(results)[-1])["result"]
    assert peak < few + 4_096


def test_the_command_is_a_function_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """main() gives the exit status and leaves standard output as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "jobs", raising=False)
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "tasks.jsonl").write_text('{"n": 1}\n{"n": 2}\n')

    assert main(["run", "jobs:echo", "tasks.jsonl", "--backend", "sync"]) == 0

    print("afterwards", flush=True)
    lines = capfd.readouterr().out.splitlines()
    assert [record["result"] for record in in_order("\n".join(lines[:2]) + "\n")] == [1, 2]
    assert lines[2:] == ["afterwards"]


def test_importing_the_library_does_not_import_the_command() -> None:
    """Services and workers do not pay for it."""
    script = (
        "import sys, taskback; sys.exit(any(n.startswith(('taskback.cli', 'rich', 'argparse')) for n in sys.modules))"
    )

    assert run_python("-c", script).returncode == 0

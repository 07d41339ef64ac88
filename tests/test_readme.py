"""The README: its examples run as they stand, and its table says what the backends promise."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

import taskback
from tests.helpers import ROOT

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES: Final = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL))


def columns() -> Iterator[tuple[str, taskback.Promises]]:
    """The heads of the table's columns, and what stands in them."""
    yield "Sync", taskback.SyncTaskBackend.promises
    yield "Async", taskback.AsyncFireAndTrackBackend.promises
    yield "Thread", taskback.ThreadPoolTaskBackend.promises
    yield "Process", taskback.ProcessPoolTaskBackend.promises
    with ThreadPoolExecutor(1) as pool:
        yield "Executor, threads", taskback.ExecutorTaskBackend(pool=pool).promises
    with ProcessPoolExecutor(1) as pool:
        yield "Executor, processes", taskback.ExecutorTaskBackend(pool=pool).promises


def promises_table() -> str:
    """The table as Markdown."""
    heads, promises = zip(*columns(), strict=True)
    rows = [f"| promise | {' | '.join(heads)} |", f"|---|{':-:|' * len(heads)}"]
    for field in dataclasses.fields(taskback.Promises):
        marks = ["✓" if getattr(each, field.name) else "" for each in promises]
        rows.append(f"| {taskback.Promises.words(field.name)} | {' | '.join(marks)} |")
    return "\n".join(rows)


def test_the_table_of_promises_is_what_the_backends_promise():
    """Whoever changes a promise changes the README: `python -m tests.test_readme` writes the table."""
    found = re.search(r"<!-- promises -->\n(.*?)\n?<!-- /promises -->", README, re.DOTALL)

    assert found is not None
    assert found[1] == promises_table()


def run_example(name: str, folder: Path, *code: str) -> str:
    """Run an example, or code beside it, as a newcomer would; gives what it prints."""
    (folder / name).write_text(EXAMPLES[name], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", *(code or (name,))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_async_example_runs_as_it_stands(tmp_path):
    """Ten lines of async use."""
    assert re.fullmatch(r"[0-9a-f]{30} 6\n", run_example("app.py", tmp_path))


def test_the_sync_example_runs_as_it_stands(tmp_path):
    """Ten lines of sync use."""
    lines = run_example("script.py", tmp_path).splitlines()

    assert sorted(lines) == ["or not to be -> 4", "to be -> 2"]


@pytest.mark.parametrize("backend", ["SyncTaskBackend", "ThreadPoolTaskBackend", "AsyncFireAndTrackBackend"])
def test_the_handlers_example_runs_as_it_stands(tmp_path, backend):
    """Handlers by type, one of them async."""
    code = (
        f"import taskback, handlers\nwith taskback.{backend}(handlers.tasks) as backend:\n"
        "    print(backend.run_sync({'type': 'consolidation', 'paths': ['a', 'b']}))\n"
        "    print(backend.run_sync({'type': 'mail', 'to': 'you'}))"
    )

    assert run_example("handlers.py", tmp_path, "-c", code) == "2\nsent to you\n"


def test_the_context_example_runs_as_it_stands(tmp_path):
    """As a module, which workers can import."""
    assert run_example("requests.py", tmp_path, "-c", "import requests; print(requests.serve())") == "r-17\n"


def test_the_log_example_runs_as_it_stands(tmp_path):
    """What the worker logs is handled before the backend is shut down."""
    assert run_example("logs.py", tmp_path) == "payment: paid 7\nNone: closed\n"


def test_the_durable_example_runs_as_it_stands(tmp_path):
    """A task that is kept until it has run."""
    assert run_example("mails.py", tmp_path) == "sent to you\n"
    assert (tmp_path / "mails.db").exists()


def test_the_shell_example_runs_as_it_stands(tmp_path):
    """The command of the README, with its one task."""
    handler = re.search(r"cat jobs.py\n(.*?)    \$ echo", README, re.DOTALL)
    command = re.search(r"\$ (echo .*)\n", README)
    assert handler is not None
    assert command is not None
    (tmp_path / "jobs.py").write_text(re.sub(r"^    ", "", handler[1], flags=re.MULTILINE), encoding="utf-8")
    line = command[1].replace("taskback run", f'"{sys.executable}" -m taskback run')

    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert '"result": "HELLO"' in (tmp_path / "results.jsonl").read_text(encoding="utf-8")


if __name__ == "__main__":
    marked = re.sub(
        r"(<!-- promises -->\n).*?(<!-- /promises -->)",
        lambda found: f"{found[1]}{promises_table()}\n{found[2]}",
        README,
        flags=re.DOTALL,
    )
    (ROOT / "README.md").write_text(marked, encoding="utf-8")

"""The standard library's own tests of executors pass on ours; see stdlib_executors.py."""

from __future__ import annotations

from collections import Counter

import pytest

from tests import stdlib_executors
from tests.helpers import run_python
from tests.stdlib_executors import ENTRIES, Entry

SUBJECTS = {"test_as_completed", "test_init", "test_shutdown", "test_wait"}  # what is there for every kind of executor


@pytest.mark.timeout(400)  # they sleep for half a minute all in all, and some wait by the clock
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_the_tests_of_the_standard_library_pass(entry: Entry):
    """All but those that are listed with the reason, on this Python, also where they are of a newer one."""
    if stdlib_executors.find_tests() is None:
        pytest.skip("no installed Python has the package `test`")

    done = run_python("-m", "tests.stdlib_executors", entry.name, timeout=300)

    ends = [line.split() for line in done.stdout.splitlines() if line.startswith(("passed ", "failed ", "skipped "))]
    counts = Counter(end[0] for end in ends)
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts["failed"] == 0, done.stdout
    assert counts["passed"] >= 40, done.stdout
    assert {end[1].split(".")[0] for end in ends if end[0] == "passed"} >= SUBJECTS


PROVES_ITSELF = """if True:
    import sys, unittest
    from tests import stdlib_executors as runner
    entry = runner.ENTRIES["ThreadPool"]
    package = runner.find_tests()
    runner.substitute(entry, package)
    runner.tell_programs(entry, package)
    from taskback.pools import ThreadPool
    real = ThreadPool.submit
    def submit(pool, function, /, *args, **options):
        return real(pool, lambda: None)  # nothing of what is to be called
    ThreadPool.submit = submit
    wrong = [case for case in runner.cases(entry, package) if case._testMethodName in ("test_submit", "test_map")]
    result = runner.Told()
    unittest.TestSuite(wrong).run(result)
    sys.exit(0 if len(result.failures) == len(wrong) == 2 else 1)
"""


def test_an_executor_of_ours_that_does_wrong_fails_them():
    """They are really run on ours: one that calls nothing does not pass."""
    if stdlib_executors.find_tests() is None:
        pytest.skip("no installed Python has the package `test`")

    done = run_python("-c", PROVES_ITSELF)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("failed ") == 2


LISTED_IN_VAIN = """if True:
    import sys
    from dataclasses import replace
    from tests import stdlib_executors as runner
    listed = {"test_thread_pool.ThreadPoolExecutorTest.test_submit": "it can", "test_wait.None.test_none": "it is not"}
    runner.ENTRIES["ThreadPool"] = replace(runner.ENTRIES["ThreadPool"], skipped={}, failing=listed)
    real = runner.cases
    runner.cases = lambda *which: (case for case in real(*which) if case._testMethodName == "test_submit")
    sys.exit(runner.main("ThreadPool"))
"""


def test_a_test_is_not_listed_in_vain():
    """Neither one that passes nor one that is not there."""
    if stdlib_executors.find_tests() is None:
        pytest.skip("no installed Python has the package `test`")

    done = run_python("-c", LISTED_IN_VAIN)

    ends = sorted(line.split(maxsplit=2) for line in done.stdout.splitlines())
    assert done.returncode == 1, done.stdout + done.stderr
    assert ends == [
        ["failed", "test_thread_pool.ThreadPoolExecutorTest.test_submit", "passes, but is listed as one that cannot"],
        ["failed", "test_wait.None.test_none", "is listed, but there is no such test"],
    ]

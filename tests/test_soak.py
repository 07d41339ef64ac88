"""The soak can fail: it finds what is broken on purpose, and says how to see it anew."""

from __future__ import annotations

import subprocess

import pytest

from tests.helpers import run_python

LIMIT = 120  # seconds; the net under a hang, beyond the soak's own


def soak(*options: str) -> subprocess.CompletedProcess[str]:
    """Run it for a short while, always from the same seed on."""
    return run_python("-m", "soak", "--quiet", "--seed", "7", "--round-limit", "80", *options, timeout=LIMIT)


@pytest.mark.timeout(LIMIT + 10)
@pytest.mark.parametrize(
    ("way", "found"),
    [
        ("twice", "attempt 1 was called 2 times"),
        ("leak-descriptor", "file descriptor"),
    ],
)
def test_what_is_broken_on_purpose_is_found(way, found):
    """A task that is called twice, and what stays open, each fail it."""
    done = soak("--seconds", "0.1", "--round-seconds", "1", "--sabotage", way)

    assert done.returncode == 1, done.stdout[-6000:] + done.stderr[-6000:]
    assert found in done.stdout
    assert "again: scripts/soak --seed 7 --from-round 0 --seconds 60 --rate 50" in done.stdout
    assert f"--sabotage {way}" in done.stdout


@pytest.mark.timeout(LIMIT + 10)
def test_a_round_that_hangs_tells_where_everything_is():
    """A task that never ends is found by the soak's own deadline, with all stacks and what is unfinished."""
    done = soak("--seconds", "0.1", "--round-seconds", "1", "--sabotage", "hang", "--round-limit", "20")

    assert done.returncode == 1, done.stdout[-6000:] + done.stderr[-6000:]
    assert "did not end within 20 s" in done.stdout
    assert "all stacks" in done.stderr
    assert "Current thread" in done.stderr
    assert "(quick)" in done.stderr

"""`scripts/bench` measures, judges and tells, and no contender that hangs or dies holds it up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from benchmarks import published, table
from benchmarks.bars import PEERS, Bar, Line, Result, Verdict, all_kept, best_peer, judge
from benchmarks.contenders import KINDS, CannotError, made
from benchmarks.measure import Arm, ArmError
from benchmarks.rows import ROWS
from benchmarks.work import nothing
from tests.helpers import ROOT

TIME = Line("time", "a time")
RATE = Line("rate", "a rate", "/s", more_is_better=True)


def run_bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program, small and with what comes with Python alone."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--rounds", "1", "--scale", "0.01", "--without-peers", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


def test_two_rows_are_measured_and_told(tmp_path):
    """Each contender of a row has a figure of each round, in the table and in the file."""
    file = tmp_path / "figures.json"

    done = run_bench("--only", "round-trip,threads", "--json", str(file))

    assert done.returncode == 0, done.stderr
    lines = json.loads(file.read_text(encoding="utf-8"))["lines"]
    assert {*lines} == {line.name for row in ("round-trip", "threads") for line in ROWS[row].lines}
    assert {"backend", "pool", "stock", "mp.Pool", "pipe-anywhere"} <= lines["round-trip"]["rounds"].keys()
    assert {*lines["threads-burst"]["rounds"]} == {"thread-backend", "thread-pool", "stock-threads"}
    for line in lines.values():
        for figures in line["rounds"].values():
            assert len(figures) == 1
            assert 0 < figures[0] < float("inf")
    assert all(line["title"] in done.stdout for line in lines.values())


def test_a_bar_without_a_figure_is_missed(tmp_path):
    """Where numpy cannot be imported, ours cannot do a row that needs it: --check exits with 1, and says why."""
    (tmp_path / "numpy.py").write_text("raise ImportError('hidden by a test')\n", encoding="utf-8")

    done = run_bench("--only", "replaced", "--check", PYTHONPATH=str(tmp_path))

    assert done.returncode == 1, done.stderr
    assert "numpy is not installed: hidden by a test" in done.stdout


def test_an_unknown_row_is_refused():
    """With the names of those that there are."""
    done = run_bench("--only", "nonsense")

    assert done.returncode == 2
    assert "there are round-trip, burst," in done.stderr


@pytest.mark.parametrize(
    ("line", "bar", "ours", "verdict", "found"),
    [
        (TIME, Bar(0.5, "stock"), [4.0, 5.0, 6.0], Verdict.OK, 0.5),
        (TIME, Bar(0.5, "stock"), [4.0, 5.1, 6.0], Verdict.MISSED, 0.51),
        (TIME, Bar(0.85, PEERS), [4.0, 5.0, 6.0], Verdict.MISSED, 1.0),
        (TIME, Bar(5.0), [4.0, 5.0, 6.0], Verdict.OK, 5.0),
        (TIME, Bar(5.0, each=True), [4.0, 5.0, 6.0], Verdict.MISSED, 6.0),
        (TIME, Bar(2.0, "loky", more=True), [7.0, 7.0, 7.0], Verdict.OK, 2.0),
        (TIME, Bar(2.0, "loky", more=True), [7.1, 7.1, 7.1], Verdict.MISSED, pytest.approx(2.1)),
        (RATE, Bar(7.0, "stock"), [70.0, 70.0, 70.0], Verdict.OK, 7.0),
        (RATE, Bar(7.0, "stock"), [69.0, 69.0, 69.0], Verdict.MISSED, 6.9),
        (RATE, Bar(2.5, PEERS), [70.0, 70.0, 70.0], Verdict.OK, 7.0),
        (TIME, Bar(1.0, "nobody"), [1.0], Verdict.UNKNOWN, None),
        (TIME, Bar(1.0, "stock"), [], Verdict.NO_FIGURE, None),
    ],
)
def test_figures_are_held_against_bars(line, bar, ours, verdict, found):
    """At the bar is kept, beyond it is missed; the best peer is the one with the best median."""
    figures = {"backend": ours, "pool": [0.1], "pipe": [0.1], "stock": [10.0, 10.0, 10.0], "loky": [5.0, 5.0, 5.0]}

    judged = judge(line, bar, "backend", figures)

    assert (judged.verdict, judged.found) == (verdict, found)
    assert best_peer(line, figures) == ("stock" if line.more_is_better else "loky")


def test_a_ratio_is_that_of_the_rounds():
    """A round in which the machine was slow for all counts no more than another."""
    figures = {"backend": [1.0, 50.0, 2.0], "stock": [2.0, 100.0, 4.0]}

    assert judge(TIME, Bar(0.5, "stock"), "backend", figures).found == 0.5


def test_peers_left_out_on_purpose_are_not_missed():
    """A bar that is relative to them is passed over then, and only then; one that is missed fails all."""
    kept = Result(TIME, "backend", {"backend": [1.0]}, without_peers=True)
    kept.line = Line("time", "a time", bars=(Bar(0.85, PEERS), Bar(1.0)))

    assert [each.verdict for each in kept.judged()] == [Verdict.LEFT_OUT, Verdict.OK]
    assert all_kept([kept])

    kept.without_peers = False
    assert not all_kept([kept])

    missed = Result(Line("time", "a time", bars=(Bar(1.0),)), "backend", {"backend": [1.1]})
    assert not all_kept([kept, missed])


def test_markdown_tells_what_was_missed():
    """With figures, names, ratio, bar and verdict in one row."""
    line = Line("rate", "a rate", "/s", (Bar(7, "stock"), Bar(1, PEERS)), more_is_better=True)
    figures = {"backend": [300.0, 100.0, 200.0], "pool": [500.0], "stock": [50.0], "loky": [120.0]}

    row = table.markdown([Result(line, "backend", figures)], ["a machine", "versions"]).splitlines()[2]

    assert row == (
        "| a rate | 200/s (100–300) | 500/s | 50.0/s | **loky 120/s** | 1.67 × loky "
        "| 4.00 × stock (at least 7); 1.67 × the best peer (at least 1) | **MISSED**; ok |"
    )


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0, "s", "0"),
        (12.3e-6, "s", "12.3 µs"),
        (0.25, "s", "250 ms"),
        (2048.0, "bytes", "2.00 KB"),
        (1e6, "/s", "1,000,000/s"),
    ],
)
def test_amounts_read_well(value, unit, shown):
    """Three digits and a unit."""
    assert table.amount(value, unit) == shown


def test_the_readme_has_its_place(tmp_path, monkeypatch):
    """--readme replaces what stands between the marks, and nothing else."""
    copy = tmp_path / "README.md"
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    copy.write_text(before, encoding="utf-8")
    monkeypatch.setattr(published, "README", copy)

    table.write_readme("| a table |")

    after = copy.read_text(encoding="utf-8")
    assert "<!-- bench -->\n| a table |\n<!-- /bench -->" in after
    mark = published.place("bench")
    assert mark.sub("", after) == mark.sub("", before)


def test_bars_are_relative_to_contenders_of_their_row():
    """A name that nobody has would make a bar unknown for ever."""
    for row in ROWS.values():
        for line in row.lines:
            for bar in line.bars:
                assert bar.of in (None, PEERS, *row.contenders), line


def test_a_contender_that_is_not_installed_says_so(monkeypatch):
    """Its row goes on without it."""
    monkeypatch.setattr(KINDS["pebble"], "package", "a-distribution-that-is-nowhere")

    with pytest.raises(CannotError, match=r"not installed.*a-distribution-that-is-nowhere"):
        made("pebble", nothing)


@pytest.fixture
def arm():
    """A contender's process that is open; all of it is gone afterwards."""
    made_arm = Arm("threads", "thread-backend", 0.01)
    made_arm.answer(50)
    family = psutil.Process(made_arm.pid).children(recursive=True)
    yield made_arm
    made_arm.kill()
    assert not [each for each in family if each.is_running()]


def test_a_contender_that_hangs_is_given_up(arm):
    """It has a limit for each answer; one that is stopped gives none."""
    arm.pause()

    with pytest.raises(ArmError, match=r"nothing came within 0\.2 s"):
        arm.answer(0.2)


def test_a_contender_that_dies_is_told(arm):
    """At once, with how it ended."""
    os.killpg(arm.pid, signal.SIGKILL)
    arm.begin()

    with pytest.raises(ArmError, match="its process ended with -9"):
        arm.answer(50)

"""Control groups, as this machine has them and as others do."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskback import _cgroup
from tests.helpers import ROOT, write_files

Tree = Callable[[dict[str, str]], Path]

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Tree:
    """Puts files where the kernel would show them."""
    monkeypatch.setattr(_cgroup, "ROOT", str(tmp_path))

    def make(files: dict[str, str]) -> Path:
        write_files(tmp_path, files)
        return tmp_path

    return make


def test_version_2_is_held_to_what_is_above_it_too(tree):
    """The least of all limits counts, whoever sets it."""
    top = tree(
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/pod/memory.max": "4000000\n",
            "sys/fs/cgroup/pod/app/memory.max": "max\n",
            "sys/fs/cgroup/pod/app/memory.high": "3000000\n",
            "sys/fs/cgroup/pod/app/pids.max": "100\n",
            "sys/fs/cgroup/pod/pids.max": "50\n",
            "sys/fs/cgroup/pod/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/app/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/memory.oom.group": "1\n",
            "sys/fs/cgroup/pod/app/memory.oom.group": "0\n",
        }
    )

    assert _cgroup.memory_max() == 4_000_000
    assert _cgroup.memory_high() == 3_000_000
    assert _cgroup.pids_max() == 50
    assert _cgroup.cpu_quota() == 1.5
    assert _cgroup.oom_group() == str(top / "sys/fs/cgroup/pod")


def test_version_1_has_a_tree_for_each_controller(tree):
    """And a number near 2**63 for no limit."""
    tree(
        {
            "proc/self/cgroup": "5:memory:/app\n4:cpu,cpuacct:/app\n0::/\n",
            "proc/self/mountinfo": V1 + V2,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )

    found = _cgroup.group("memory")
    assert found is not None
    assert (found.version, found.path) == (1, "/app")
    assert _cgroup.cpu_quota() == 0.5
    assert _cgroup.memory_max() is None
    assert _cgroup.oom_group() is None


@pytest.mark.parametrize(
    ("path", "root"), [("/docker/x", "/docker/x"), ("/", "/"), ("/elsewhere", "/docker/x"), ("/../other", "/")]
)
def test_a_container_sees_its_own_group_as_the_top(tree, path, root):
    """Whether it has a namespace of its own, or a mount of what is its own, or neither."""
    tree(
        {
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": V2.replace(" / ", f" {root} ", 1),
            "sys/fs/cgroup/memory.max": "1000\n",
        }
    )

    assert _cgroup.memory_max() == 1000


def test_where_nothing_is_mounted_nothing_is_limited(tree):
    """Nor where there is no proc."""
    assert _cgroup.group("memory") is None
    tree({"proc/self/cgroup": "0::/\njunk\n", "proc/self/mountinfo": "junk\n"})

    assert _cgroup.group("memory") is None
    assert (_cgroup.cpu_quota(), _cgroup.memory_max(), _cgroup.pids_max(), _cgroup.oom_group()) == (None,) * 4


@pytest.fixture
def quota() -> Iterator[Path]:
    """A control group of this machine that may use half a CPU's time."""
    found = _cgroup.group("cpu")
    if found is None:
        pytest.skip("no control group is mounted here")
    folder = Path(found.folders[0]) / f"taskback-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("none can be made")
    try:
        if found.version == 2:
            (folder / "cpu.max").write_text("50000 100000")
        else:
            (folder / "cpu.cfs_quota_us").write_text("50000")
        yield folder
    except OSError:
        pytest.skip("it takes no quota")
    finally:
        folder.rmdir()


def test_a_quota_of_this_machine_is_honoured(quota):
    """By a process that is put there."""
    code = (
        f"import os; open({str(quota / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        "from taskback import _cgroup; from taskback.pools import _os; print(_cgroup.cpu_quota(), _os.available_cpus())"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "0.5 1\n", "")
    assert os.path.isdir(quota)

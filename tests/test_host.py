"""The memory of a machine as its files tell it: made-up machines, by hand."""

import numpy as np
import pytest

from lnflax import host

MEMINFO = (
    "MemTotal:       4000000 kB\nMemFree:         100000 kB\nMemAvailable:   2000000 kB\nHugePages_Total:       0\n"
)
FREE = 2000000 * 1024


def machine(root, **files):
    """Files by path, `/` written `__`."""
    for path, text in {"proc__meminfo": MEMINFO, **files}.items():
        file = root / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def group(folder, limit, used, stat, version=2):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    values = zip((*names, "memory.stat"), (limit, used, stat), strict=True)
    return {f"sys__fs__cgroup__{folder}{name}": text for name, text in values}


def test_a_machine_without_limits(tmp_path):
    assert host.available(machine(tmp_path)) == FREE


def test_a_container_of_version_2_and_its_cache(tmp_path):
    files = group("", "1000000000\n", "600000000\n", "anon 1\ninactive_file 250000000\n")
    assert host.available(machine(tmp_path, proc__self__cgroup="0::/\n", **files)) == 650_000_000


def test_the_tightest_group_above_this_one(tmp_path):
    files = {
        **group("jobs__", "900000000\n", "100000000\n", "inactive_file 0\n"),
        **group("jobs__one__", "max\n", "50000000\n", "inactive_file 0\n"),
    }
    assert host.available(machine(tmp_path, proc__self__cgroup="0::/jobs/one\n", **files)) == 800_000_000


def test_version_1(tmp_path):
    text = "5:cpu,cpuacct:/other\n4:memory:/job\n0::/\n"
    files = group("memory__job__", "700000000\n", "800000000\n", "total_inactive_file 300000000\n", version=1)
    assert host.available(machine(tmp_path, proc__self__cgroup=text, **files)) == 200_000_000
    files = group("memory__job__", "9223372036854771712\n", "1\n", "", version=1)
    assert host.available(machine(tmp_path, proc__self__cgroup=text, **files)) == FREE


def test_a_group_that_uses_more_than_it_may_has_nothing(tmp_path):
    files = group("", "1000\n", "2000\n", "inactive_file 0\n")
    assert host.available(machine(tmp_path, **files)) == 0


def test_a_system_without_those_files(tmp_path):
    assert 0 < host.available(tmp_path) < 2**50


def test_the_peak_sees_what_was_given_back():
    before = host.peak()
    values = np.ones(2**23)  # 64 MiB
    assert host.peak() >= values.nbytes
    del values
    first = host.peak()
    host.reset_peak()
    assert first >= before and 2**20 < host.peak() <= first


def test_without_the_file_of_this_process(monkeypatch):
    class Nowhere:
        def __init__(self, path):
            raise OSError

    exact = host.peak()
    monkeypatch.setattr(host, "Path", Nowhere)
    assert host.peak() == pytest.approx(exact, rel=0.5)
    host.reset_peak()

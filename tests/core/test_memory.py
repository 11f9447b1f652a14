"""Available memory within cgroup limits."""

import sys

import pytest

from convoy.core.memory import available_memory, peak_memory, resident_memory
from tests.processes import run


@pytest.fixture
def kernel(tmp_path):
    """Writes /proc/meminfo, this process's cgroups and their files; returns the available memory."""

    def write(available_kb, cgroup, files):
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available_kb} kB\n")
        (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
        for name, content in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return available_memory(tmp_path)

    return write


def test_without_cgroup_limit_all_of_the_machines_free_memory(kernel):
    files = {"a/memory.max": "max\n", "a/memory.current": "5\n", "a/memory.stat": "inactive_file 1\n"}
    assert kernel(2000, "0::/a\n", files) == 2000 * 1024


def test_parent_cgroup_limits_apply_and_page_cache_counts_as_free(kernel):
    files = {"a/memory.max": "1000000\n", "a/memory.current": "400000\n", "a/memory.stat": "inactive_file 100000\n"}
    files |= {"a/b/memory.max": "900000\n", "a/b/memory.current": "0\n", "a/b/memory.stat": "anon 0\n"}
    assert kernel(2000, "0::/a/b\n", files) == 700_000


def test_cgroup_version_1_in_a_container(kernel):
    files = {"memory/memory.limit_in_bytes": "500000\n", "memory/memory.usage_in_bytes": "450000\n"}
    files |= {"memory/memory.stat": "total_inactive_file 10000\ncache 20000\n"}
    assert kernel(2000, "3:cpu:/x\n4:memory:/docker/abc\n0::/\n", files) == 60_000


def test_cgroup_above_its_limit_leaves_nothing(kernel):
    files = {"a/memory.max": "100\n", "a/memory.current": "2000\n", "a/memory.stat": "inactive_file 500\n"}
    assert kernel(2000, "0::/a\n", files) == 0


def test_memory_of_this_process_and_machine():
    assert 0 < resident_memory() <= 1.1 * peak_memory() < 2**40
    assert 2**20 < available_memory() < 2**50


@pytest.mark.parametrize(("kilobytes", "code"), [(1_000_000, 2), (50_000_000, 3)])
def test_limited_address_space_is_reported_and_refused_where_tensorflow_cannot_start(kilobytes, code, tmp_path):
    command = ["sh", "-c", f'ulimit -v {kilobytes}; exec "$@"', "sh", sys.executable, "-m", "convoy", "verify"]
    result = run([*command, f"--data={tmp_path}"])
    assert result.returncode == code  # 3: it went on to look at the data
    assert f"ulimit -v {kilobytes}" in result.stderr.splitlines()[0]
    assert "Traceback" not in result.stderr

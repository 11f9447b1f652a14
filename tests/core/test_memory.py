import pytest

from convoy.core.memory import available_memory, peak_memory, resident_memory


@pytest.fixture
def kernel(tmp_path):
    """Writes what a kernel tells: /proc/meminfo, this process's cgroups, and the cgroups' files."""

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


def test_free_memory_is_the_machines_where_no_cgroup_limits_it(kernel):
    files = {"a/memory.max": "max\n", "a/memory.current": "5\n", "a/memory.stat": "inactive_file 1\n"}
    assert kernel(2000, "0::/a\n", files) == 2000 * 1024


def test_a_cgroup_limits_all_below_it_and_its_page_cache_is_free(kernel):
    files = {"a/memory.max": "1000000\n", "a/memory.current": "400000\n", "a/memory.stat": "inactive_file 100000\n"}
    files |= {"a/b/memory.max": "900000\n", "a/b/memory.current": "0\n", "a/b/memory.stat": "anon 0\n"}
    assert kernel(2000, "0::/a/b\n", files) == 700_000


def test_cgroups_of_version_1_count_too_also_those_of_a_container_that_sees_its_root_alone(kernel):
    files = {"memory/memory.limit_in_bytes": "500000\n", "memory/memory.usage_in_bytes": "450000\n"}
    files |= {"memory/memory.stat": "total_inactive_file 10000\ncache 20000\n"}
    assert kernel(2000, "3:cpu:/x\n4:memory:/docker/abc\n0::/\n", files) == 60_000


def test_a_cgroup_that_holds_more_than_its_limit_leaves_nothing(kernel):
    files = {"a/memory.max": "100\n", "a/memory.current": "2000\n", "a/memory.stat": "inactive_file 500\n"}
    assert kernel(2000, "0::/a\n", files) == 0


def test_memory_of_this_process_is_told():
    assert 0 < resident_memory() <= 1.1 * peak_memory() < 2**40
    assert 2**20 < available_memory() < 2**50

"""What a container may use, read from folders laid out as Linux lays out its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from loupe.engines import machine


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        pytest.param({"cpu.max": "150000 100000\n"}, "0::/\n", 2, id="one and a half, in a container"),
        pytest.param({"cpu.max": "max 100000\n"}, "0::/\n", None, id="no limit"),
        pytest.param({}, "0::/\n", None, id="no such files"),
        pytest.param({"cpu.max": "20000 100000\n"}, "0::/\n", 1, id="less than one"),
        pytest.param({"cpu.max": "nonsense"}, "0::/\n", None, id="not understood"),
        pytest.param(
            {"pod/cpu.max": "100000 100000\n", "pod/box/cpu.max": "300000 100000\n"}, "0::/pod/box\n", 1,
            id="the smallest of those above counts",
        ),
        pytest.param(
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/docker/1\n", 4, id="version 1",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", None,
            id="version 1 without a limit",
        ),
    ],
)  # fmt: skip
def test_the_limit_of_a_control_group_is_found(
    tmp_path: Path, files: dict[str, str], membership: str, expected: int | None
) -> None:
    write(tmp_path / "cgroup", files)
    write(tmp_path, {"membership": membership})
    assert machine.quota(tmp_path / "cgroup", tmp_path / "membership") == expected


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert machine.quota(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        pytest.param({}, "0::/\n", 800 << 10, id="no groups: the machine's"),
        pytest.param(
            {"memory.max": "600000\n", "memory.current": "200000\n", "memory.stat": "anon 1\ninactive_file 50000\n"},
            "0::/\n", 450_000, id="a container's",
        ),
        pytest.param(
            {"memory.max": "max\n", "memory.current": "200000\n", "memory.stat": "inactive_file 0\n"},
            "0::/\n", 800 << 10, id="no limit",
        ),
        pytest.param(
            {
                "memory/memory.limit_in_bytes": "300000\n", "memory/memory.usage_in_bytes": "100000\n",
                "memory/memory.stat": "total_inactive_file 10\n",
            },
            "9:memory:/docker/1\n", 200_010, id="version 1",
        ),
    ],
)  # fmt: skip
def test_the_memory_that_is_left_is_the_least_of_all(
    tmp_path: Path, files: dict[str, str], membership: str, expected: int
) -> None:
    write(tmp_path / "cgroup", files)
    write(tmp_path, {"membership": membership, "meminfo": "MemTotal: 1000 kB\nMemAvailable: 800 kB\n"})
    assert machine.memory_left(tmp_path / "cgroup", tmp_path / "membership", tmp_path / "meminfo") == expected


def test_memory_that_is_not_known_is_none(tmp_path: Path) -> None:
    assert machine.memory_left(tmp_path / "a", tmp_path / "b", tmp_path / "c") is None

"""What the kernel counts of a container, from files as both versions of its control groups have them."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from agent.executors.docker.cgroup import Account, Reading

PATIENCE = 20.0


def old(root: Path, cpu_ns: int, memory: int) -> None:
    """Version 1, as Docker lays it out without systemd."""
    for name, files in {
        "cpuacct": {"cpuacct.usage": f"{cpu_ns}\n"},
        "memory": {
            "memory.usage_in_bytes": f"{memory}\n",
            "memory.stat": "cache 5\ntotal_inactive_file 1000\n",
            "memory.max_usage_in_bytes": "7777777\n",
        },
    }.items():
        write(root / name / "docker" / "abc", files)


def new(root: Path, cpu_ns: int, memory: int) -> None:
    """Version 2, as Docker lays it out with systemd."""
    files = {
        "cpu.stat": f"usage_usec {cpu_ns // 1000}\nuser_usec 1\n",
        "memory.current": f"{memory}\n",
        "memory.stat": "anon 5\ninactive_file 1000\n",
        "memory.peak": "7777777\n",
    }
    write(root / "system.slice" / "docker-abc.scope", files)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.new").write_text(text)
        (folder / f"{name}.new").replace(folder / name)


async def until(account: Account, cpu_ns: int) -> Reading:
    def look() -> Reading:
        until = time.monotonic() + PATIENCE
        while (newest := account.newest) is None or newest.cpu_ns != cpu_ns:
            assert time.monotonic() < until
        return newest

    return await asyncio.to_thread(look)


@pytest.mark.parametrize("layout", [old, new])
async def test_the_most_memory_and_the_last_cpu_are_kept_after_the_end(tmp_path: Path, layout: object) -> None:
    assert callable(layout)
    account = Account("abc", root=tmp_path)
    assert account.newest is None
    for cpu, memory in ((1_000_000, 9_001_000), (20_000_000, 501_000)):
        await asyncio.to_thread(layout, tmp_path, cpu, memory)
        reading = await until(account, cpu)
    await asyncio.to_thread(shutil.rmtree, tmp_path)
    async with asyncio.timeout(PATIENCE):
        await account._task  # by itself: the container is gone
    assert account.newest is not None
    assert account.newest.stats() == reading.stats()
    assert reading.memory == 9_000_000
    assert reading.stats()["cpu_stats"]["cpu_usage"]["total_usage"] == 20_000_000
    await account.close()


@pytest.mark.parametrize("layout", [old, new])
async def test_where_only_the_cache_of_files_was_seen_the_kernels_peak_counts(tmp_path: Path, layout: object) -> None:
    assert callable(layout)
    await asyncio.to_thread(layout, tmp_path, 3_000_000, 900)
    account = Account("abc", root=tmp_path)
    reading = await until(account, 3_000_000)
    assert reading.memory == 7777777
    await account.close()


async def test_an_engine_elsewhere(tmp_path: Path) -> None:
    account = Account("abc", root=tmp_path / "nowhere")
    await account.close()
    assert account.newest is None

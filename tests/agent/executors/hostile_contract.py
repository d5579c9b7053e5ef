"""What no job may do, whatever executor runs it: a suite that a test module runs by subclassing it.

The jobs are real programs (`hostile_programs`) that try, and tell what came of it. So this is not for the fake
executor, which runs none, nor for bare processes (RAP_ALLOW_UNISOLATED), which can do all of this.

Daemons, and processes that outlive their job, are in `process_contract`; outputs that lead astray are in
`test_hostile_outputs`.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from attrs import evolve

from agent.disk import Disk, Watch, note_start
from agent.executors.base import Executor, Exit, Run
from common.clock import SystemClock
from tests.agent.executors import hostile_programs as programs
from tests.agent.executors.executor_contract import MIB, PATIENCE, Maker, Suite, ended, output, pipe_from

CANARY = "canary-of-another-workspace"
PROCESSES = 1024
"""What an executor lets one job have (docs/security.md)."""


@contextlib.contextmanager
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the host that has nothing to do with the job, with a secret in its environment and command line."""
    program = "import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, CANARY], stdin=subprocess.PIPE, env={"SECRET": CANARY}
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE)


def plant(root: Path) -> list[str]:
    """Secrets where an agent has them: another workspace, another job's volume and notes."""
    places = (
        "high/workspaces/other/secret.csv",
        "volumes/other/secret.csv",
        "state/other-001/log",
        "medium/secret.csv",
    )
    for place in places:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CANARY)
        path.chmod(0o666)
    return [str(root / place) for place in places]


class Services:
    """Listeners of the host, of every sort that a job might find; `knocks` says who was reached."""

    def __init__(self, folder: Path) -> None:
        self.knocks: list[str] = []
        self._sockets: list[socket.socket] = []
        name = f"hostile-{os.getpid()}-{id(self)}"
        tcp = self._open(socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0), "tcp")  # all addresses is the point
        udp = self._open(socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0), "udp")  # the same
        self._open(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{name}", "abstract")
        self._open(socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket"), "unix")
        hosts = ["127.0.0.1", *_addresses()]
        self.plan: dict[str, Any] = {
            "tcp_port": tcp.getsockname()[1],
            "udp_port": udp.getsockname()[1],
            "hosts": hosts,
            "udp_hosts": hosts,
            "udp_answer": "answered",
            "abstract": name,
            "unix": str(folder / "socket"),
        }

    def _open(self, family: int, kind: int, address: Any, name: str) -> socket.socket:
        mine = socket.socket(family, kind)
        mine.bind(address)
        self._sockets.append(mine)
        if kind == socket.SOCK_STREAM:
            mine.listen()
        threading.Thread(target=self._serve, args=(mine, kind, name), daemon=True).start()
        return mine

    def _serve(self, mine: socket.socket, kind: int, name: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                if kind == socket.SOCK_STREAM:
                    mine.accept()[0].close()
                else:
                    _, whom = mine.recvfrom(100)
                    if whom is None:
                        return  # closed
                    mine.sendto(b"welcome", whom)
                self.knocks.append(name)

    def close(self) -> None:
        for mine in self._sockets:
            with contextlib.suppress(OSError):
                mine.shutdown(socket.SHUT_RDWR)
            mine.close()


def _addresses() -> list[str]:
    """The host's own addresses beside loopback."""
    found = [
        address.address
        for each in psutil.net_if_addrs().values()
        for address in each
        if address.family == socket.AF_INET
    ]
    return sorted(set(found) - {"127.0.0.1"})


async def attempted(executor: Executor, maker: Maker, program: str, plan: Mapping[str, Any]) -> dict[str, str]:
    """What a hostile program could do, by name; it has tried everything when this returns."""
    run = maker("python", "-c", program, env={"PLAN": json.dumps(plan)})
    await executor.execute(run)
    exit = await ended(executor, run)
    said = await output(executor, run)
    assert exit.code == 0, (exit, said)
    told = json.loads(said)
    assert told["attempts"] > 5
    done: dict[str, str] = told["done"]
    return done


class CuriousContract(Suite):
    """Attempts to get out, which come to nothing."""

    system_is_shared = True
    """Whether the job sees the host's own /usr, and not an image's."""
    possible = frozenset[str]()
    """Attempts that this executor lets succeed, and docs/security.md says so."""

    async def test_reading_what_belongs_to_others(self, executor: Executor, maker: Maker, tmp_path: Path) -> None:
        device = os.stat(tmp_path).st_dev
        with stranger() as victim:
            plan = {
                "yranac": CANARY[::-1],
                "secrets": await asyncio.to_thread(plant, tmp_path),
                "victim": victim.pid,
                "device": [os.major(device), os.minor(device)],
                "disks": ["/dev/sda", "/dev/vda", "/dev/nvme0n1", "/dev/mem"],
            }
            done = await attempted(executor, maker, programs.READ, plan)
            assert done == {}, done

    async def test_reaching_services(self, executor: Executor, maker: Maker, tmp_path: Path) -> None:
        services = await asyncio.to_thread(Services, tmp_path)
        try:
            with socket.create_connection(("127.0.0.1", services.plan["tcp_port"])):
                pass
            done = await attempted(executor, maker, programs.CONNECT, services.plan)
            assert done == {}, done
        finally:
            await asyncio.to_thread(services.close)
        assert services.knocks in (["tcp"], []), "beside our own"

    async def test_meddling_with_the_machine(self, executor: Executor, maker: Maker) -> None:
        with stranger() as victim:
            plan = {
                "victim": victim.pid,
                "agent": os.getpid(),
                "isolated": True,
                "system_is_shared": self.system_is_shared,
            }
            done = await attempted(executor, maker, programs.MEDDLE, plan)
            assert set(done) <= self.possible, done
            assert victim.poll() is None


class HostileContract(CuriousContract):
    """The same, and attempts to use the machine up, which end with the job that makes them."""

    tmp_is_memory = True
    """Whether /tmp counts as memory, and so ends at that limit. Else it is disk, and the agent's watch ends the job."""
    processes_are_bounded = True
    """Whether the kernel keeps the number of processes down. Else whoever supervises the run sees it, and ends it."""

    async def test_fork_bomb(self, executor: Executor, maker: Maker) -> None:
        env = {"MOST": str(3 * PROCESSES)}
        run = maker("python", "-c", programs.FORK_BOMB, env=env, seconds=2)
        before = len(psutil.pids())
        most = 0
        async with pipe_from(run.volume / "alive") as alive:
            await executor.execute(run)
            assert await alive() == b"x"
            bomb = asyncio.create_task(ended(executor, run))
            while not bomb.done():
                most = max(most, await asyncio.to_thread(lambda: len(psutil.pids())))
                await executor.status(run)
            assert await alive() == b"", "nobody of it is left"
        assert (await bomb).code == 137
        if self.processes_are_bounded:
            assert most - before <= 1.5 * PROCESSES, "other tests may start some of their own"

    async def test_memory_bomb_of_several_processes(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", programs.MEMORY_BOMB, env={"EACH_MIB": "80"}, memory=160 * MIB, seconds=30)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code != 0
        assert not exit.timed_out
        assert "had it" not in await output(executor, run)

    @pytest.mark.parametrize("folder", ["/dev/shm", "/tmp"])  # the job's own
    async def test_filling_memory_by_files(self, executor: Executor, maker: Maker, folder: str) -> None:
        if folder != "/dev/shm" and not self.tmp_is_memory:  # the same
            return  # see the next test
        exit, said = await self.filled(executor, maker, folder, most=400 * MIB)
        assert exit.code != 0
        assert "had it" not in said

    async def filled(self, executor: Executor, maker: Maker, folder: str, *, most: int) -> tuple[Exit, str]:
        """How a job ends that writes into a folder as much as it can, with 128 MiB of memory; what it said."""
        env = {"FOLDER": folder, "MOST": str(most), "HOLD": "0"}
        run = maker("python", "-c", programs.FILL, env=env, memory=128 * MIB, seconds=60)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert not exit.timed_out
        return exit, await output(executor, run)

    @pytest.mark.parametrize("place", ["volume", "log", "tmp"])
    async def test_filling_the_disk(self, executor: Executor, maker: Maker, place: str) -> None:
        if place == "tmp" and self.tmp_is_memory:
            return  # see the test before
        # Of files that are larger than the limit the kernel takes care: see the next test.
        limit = 8 * MIB if place == "log" else 20 * MIB
        folder = {"volume": ".", "tmp": "/tmp"}.get(place, "")  # the job's own
        env = {"FOLDER": folder, "MOST": str(100 * MIB), "HOLD": "1000", "MIB": "3"}
        run = limited(maker("python", "-c", programs.FLOOD if place == "log" else programs.FILL, env=env), limit)
        notes = maker.root / "notes"
        await asyncio.to_thread(note_start, run.volume, notes, threading.Event())
        await executor.execute(run)
        watch = Watch(Disk(maker.root, 0), executor, SystemClock(), run, notes, interval=0.05)
        guard = asyncio.create_task(watch.guard())
        exit = await ended(executor, run)
        guard.cancel()
        await asyncio.gather(guard, return_exceptions=True)
        assert exit.terminated or place == "log", "one file: the kernel may be quicker"
        assert await watch.filled(exit)

    async def test_large_file(self, executor: Executor, maker: Maker) -> None:
        run = limited(maker("python", "-c", programs.LARGE_FILE, env={"MIB": "20"}), 10 * MIB)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code in {3, 128 + 25}, await output(executor, run)
        assert (run.volume / "large").stat().st_size == 10 * MIB


def limited(run: Run, disk_bytes: int) -> Run:
    """The run with a limit on what it writes."""
    return evolve(run, limits=evolve(run.limits, disk_bytes=disk_bytes))

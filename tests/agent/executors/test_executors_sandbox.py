"""The sandbox executor, with bubblewrap and bare: the contracts, and what only it promises."""

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from agent.executors.base import Executor, ExecutorError, Phase, Run, Unusable
from agent.executors.sandbox import cgroups
from agent.executors.sandbox.executor import SandboxExecutor
from agent.executors.sandbox.notes import Notes, Started
from agent.images import ImageTable, Interpreter
from tests.agent.executors.executor_contract import MIB, Maker, Subject, ended, output, pipe_from, pipe_to
from tests.agent.executors.process_contract import DAEMON, READY_THEN_GO, ProcessContract, start_doomed_agent

pytestmark = pytest.mark.slow  # real processes, some of them waiting for a time limit

IMAGES = ImageTable({**ImageTable.default().entries, "sh": Interpreter(command=("/bin/sh",))})


class Sandboxed:
    """The sandbox executor as the contract sees it: with bubblewrap, and control groups if they can be had."""

    image = "python:v2"

    def make(self) -> Executor:
        return SandboxExecutor(IMAGES, sample_seconds=0.05)

    def quick(self, *, log: str = "", code: int = 0, writes: str = "") -> tuple[str, ...]:
        lines = [
            f"print({log!r})" if log else "",
            f"open({writes!r}, 'w')" if writes else "",
            f"raise SystemExit({code})",
        ]
        return ("python", "-c", "\n".join(lines))

    def hang(self) -> tuple[str, ...]:
        return ("python", "-c", "import time; time.sleep(1000)")


class Bare(Sandboxed):
    """The same without bubblewrap and without control groups."""

    def make(self) -> Executor:
        return SandboxExecutor(
            IMAGES, allow_unisolated=True, bubblewrap_path=None, groups=cgroups.OFF, sample_seconds=0.05
        )


class SandboxContract(ProcessContract):
    """What the sandbox executor promises with and without bubblewrap."""

    @pytest.fixture
    async def executor(self, subject: Subject, maker: Maker, tmp_path: Path) -> AsyncIterator[Executor]:
        executor = subject.make()
        await executor.check()
        yield executor
        for run in maker.made:
            await executor.cleanup(run)
            assert not run.state_dir.exists()
        ours = [line for process in psutil.process_iter(["cmdline"]) for line in process.info["cmdline"] or ()]
        assert not any(str(tmp_path / "state") in line for line in ours), "a supervisor was left"

    async def gone(self, run: Run) -> None:
        fd = await asyncio.to_thread((await self.started(run)).open_supervisor)
        if fd is not None:
            await _pidfd(fd)

    async def started(self, run: Run) -> Started:
        started = await asyncio.to_thread(Notes(run.state_dir).started)
        assert started is not None
        return started

    async def test_killed_supervisor(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", "open('ran', 'a').write('x')\n" + DAEMON + "time.sleep(1000)")
        async with pipe_from(run.volume / "alive") as alive:
            await executor.execute(run)
            assert await alive() == b"x"
            waiter = asyncio.create_task(ended(executor, run))
            os.kill((await self.started(run)).supervisor, signal.SIGKILL)
            exit = await waiter
            assert await alive() == b""
        assert exit.code == 137
        assert not exit.terminated
        assert exit.lost == "the supervisor was killed"
        await executor.execute(run)
        assert (await subject.make().status(run)).exit == exit
        assert (run.volume / "ran").read_text() in {"", "x"}

    async def test_restarted_machine(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.hang())
        await executor.execute(run)
        notes = json.loads((run.state_dir / "started").read_bytes())
        await executor.terminate(run)
        (run.state_dir / "exit.json").unlink()
        (run.state_dir / "terminate").unlink()
        (run.state_dir / "started").write_text(json.dumps({**notes, "boot_id": "another"}))
        exit = (await executor.status(run)).exit
        assert exit is not None
        assert exit.code == 137
        assert exit.lost == "the machine restarted"

    async def test_a_number_used_again_is_not_our_supervisor(
        self, subject: Subject, executor: Executor, maker: Maker
    ) -> None:
        run = maker(*subject.quick())
        await executor.execute(run)
        await ended(executor, run)
        (run.state_dir / "exit.json").unlink()
        notes = json.loads((run.state_dir / "started").read_bytes())
        (run.state_dir / "started").write_text(json.dumps({**notes, "supervisor": os.getpid()}))
        exit = await ended(executor, run)
        await executor.terminate(run)
        assert exit.lost

    async def test_no_note_no_job(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", "open('ran', 'w')")
        (run.state_dir / "started.tmp").mkdir(parents=True)
        with pytest.raises(ExecutorError, match=r"started\.tmp") as caught:
            await executor.execute(run)
        assert not caught.value.fatal
        assert (await executor.status(run)).phase is Phase.ABSENT
        (run.state_dir / "started.tmp").rmdir()
        assert not (run.volume / "ran").exists()
        await executor.execute(run)
        assert (await ended(executor, run)).code == 0

    async def test_agent_killed_before_its_launcher_began(
        self, subject: Subject, executor: Executor, maker: Maker
    ) -> None:
        run = maker("python", "-c", "open('ran', 'a').write('x')")
        run.state_dir.mkdir(parents=True)
        (run.state_dir / "lock").touch()
        with Notes(run.state_dir).locked():
            async with pipe_from(run.volume / "launcher") as launcher:
                agent = await start_doomed_agent(self.doomed + _LAUNCH_ONLY, run)
                fd = os.pidfd_open(int(await launcher()))
                os.kill(agent.pid, signal.SIGKILL)
                await agent.wait()
        await _pidfd(fd)
        assert (await executor.status(run)).phase is Phase.ABSENT
        await executor.execute(run)
        assert (await ended(executor, run)).code == 0
        assert (run.volume / "ran").read_text() == "x"

    async def test_stopped_supervisor_is_ended(
        self, executor: Executor, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agent.executors.sandbox.executor.TERMINATE_SECONDS", 0.01)
        run = maker("python", "-c", DAEMON + "time.sleep(1000)")
        async with pipe_from(run.volume / "alive") as alive:
            await executor.execute(run)
            assert await alive() == b"x"
            os.kill((await self.started(run)).supervisor, signal.SIGSTOP)
            await executor.terminate(run)
            assert await alive() == b""
        exit = (await executor.status(run)).exit
        assert exit is not None
        assert exit.terminated

    async def test_termination_by_others_is_no_cancellation(
        self, subject: Subject, executor: Executor, maker: Maker
    ) -> None:
        run = maker(*subject.hang())
        await executor.execute(run)
        os.kill((await self.started(run)).supervisor, signal.SIGTERM)
        exit = await ended(executor, run)
        assert exit.code == 137
        assert not exit.terminated

    async def test_memory_limit_counts_the_whole_tree(self, executor: Executor, maker: Maker) -> None:
        code = f"""
import os, time
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(os.urandom(1) * {60 * MIB})
        time.sleep(1000)
os.wait()
"""
        run = maker("python", "-c", code, memory=150 * MIB)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.oom_killed
        assert exit.code == 137

    async def test_samples_of_a_running_job(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        # The job ends when it finds a sample of itself; in the sandbox it cannot, so the test reads for it.
        run = maker("python", "-c", f"held = bytearray({64 * MIB}); {READY_THEN_GO}")
        async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
            await executor.execute(run)
            assert await ready()
            while (sample := await subject.make().sample(run)).get("mem_mb_peak", 0) < 64:
                assert (await executor.status(run)).phase is Phase.RUNNING
            assert set(sample) == {"cpu_mean", "cpu_peak", "mem_mb_mean", "mem_mb_peak"}
            go()
            assert (await ended(executor, run)).metrics["mem_mb_peak"] >= 64

    async def test_log_is_bounded(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        bounded = SandboxExecutor(
            IMAGES,
            allow_unisolated=True,
            bubblewrap_path=None if isinstance(subject, Bare) else "bwrap",
            sample_seconds=0.05,
            log_bytes=1000,
        )
        code = "while True: print('x' * 99, flush=True)"
        run = maker("python", "-c", code)
        await bounded.execute(run)
        while len(await bounded.logs(run, 0, 10_000)) < 1000:
            assert (await bounded.status(run)).phase is Phase.RUNNING
        assert len(await bounded.logs(run, 0, 10_000)) <= 1000
        assert await bounded.logs(run, 1000, 10_000) == b""
        await bounded.terminate(run)

    async def test_unknown_image(self, executor: Executor, maker: Maker) -> None:
        run = maker("x.do", image="stata-mp:latest")
        for step in (executor.prepare, executor.execute):
            with pytest.raises(ExecutorError, match=r"stata-mp:latest.*RAP_SANDBOX_IMAGES") as caught:
                await step(run)
            assert caught.value.fatal
        assert (await executor.status(run)).phase is Phase.ABSENT

    @pytest.mark.parametrize("env", [{"A=B": "x"}, {"": "x"}, {"A": "x\0y"}])
    async def test_malformed_environment(self, executor: Executor, maker: Maker, env: dict[str, str]) -> None:
        with pytest.raises(ExecutorError, match="Environment variable"):
            await executor.execute(maker("a.py", env=env))

    async def test_environment_larger_than_a_pipe(self, executor: Executor, maker: Maker) -> None:
        env = {f"V{number}": "x" * 1000 for number in range(300)}
        run = maker("python", "-c", "import os; print(len(os.environ['V299']))", env=env)
        await executor.execute(run)
        await ended(executor, run)
        assert await output(executor, run) == "1000\n"

    async def test_cpus_are_bounded(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", "import os; print(len(os.sched_getaffinity(0)))", cpu_count=0.5)
        await executor.execute(run)
        await ended(executor, run)
        assert await output(executor, run) == "1\n"


class TestBare(SandboxContract):
    """Plain processes, limited without control groups."""

    doomed = (
        "executor = SandboxExecutor(ImageTable.default(), allow_unisolated=True, bubblewrap_path=None, groups='off')"
    )

    @pytest.fixture
    def subject(self) -> Subject:
        return Bare()

    async def test_must_be_allowed(self) -> None:
        with pytest.raises(Unusable, match=r"package `bubblewrap`.*RAP_ALLOW_UNISOLATED"):
            await SandboxExecutor(IMAGES, bubblewrap_path=None).check()

    async def test_warns_once(self, maker: Maker) -> None:
        executor = SandboxExecutor(IMAGES, bubblewrap_path=None, allow_unisolated=True)
        with capture_logs() as logs:
            await executor.check()
            await executor.check()
        warnings = [line["setting"] for line in logs if line["log_level"] == "warning"]
        assert warnings == ["RAP_ALLOW_UNISOLATED"]
        assert executor.describe().startswith("no isolation; filter of system calls: none; limits: ")
        assert not executor.isolated


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
class TestBubblewrap(SandboxContract):
    """The sandbox."""

    doomed = "executor = SandboxExecutor(ImageTable.default())"

    @pytest.fixture
    def subject(self) -> Subject:
        return Sandboxed()

    async def tell(self, executor: Executor, run: Run) -> str:
        """What the run printed, once it is over."""
        await executor.execute(run)
        await ended(executor, run)
        return (await output(executor, run)).strip()

    async def test_no_network(self, executor: Executor, maker: Maker) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            code = f"""
import socket
print(socket.socket().connect_ex(('127.0.0.1', {port})), [line.split(":")[0] for line in open("/proc/net/dev")][2:])
"""
            for network in (False, True):
                # Even where the task would allow it: this agent was not told to share its network.
                run = maker("python", "-c", code, network=network)
                assert await self.tell(executor, run) == "111 ['    lo']"

    async def test_shared_network(self, maker: Maker) -> None:
        executor = SandboxExecutor(IMAGES, share_network=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            code = f"import socket; print(socket.socket().connect_ex(('127.0.0.1', {port})))"
            assert await self.tell(executor, maker("python", "-c", code, network=True)) == "0"
            assert await self.tell(executor, maker("python", "-c", code, network=False)) == "111"

    async def test_abstract_sockets_are_out_of_reach(self, executor: Executor, maker: Maker) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"\0{maker.root.name}")
            server.listen()
            code = f"import socket; print(socket.socket(socket.AF_UNIX).connect_ex('\\0{maker.root.name}'))"
            assert await self.tell(executor, maker("python", "-c", code)) == "111"

    async def test_other_files_are_not_there(self, executor: Executor, maker: Maker, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("patients")
        paths = [str(secret), str(tmp_path), "/etc/shadow", "/etc/hostname", "/root", "/home", "/var", "/sys", "/run"]
        run = maker("python", "-c", f"import os; print([p for p in {paths} if os.path.exists(p)])")
        paths.append(str(run.volume))
        paths.append(str(run.state_dir))
        said = await self.tell(executor, run)
        needed = await asyncio.to_thread(IMAGES.find("python").paths)
        # The way to an interpreter is there, and nothing else on it.
        on_the_way = {path for path in paths if any(each.is_relative_to(path) for each in needed)}
        assert set(json.loads(said.replace("'", '"'))) == on_the_way
        assert str(secret) not in on_the_way

    async def test_system_is_read_only(self, executor: Executor, maker: Maker) -> None:
        code = """
import os
done = []
for path in ("/usr/x", "/etc/x", "/etc/ld.so.cache", "/x", "/proc/sys/vm/swappiness", "/proc/sys/kernel/core_pattern",
             "/proc/sysrq-trigger", os.path.dirname(os.__file__) + "/x"):
    try:
        os.close(os.open(path, os.O_WRONLY | (0 if os.path.exists(path) else os.O_CREAT)))
        done.append(path)
    except OSError:
        pass
for path in ("/workspace/x", "/tmp/x", "/dev/shm/x"):
    open(path, "w").write("x")
print(done)
"""
        run = maker("python", "-c", code)
        assert await self.tell(executor, run) == "[]"
        assert (run.volume / "x").read_text() == "x"

    async def test_own_processes_only(self, executor: Executor, maker: Maker) -> None:
        code = "import os; print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()), os.getpid())"
        assert await self.tell(executor, maker("python", "-c", code)) == "[1, 2] 2"

    async def test_nobody_in_particular(self, executor: Executor, maker: Maker) -> None:
        code = """
import os, pwd, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(os.getuid(), os.getgid(), pwd.getpwuid(os.getuid()).pw_name, os.path.expanduser("~"), socket.gethostname())
print({status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}, status["NoNewPrivs"])
"""
        said = await self.tell(executor, maker("python", "-c", code))
        assert said.splitlines() == ["1000 1000 job /tmp sandbox", f"{ {'0' * 16} } 1"]

    async def test_sandbox_processes_do_not_carry_the_environment(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", READY_THEN_GO, env={"LD_PRELOAD": "/workspace/evil.so", "BASH_ENV": "x"})
        async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
            await executor.execute(run)
            assert await ready()
            supervisor = psutil.Process((await self.started(run)).supervisor)
            outside = [supervisor, *supervisor.children()]
            assert [process.name() for process in outside[1:]] == ["bwrap"]
            assert not any("LD_PRELOAD" in process.environ() for process in outside)
            go()
            await ended(executor, run)

    async def test_a_sandbox_that_cannot_be_made(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", "pass")
        run.volume.rmdir()
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code == 125
        assert "bwrap: Can't find source path" in str(exit.lost)

    async def test_failing_as_bubblewrap_fails_is_the_jobs_own_failure(self, executor: Executor, maker: Maker) -> None:
        run = maker("-c", "echo 'bwrap: sorry'; exit 1", image="sh")
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code == 1
        assert exit.lost is None

    async def test_the_machine_forbids_sandboxes(self, tmp_path: Path) -> None:
        refusing = tmp_path / "bwrap"
        refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace'\nexit 1\n")
        refusing.chmod(0o755)
        with pytest.raises(Unusable, match=r"No permissions to create.*RAP_ALLOW_UNISOLATED"):
            await SandboxExecutor(IMAGES, bubblewrap_path=str(refusing)).check()
        lenient = SandboxExecutor(IMAGES, bubblewrap_path=str(refusing), allow_unisolated=True)
        await lenient.check()
        assert not lenient.isolated


_LAUNCH_ONLY = """
    import subprocess
    await executor.check()
    command = [sys.executable, "-I", "-S", "-c", sandbox.BOOTSTRAP, str(sandbox.ROOT), "launcher"]
    process = subprocess.Popen(command, stdin=executor._write_spec(run, set()), start_new_session=True)
    (run.volume / "launcher").write_text(str(process.pid))
    process.wait()
"""
"""An agent that has started a launcher, and no more; follows the line that makes `executor`."""


async def _pidfd(fd: int) -> None:
    """Sleep until the process has ended; close the descriptor."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, over.set)
    try:
        await asyncio.wait_for(over.wait(), 60)
    finally:
        loop.remove_reader(fd)
        os.close(fd)

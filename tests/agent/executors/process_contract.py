"""What every executor must do where a run is a real process: Python programs with the volume as their directory.

A suite that a test module runs by subclassing it, as `executor_contract` is.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import attrs
import psutil
import pytest

from agent.executors.base import Executor, Exit, Phase, Run
from tests.agent.executors.executor_contract import (
    MIB,
    ExecutorContract,
    Maker,
    Subject,
    ended,
    output,
    pipe_from,
    pipe_to,
    printed,
)

SECRET = "s3cr3t-v4lue-0f-the-environment"
READY_THEN_GO = "open('ready', 'w').write('x'); open('go').read(1)"
DAEMON = """
import os, time
alive = open('alive', 'w')
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        alive.write('x'); alive.flush()
        time.sleep(1000)
    os._exit(0)
os.wait()
"""
"""A process that has left the job's session, and holds the pipe `alive` open while it lives."""


class ProcessContract(ExecutorContract):
    """What holds where runs are real processes: Python programs with the volume as their directory."""

    doomed: str
    """Source that makes this executor as `executor`, in the middle of `DOOMED`."""
    named_in_processes = True
    """Whether a command line on this machine has the task's id in it."""
    added_environment = frozenset({"PATH", "HOME", "LANG", "PWD", "TMPDIR", "LC_CTYPE"})
    """Variables that a job may find beside its own."""

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGSEGV, 139), (signal.SIGKILL, 137)])
    async def test_signals(self, executor: Executor, maker: Maker, number: int, code: int) -> None:
        run = maker("python", "-c", f"import os; os.kill(os.getpid(), {int(number)})")
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code == code
        assert not any((exit.oom_killed, exit.timed_out, exit.terminated))

    async def test_signals_are_as_a_program_expects_them(self, executor: Executor, maker: Maker) -> None:
        # A shell, because Python itself ignores SIGPIPE.
        run = maker("-c", "grep -E 'SigBlk|SigIgn' /proc/self/status", image="sh", name="shell")
        await executor.execute(run)
        await ended(executor, run)
        _, blocked, _, ignored = (await output(executor, run)).split()
        # 32 and 33 belong to the C library: whoever was started by its posix_spawn (make, say) ignores them.
        ours = ~(0b11 << 31)
        assert (int(blocked, 16) & ours, int(ignored, 16) & ours) == (0, 0)

    async def test_output_is_combined_in_order(self, executor: Executor, maker: Maker) -> None:
        code = "import os\nfor i in range(4): os.write(1 + i % 2, b'%d' % i)"
        run = maker("python", "-c", code)
        await executor.execute(run)
        await ended(executor, run)
        assert await output(executor, run) == "0123"

    async def test_errors_can_be_kept_apart(self, executor: Executor, maker: Maker) -> None:
        code = "import os\nfor i in range(4): os.write(1 + i % 2, b'%d' % i)"
        run = attrs.evolve(maker("python", "-c", code), errors=maker.root / "errors")
        await executor.execute(run)
        await ended(executor, run)
        assert await output(executor, run) == "02"
        assert (maker.root / "errors").read_text() == "13"

    async def test_logs_of_a_running_job(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"print('so far', flush=True); {READY_THEN_GO}; print('and the rest')")
        async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
            await executor.execute(run)
            assert await ready()
            await printed(executor, run, "so far\n")
            go()
            assert (await ended(executor, run)).code == 0
        assert await executor.logs(run, 7, 100) == b"and the rest\n"

    async def test_wait_wakes_all_who_wait(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", READY_THEN_GO)
        async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
            await executor.execute(run)
            assert await ready()
            waiters = [asyncio.create_task(ended(executor, run)) for _ in range(3)]
            impatient = asyncio.create_task(executor.wait(run))
            impatient.cancel()
            await asyncio.gather(impatient, return_exceptions=True)
            assert (await executor.status(run)).phase is Phase.RUNNING
            go()
            assert {(await waiter).code for waiter in waiters} == {0}

    async def test_job_has_its_place(self, executor: Executor, maker: Maker) -> None:
        code = "import json, os, sys; print(json.dumps([os.getcwd(), os.listdir(), sys.stdin.read()]))"
        run = maker("python", "-c", code)
        (run.volume / "input.csv").touch()
        await executor.execute(run)
        await ended(executor, run)
        where, files, stdin = json.loads(await output(executor, run))
        assert where in {"/workspace", str(run.volume)}
        assert files == ["input.csv"]
        assert stdin == ""

    async def test_environment_is_seen_by_the_job_only(self, executor: Executor, maker: Maker) -> None:
        code = f"import json, os; print(json.dumps(dict(os.environ)), flush=True); {READY_THEN_GO}"
        env = {"TOKEN": SECRET, "TRACEPARENT": "00-aa-bb-01", "MULTI": "one\ntwo = three", "LD_PRELOAD": ""}
        run = maker("python", "-c", code, env=env)
        os.environ["ONLY_THE_AGENT_HAS"] = "x"
        try:
            async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
                await executor.execute(run)
                assert await ready()
                lines = [line for process in psutil.process_iter() for line in _command_line(process)]
                if self.named_in_processes:
                    assert any(run.task_id in line for line in lines), "the run is to be found by its task"
                assert not any(SECRET in line for line in lines)
                for note in run.state_dir.rglob("*"):
                    assert note.name == "log" or note.is_dir() or SECRET.encode() not in note.read_bytes()
                go()
                await ended(executor, run)
        finally:
            del os.environ["ONLY_THE_AGENT_HAS"]
        seen = json.loads(await output(executor, run))
        assert env.items() <= seen.items()
        assert set(seen) - set(env) <= self.added_environment
        assert SECRET not in repr(run)
        assert SECRET not in repr(await executor.status(run))

    async def test_descriptors_of_the_agent_stay_with_it(
        self, executor: Executor, maker: Maker, tmp_path: Path
    ) -> None:
        run = maker("python", "-c", "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)],"
                    " [n for n in range(3, 200) if os.path.exists(f'/proc/self/fd/{n}')])")  # fmt: skip
        with (tmp_path / "database").open("w") as held:
            os.set_inheritable(held.fileno(), True)
            await executor.execute(run)
            await ended(executor, run)
        assert (await output(executor, run)).strip().endswith(" []")

    async def test_terminate_reaches_daemons(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", DAEMON + "time.sleep(1000)")
        async with pipe_from(run.volume / "alive") as alive:
            await executor.execute(run)
            assert await alive() == b"x"
            await executor.terminate(run)
            assert await alive() == b""
        assert (await ended(executor, run)).terminated

    async def test_daemons_end_with_their_job(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", DAEMON + "raise SystemExit(5)")
        async with pipe_from(run.volume / "alive") as alive:
            await executor.execute(run)
            assert await alive() == b"x"
            assert (await ended(executor, run)).code == 5
            assert await alive() == b""

    async def test_time_limit_reaches_daemons(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", DAEMON + "time.sleep(1000)", seconds=3)
        async with pipe_from(run.volume / "alive") as alive:
            await executor.execute(run)
            assert await alive() == b"x"
            assert (await ended(executor, run)).timed_out
            assert await alive() == b""

    async def test_memory_limit(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"bytearray({600 * MIB}); print('had it')", memory=200 * MIB)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code != 0
        assert "had it" not in await output(executor, run)
        assert exit.oom_killed or "MemoryError" in await output(executor, run)

    async def test_memory_within_the_limit(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"held = bytearray({100 * MIB}); {READY_THEN_GO}", memory=200 * MIB)
        exit = await self.seen(executor, run)
        assert exit.code == 0
        assert 100 <= exit.metrics["mem_mb_peak"] < 200

    async def test_cpu_metrics(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"import time\nwhile time.process_time() < 0.3: pass\n{READY_THEN_GO}")
        exit = await self.seen(executor, run)
        elapsed = (exit.finished_at_ns - exit.started_at_ns) / 1e9
        assert exit.metrics["cpu_mean"] * elapsed / 100 >= 0.25
        assert exit.metrics["cpu_mean"] <= exit.metrics["cpu_peak"]

    async def seen(self, executor: Executor, run: Run) -> Exit:
        """How a run ends that says when it is ready, and goes on when its use of CPU and memory was looked at."""
        async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
            await executor.execute(run)
            assert await ready()
            await executor.sample(run)
            go()
            return await ended(executor, run)

    async def test_no_core_dumps(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")
        await executor.execute(run)
        await ended(executor, run)
        assert await output(executor, run) == "(0, 0)\n"

    async def test_two_agents_start_one_job(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", "print('ran')")
        other = subject.make()
        await asyncio.gather(*(each.execute(run) for each in (executor, other, executor, other)))
        assert (await ended(executor, run)).code == 0
        assert await output(executor, run) == "ran\n"

    async def test_job_outlives_a_killed_agent(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"open('ran', 'a').write('x'); {READY_THEN_GO}; raise SystemExit(6)")
        async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
            agent = await start_doomed_agent(self.doomed, run)
            assert await ready()
            os.kill(agent.pid, signal.SIGKILL)
            await agent.wait()
            restarted = subject.make()
            await restarted.check()
            assert (await restarted.status(run)).phase is Phase.RUNNING
            await restarted.execute(run)
            waiter = asyncio.create_task(ended(restarted, run))
            go()
            assert (await waiter).code == 6
        assert (run.volume / "ran").read_text() == "x"

    async def test_job_ends_while_no_agent_lives(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"{READY_THEN_GO}; raise SystemExit(7)")
        async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
            agent = await start_doomed_agent(self.doomed, run)
            assert await ready()
            os.kill(agent.pid, signal.SIGKILL)
            await agent.wait()
            go()
            await self.gone(run)
        exit = (await executor.status(run)).exit
        assert exit is not None
        assert exit.code == 7

    async def gone(self, run: Run) -> None:
        """Sleep until nothing of the run is left, without asking the executor."""
        raise NotImplementedError


DOOMED = """
import asyncio, json, os, sys
from pathlib import Path
from agent.executors.sandbox import executor as sandbox
from agent.executors.base import Limits, Run
from agent.executors.sandbox.executor import SandboxExecutor
from agent.images import ImageTable

values = json.loads(sys.stdin.read())
run = Run(
    volume=Path(values.pop("volume")), state_dir=Path(values.pop("state_dir")), args=tuple(values.pop("args")),
    limits=Limits(**values.pop("limits")), **values,
)

async def main():
    {source}
    await executor.execute(run)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def start_doomed_agent(source: str, run: Run) -> asyncio.subprocess.Process:
    """A real agent process that starts the run and has nothing else to do; the test kills it."""
    values = {
        "task_id": run.task_id,
        "job_id": run.job_id,
        "workspace": run.workspace,
        "action": run.action,
        "image": run.image,
        "image_sha": run.image_sha,
        "args": run.args,
        "env": dict(run.env),
        "volume": str(run.volume),
        "state_dir": str(run.state_dir),
        "limits": {
            "cpu_count": run.limits.cpu_count,
            "memory_bytes": run.limits.memory_bytes,
            "seconds": run.limits.seconds,
        },
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        DOOMED.format(source=source),
        stdin=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(values).encode())
    process.stdin.close()
    return process


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []

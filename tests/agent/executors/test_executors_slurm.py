"""The slurm executor on a real cluster: the contracts, and what only it promises."""

import asyncio
import itertools
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from structlog.testing import capture_logs

from agent.executors import survey as surveys
from agent.executors.base import Executor, ExecutorError, Phase, Run, Unusable
from agent.executors.choice import Prospect, Standing
from agent.executors.sandbox.executor import SandboxExecutor
from agent.executors.sandbox.notes import Notes
from agent.executors.slurm.commands import Slurm
from agent.executors.slurm.executor import SlurmExecutor
from agent.executors.slurm.notes import SlurmNotes
from agent.executors.slurm.options import Options
from agent.images import ImageTable, Interpreter
from tests.agent.executors import slurm_cluster
from tests.agent.executors.executor_contract import MIB, PATIENCE, Maker, Subject, ended, pipe_from, pipe_to
from tests.agent.executors.process_contract import DAEMON, READY_THEN_GO, SECRET, ProcessContract, start_doomed_agent
from tests.agent.executors.slurm_cluster import Cluster
from tests.agent.executors.test_executors_sandbox import Sandboxed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_cluster.is_installed(), reason="Slurm is not installed (slurm-wlm, munge)"),
]

IMAGES = ImageTable({**ImageTable.default().entries, "sh": Interpreter(command=("/bin/sh",))})
OPTIONS = Options(python=sys.executable, poll_seconds=0.5)
CLOSED = evolve(OPTIONS, partition="closed")
"""A partition in which jobs stay pending until it is opened."""


def make(options: Options = OPTIONS, **more: Any) -> SlurmExecutor:
    return SlurmExecutor(SandboxExecutor(IMAGES, sample_seconds=0.05), options, **{"settle_seconds": 1.0, **more})


@pytest.fixture(scope="module")
def _cluster() -> Iterator[Cluster]:
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, found by every client that this test starts."""
    monkeypatch.setenv("SLURM_CONF", str(_cluster.conf))
    return _cluster


async def ask(cluster: Cluster, *command: str) -> str:
    """What one of Slurm's commands says."""
    return await asyncio.to_thread(cluster.ask, *command)


async def queued(cluster: Cluster, run: Run, state: str = "PENDING") -> int:
    """The number of the run's job, once it is the only one there and in that state."""
    async with asyncio.timeout(PATIENCE):
        while True:
            said = await ask(
                cluster, "squeue", "--noheader", "--states=all", f"--name=os-job-{run.job_id}", "--format=%A %T %k"
            )
            rows = [line.split() for line in said.splitlines() if run.task_id in line]
            assert len(rows) <= 1, "submitted twice"
            if rows and rows[0][1] == state:
                return int(rows[0][0])


async def until(true: Any) -> None:
    """Look until it is so."""
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(true):
            pass


class OnCluster(Sandboxed):
    """The slurm executor as the contract sees it."""

    def make(self) -> Executor:
        return make()


class TestContract(ProcessContract):
    """A cluster of one node."""

    doomed = """
    from agent.executors.slurm.executor import SlurmExecutor
    from agent.executors.slurm.options import Options
    executor = SlurmExecutor(SandboxExecutor(ImageTable.default()), Options(python=sys.executable, poll_seconds=0.5))
"""

    @pytest.fixture
    def subject(self, cluster: Cluster) -> Subject:
        return OnCluster()

    async def gone(self, run: Run) -> None:
        await until((run.state_dir / "exit.json").exists)


_numbers = itertools.count()


class Namer(Maker):
    """Makes runs with names that no other test's run has: the cluster remembers those."""

    def __call__(self, *args: str, **more: Any) -> Run:
        return super().__call__(*args, **{"name": f"only{next(_numbers)}", **more})


@pytest.fixture
async def maker(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Maker]:
    made = Namer(tmp_path, "python:v2", [])
    yield made
    executor = make()
    for run in made.made:
        await executor.cleanup(run)
    await executor.close()


HANG = ("python", "-c", "import time; time.sleep(1000)")


async def test_a_run_in_the_queue_is_not_running(cluster: Cluster, maker: Maker) -> None:
    run = maker("python", "-c", "print('ran')")
    executor = make(CLOSED)
    execute = asyncio.create_task(executor.execute(run))
    number = await queued(cluster, run)
    assert (await executor.status(run)).phase is Phase.ABSENT
    # The agent is told to do something else, or is restarted; the job keeps its place.
    execute.cancel()
    await asyncio.gather(execute, return_exceptions=True)
    await executor.close()
    restarted = make(CLOSED)
    execute = asyncio.create_task(restarted.execute(run))
    try:
        assert await queued(cluster, run) == number
        await ask(cluster, "scontrol", "update", "PartitionName=closed", "State=UP")
        await asyncio.wait_for(execute, PATIENCE)
    finally:
        await ask(cluster, "scontrol", "update", "PartitionName=closed", "State=DOWN")
    exit = await ended(restarted, run)
    assert exit.code == 0
    assert exit.metadata["slurm_job_id"] == number
    assert exit.metadata["node"] == "node1"


async def test_terminating_a_run_in_the_queue(cluster: Cluster, maker: Maker) -> None:
    run = maker("python", "-c", "open('ran', 'w')")
    executor = make(CLOSED)
    execute = asyncio.create_task(executor.execute(run))
    await queued(cluster, run)
    await executor.terminate(run)
    await asyncio.wait_for(execute, PATIENCE)
    exit = await ended(executor, run)
    assert (exit.terminated, exit.code) == (True, 137)
    await queued(cluster, run, "CANCELLED")
    assert not (run.state_dir / "spec").exists()


async def test_a_withdrawn_run_does_not_begin_even_if_slurm_never_hears_of_it(
    cluster: Cluster, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(self: Slurm, job_id: int) -> None:
        pass

    monkeypatch.setattr(Slurm, "cancel", deaf)
    run = maker("python", "-c", "open('ran', 'w')")
    executor = make(CLOSED)
    execute = asyncio.create_task(executor.execute(run))
    await queued(cluster, run)
    await executor.cleanup(run)
    execute.cancel()
    await asyncio.gather(execute, return_exceptions=True)
    await ask(cluster, "scontrol", "update", "PartitionName=closed", "State=UP")
    try:
        await queued(cluster, run, "FAILED")  # Slurm has no place for its own output any more
    finally:
        await ask(cluster, "scontrol", "update", "PartitionName=closed", "State=DOWN")
    assert not (run.volume / "ran").exists()
    assert "drain" not in await ask(cluster, "sinfo", "--noheader", "--format=%T")


_AGENT = """
    from agent.executors.slurm import notes as slurm_notes
    from agent.executors.slurm.executor import SlurmExecutor
    from agent.executors.slurm.options import Options
    executor = SlurmExecutor(
        SandboxExecutor(ImageTable.default()), Options(python=sys.executable, poll_seconds=0.5, partition="closed")
    )
"""
_FORGETFUL = (
    _AGENT
    + """
    save = slurm_notes.SlurmNotes.save
    def stuck(self, submission):
        if submission.job_id is not None:
            (run.volume / "submitted").write_text("x")
            __import__("time").sleep(1000)
        save(self, submission)
    slurm_notes.SlurmNotes.save = stuck
"""
)
"""An agent that has submitted its job and is about to write down the number."""


async def test_agent_killed_between_submission_and_its_note(cluster: Cluster, maker: Maker) -> None:
    run = maker("python", "-c", "open('ran', 'a').write('x')")
    async with pipe_from(run.volume / "submitted") as submitted:
        agent = await start_doomed_agent(_FORGETFUL, run)
        assert await submitted() == b"x"
        os.kill(agent.pid, signal.SIGKILL)
        await agent.wait()
    number = await queued(cluster, run)
    submission = await asyncio.to_thread(SlurmNotes(run.state_dir).submission)
    assert submission is not None
    assert submission.job_id is None
    executor = make(CLOSED)
    assert (await executor.status(run)).phase is Phase.ABSENT
    execute = asyncio.create_task(executor.execute(run))
    await until(lambda: SlurmNotes(run.state_dir).job_id() == number)
    assert await queued(cluster, run) == number
    await executor.terminate(run)
    await execute


async def test_agent_killed_while_it_submits(
    cluster: Cluster, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = maker("python", "-c", "open('ran', 'a').write('x')")
    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    real = await asyncio.to_thread(slurm_cluster._find, "sbatch")
    slow.write_text(f'#!/bin/sh\necho x > {run.volume}/asked\nhead -c 1 {run.volume}/go\nexec {real} "$@"\n')
    slow.chmod(0o755)
    async with pipe_from(run.volume / "asked") as asked, pipe_to(run.volume / "go") as go:
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
            agent = await start_doomed_agent(_AGENT, run)
        assert await asked() == b"x\n"
        os.kill(agent.pid, signal.SIGKILL)
        await agent.wait()
        # Its sbatch lives on, and would submit a second job if we did not wait for it.
        executor = make(CLOSED)
        await executor.check()
        execute = asyncio.create_task(executor.execute(run))
        tries = 0

        def busy(notes: SlurmNotes) -> int | None:
            nonlocal tries
            tries += 1
            return real_lock(notes)

        real_lock = SlurmNotes.try_lock
        monkeypatch.setattr(SlurmNotes, "try_lock", busy)
        await until(lambda: tries > 2)
        go()
        number = await queued(cluster, run)
        await until(lambda: SlurmNotes(run.state_dir).job_id() == number)
    await executor.terminate(run)
    await execute


async def test_slurmctld_away(cluster: Cluster, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs end, are reported and are terminated without it; new ones wait for it."""
    executor = make()
    ending = maker("python", "-c", f"{READY_THEN_GO}; raise SystemExit(6)")
    hanging, late = maker(*HANG), maker("python", "-c", "print('late')")
    async with pipe_from(ending.volume / "ready") as ready, pipe_to(ending.volume / "go") as go:
        for run in (ending, hanging):
            await executor.execute(run)
        assert await ready()
        waiting = asyncio.create_task(ended(executor, hanging))
        await asyncio.to_thread(cluster.end, "slurmctld")
        try:
            go()
            assert (await ended(executor, ending)).code == 6
            with capture_logs() as logs:
                execute = asyncio.create_task(executor.execute(late))
                await until(lambda: any("cannot take a job" in line["event"] for line in logs))
            assert not waiting.done()
            assert (await executor.status(hanging)).phase is Phase.RUNNING
            await executor.terminate(hanging)
            assert (await waiting).terminated
        finally:
            await asyncio.to_thread(cluster.start, "slurmctld")
        await asyncio.to_thread(cluster.wait_ready)
        await asyncio.wait_for(execute, PATIENCE)
        assert (await ended(executor, late)).code == 0
    await queued(cluster, late, "COMPLETED")


async def test_slurmctld_restarted_during_a_run(cluster: Cluster, maker: Maker) -> None:
    executor = make()
    run = maker("python", "-c", f"{READY_THEN_GO}; raise SystemExit(6)")
    async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
        await executor.execute(run)
        assert await ready()
        waiting = asyncio.create_task(ended(executor, run))
        await asyncio.to_thread(cluster.end, "slurmctld")
        await asyncio.to_thread(cluster.start, "slurmctld")
        await asyncio.to_thread(cluster.wait_ready)
        await queued(cluster, run, "RUNNING")
        go()
        assert (await waiting).code == 6


@pytest.mark.parametrize(
    "code", [HANG[2], "import signal, time; signal.signal(15, lambda *_: exit(3)); time.sleep(1000)"]
)
async def test_cancelled_by_an_administrator(cluster: Cluster, maker: Maker, code: str) -> None:
    executor = make()
    run = maker("python", "-c", DAEMON + code)
    async with pipe_from(run.volume / "alive") as alive:
        await executor.execute(run)
        assert await alive() == b"x"
        waiting = asyncio.create_task(ended(executor, run))
        await ask(cluster, "scancel", str(await queued(cluster, run, "RUNNING")))
        exit = await waiting
        assert await alive() == b""
    assert exit.code == 137
    assert not any((exit.terminated, exit.timed_out, exit.oom_killed, exit.lost))
    assert exit.metrics


async def test_cancelled_in_the_queue_by_an_administrator(cluster: Cluster, maker: Maker) -> None:
    executor = make(CLOSED, settle_seconds=1000)
    run = maker(*HANG)
    execute = asyncio.create_task(executor.execute(run))
    await ask(cluster, "scancel", str(await queued(cluster, run)))
    await asyncio.wait_for(execute, PATIENCE)
    exit = await ended(executor, run)
    assert exit.code == 137
    assert not any((exit.terminated, exit.timed_out, exit.lost))


async def test_killed_supervisor(cluster: Cluster, maker: Maker) -> None:
    executor = make()
    run = maker("python", "-c", DAEMON + "time.sleep(1000)")
    async with pipe_from(run.volume / "alive") as alive:
        await executor.execute(run)
        assert await alive() == b"x"
        started = await asyncio.to_thread(Notes(run.state_dir).started)
        assert started is not None
        os.kill(started.supervisor, signal.SIGKILL)
        exit = await ended(executor, run)
        assert await alive() == b""
    assert exit.code == 137
    assert exit.lost == "the supervisor was killed on node1"
    assert (await make().status(run)).exit == exit


async def test_node_fails(cluster: Cluster, maker: Maker) -> None:
    executor = make()
    run = maker(*HANG)
    await executor.execute(run)
    try:
        await ask(cluster, "scontrol", "update", "NodeName=node1", "State=DOWN", "Reason=test")
        exit = await ended(executor, run)
    finally:
        # Refused if the node has come back by itself by now.
        resume = ("scontrol", "update", "NodeName=node1", "State=RESUME")
        await asyncio.to_thread(cluster.ask, *resume, check=False)
    assert exit.lost is not None
    assert "NODE_FAIL" in exit.lost
    assert not exit.terminated
    await asyncio.to_thread(cluster.wait_ready)


async def test_a_node_that_cannot_start_the_supervisor(cluster: Cluster, maker: Maker) -> None:
    executor = make(evolve(OPTIONS, python="/nowhere/python3"))
    run = maker(*HANG)
    await executor.execute(run)
    exit = await ended(executor, run)
    assert exit.lost is not None
    assert "/nowhere/python3" in exit.lost
    assert "not found" in exit.lost


async def test_refused_by_slurm(cluster: Cluster, maker: Maker) -> None:
    executor = make()
    for run, options, said in (
        (maker(*HANG, memory=10**15), OPTIONS, r"Memory specification.*--mem="),
        (maker(*HANG), evolve(OPTIONS, args=("--bogus",)), r"bogus.*RAP_SLURM_ARGS"),
        (maker(*HANG, seconds=3600), evolve(OPTIONS, partition="short"), r"PartitionTimeLimit.*RAP_SLURM_PARTITION"),
        (maker(*HANG, cpu_count=1000), OPTIONS, r"PartitionConfig|BadConstraints|node configuration"),
    ):
        executor = make(options)
        with pytest.raises(ExecutorError, match=said) as caught:
            await asyncio.wait_for(executor.execute(run), PATIENCE)
        assert caught.value.fatal
        assert (await executor.status(run)).phase is Phase.ABSENT
        assert not (run.state_dir / "spec").exists()


async def test_partition_vanishes(cluster: Cluster, maker: Maker) -> None:
    executor = make(evolve(OPTIONS, partition="vanished"))
    executor._checked = True  # it was there when the agent started
    await executor._sandbox.check()
    with pytest.raises(ExecutorError, match=r"invalid partition.*vanished.*RAP_SLURM_PARTITION"):
        await executor.execute(maker(*HANG))


async def test_unusable(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unusable, match=r"RAP_SLURM_PARTITION is 'nope'"):
        await make(evolve(OPTIONS, partition="nope")).check()
    with pytest.raises(Unusable, match=r"WORKDIR.*RAP_SLURM_PYTHON"):
        await make(evolve(OPTIONS, python="/nowhere/python3"), folders=[tmp_path / "work"]).check()
    await make(folders=[tmp_path / "work", tmp_path / "high"]).check()
    assert not list((tmp_path / "work").iterdir())
    with capture_logs() as logs:
        await make(CLOSED, folders=[tmp_path / "work"], probe_seconds=-4.0).check()
    assert any("no node could be asked" in line["event"] for line in logs)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unusable, match=r"sbatch.*RAP_EXECUTOR"):
            await make().check()
    conf = tmp_path / "slurm.conf"
    conf.write_text((await asyncio.to_thread(cluster.conf.read_text)).replace("SlurmctldPort=", "SlurmctldPort=1 #"))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    with pytest.raises(Unusable, match="slurmctld does not answer"):
        await make().check()


async def test_database_jobs_have_the_nodes_network_if_the_operator_says_so(cluster: Cluster, maker: Maker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; print(socket.socket().connect_ex(('127.0.0.1', {server.getsockname()[1]})))"

        async def connect(*, shared: bool, network: bool) -> bytes:
            sandbox = SandboxExecutor(IMAGES, sample_seconds=0.05, share_network=shared)
            executor = SlurmExecutor(sandbox, OPTIONS, settle_seconds=1.0)
            run = maker("python", "-c", code, network=network)
            await executor.execute(run)
            await ended(executor, run)
            said = await executor.logs(run, 0, 100)
            await executor.close()
            return said.strip()

        choices = ((True, True), (True, False), (False, True))
        said = await asyncio.gather(*(connect(shared=shared, network=network) for shared, network in choices))
        assert said == [b"0", b"111", b"111"]


async def test_secrets_are_seen_by_the_job_only(cluster: Cluster, maker: Maker) -> None:
    """While the run waits in the queue; the contract looks while it runs."""
    run = maker("python", "-c", "pass", SECRET, env={"DATABASE_URL": SECRET}, network=True)
    executor = make(CLOSED)
    execute = asyncio.create_task(executor.execute(run))
    number = await queued(cluster, run)
    await until(lambda: SlurmNotes(run.state_dir).job_id() is not None)
    shown = await ask(cluster, "scontrol", "show", "job", str(number))
    batch = await ask(cluster, "scontrol", "write", "batch_script", str(number), "-")
    assert run.task_id in shown
    assert str(run.state_dir) in batch
    holding = {
        path
        for folder in (run.state_dir, cluster.base)
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }
    assert holding == {run.state_dir / "spec"}
    assert stat.S_IMODE((run.state_dir / "spec").stat().st_mode) == 0o600
    assert stat.S_IMODE(run.state_dir.stat().st_mode) == 0o700
    assert SECRET not in shown + batch
    await executor.terminate(run)
    await execute
    assert not (run.state_dir / "spec").exists()


async def test_the_cluster_sees_nothing_of_the_agents_environment(
    cluster: Cluster, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_DATABASE_URL", SECRET)
    monkeypatch.setenv("SBATCH_PARTITION", "closed")
    executor = make()
    run = maker("python", "-c", READY_THEN_GO)
    async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
        await executor.execute(run)
        assert await ready()
        started = await asyncio.to_thread(Notes(run.state_dir).started)
        assert started is not None
        environ = await asyncio.to_thread(Path(f"/proc/{started.supervisor}/environ").read_bytes)
        assert SECRET.encode() not in environ
        assert b"SLURM_JOB_PARTITION=debug" in environ
        go()
        await ended(executor, run)
    spool = [path for path in cluster.base.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert spool == []


async def test_limits_reach_slurm(cluster: Cluster, maker: Maker) -> None:
    executor = make()
    run = maker(*HANG, seconds=601, memory=500 * MIB, cpu_count=1.5)
    await executor.execute(run)
    shown = await ask(cluster, "scontrol", "--oneliner", "show", "job", str(await queued(cluster, run, "RUNNING")))
    for part in ("CPUs/Task=2", "MinMemoryNode=548M", "TimeLimit=00:13:00", "Requeue=0", "WorkDir=/ "):
        assert part in shown


async def test_one_question_for_all_runs(cluster: Cluster, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make()
    runs = [maker(*HANG, memory=100 * MIB) for _ in range(5)]
    await asyncio.gather(*(executor.execute(run) for run in runs))
    asked: list[str] = []
    twice = asyncio.Event()
    real = Slurm._run

    async def count(self: Slurm, *command: str, **more: Any) -> str:
        said = await real(self, *command, **more)
        asked.append(command[0])
        if len(asked) == 3:
            twice.set()
        return said

    monkeypatch.setattr(Slurm, "_run", count)
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiting = [asyncio.create_task(executor.wait(run)) for run in runs]
    await asyncio.wait_for(twice.wait(), PATIENCE)
    assert asked == ["squeue"] * 3
    assert loop.time() - began >= 2 * OPTIONS.poll_seconds
    await asyncio.gather(*(executor.terminate(run) for run in runs))
    assert all(exit.terminated for exit in await asyncio.gather(*waiting))


async def test_what_is_said_of_a_cluster_before_it_is_chosen(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node has to answer; a cluster whose nodes are busy, or whose slurmctld is away, is passed over."""
    monkeypatch.setattr(surveys, "_NODE_SECONDS", 20.0)
    values = {"DOCKER_HOST": f"unix://{tmp_path}/none"}

    async def look(**more: str) -> Prospect:
        found = await surveys.survey({**values, **more}, [tmp_path], seconds=30.0)
        return next(each for each in found if each.name == "slurm")

    ready = await look()
    assert (ready.standing, ready.isolated) == (Standing.READY, True), ready
    assert ready.version.startswith("slurm")
    unknown = await look(RAP_SLURM_PARTITION="nope")
    assert (unknown.standing, "RAP_SLURM_PARTITION" in unknown.finding) == (Standing.UNUSABLE, True)
    monkeypatch.setattr(surveys, "_NODE_SECONDS", 1.0)
    busy = await look(RAP_SLURM_PARTITION="closed")
    assert (busy.standing, "none was free" in busy.finding) == (Standing.ON_REQUEST, True)
    assert not await ask(cluster, "squeue", "--noheader", "--name=rap-probe")
    assert not await asyncio.to_thread(lambda: list(tmp_path.glob(".slurm-probe-*")))

"""The docker executor on a real engine: the contract, and what only it promises."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest

from agent.executors.base import Executor, ExecutorError, Limits, Phase, Run
from agent.executors.docker.executor import DockerExecutor
from agent.executors.docker.spec import DockerSettings, container_name
from tests.agent.executors import docker_host
from tests.agent.executors.docker_host import PYTHON, Host
from tests.agent.executors.executor_contract import MIB, Maker, Subject, ended, output
from tests.agent.executors.process_contract import SECRET, ProcessContract

pytestmark = pytest.mark.slow  # real containers


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The engine of this run."""
    with docker_host.engine() as host:
        yield host


@pytest.fixture
def settings(host: Host, tmp_path: Path) -> DockerSettings:
    """Of an agent that has this test's name, so that no two tests have containers in common."""
    return DockerSettings(
        agent_id=tmp_path.name, host=host.address, user="0:0", allowed_images=("localhost",), pull_seconds=10
    )


@attrs.frozen
class Contained:
    """The docker executor as the contract sees it."""

    settings: DockerSettings
    image: str = PYTHON
    made: list[Executor] = attrs.field(factory=list)

    def make(self) -> Executor:
        self.made.append(DockerExecutor(self.settings, sample_seconds=0.2, grace_seconds=0.1))
        return self.made[-1]

    def quick(self, *, log: str = "", code: int = 0, writes: str = "") -> tuple[str, ...]:
        parts = [f"echo {log}" if log else "", f": > {writes}" if writes else "", f"exit {code}"]
        return ("sh", "-c", "\n".join(parts))

    def hang(self) -> tuple[str, ...]:
        return ("sleep", "1000")


class InContainers:
    """What a suite works with on an engine. Jobs are root's there, the worst case: what holds for root holds for
    DOCKER_USER_ID."""

    @pytest.fixture
    async def subject(self, settings: DockerSettings) -> AsyncIterator[Subject]:
        subject = Contained(settings)
        yield subject
        for made in subject.made:
            await made.close()

    @pytest.fixture
    def maker(self, subject: Subject, tmp_path: Path) -> Maker:
        return Named(tmp_path, subject.image, [])


class TestDocker(InContainers, ProcessContract):
    """The contract, as far as an engine can keep it."""

    named_in_processes = False  # by container name and label instead: see below
    added_environment = ProcessContract.added_environment | {"HOSTNAME", "TERM", "container"}
    blocked_by_init = 0
    """Signals that the engine's init process hands on as blocked."""

    @property
    def doomed(self) -> str:
        return self._doomed

    @pytest.fixture(autouse=True)
    def _prepare(self, settings: DockerSettings, host: Host) -> None:
        self.host = host
        made = ", ".join(f"{name}={value!r}" for name, value in attrs.asdict(settings).items())
        self._doomed = (
            "from agent.executors.docker.executor import DockerExecutor, DockerSettings; "
            f"executor = DockerExecutor(DockerSettings({made}))"
        )

    async def gone(self, run: Run) -> None:
        await asyncio.to_thread(self.host.ask, "POST", f"/containers/{container_name(run)}/wait")

    async def test_signals_are_as_a_program_expects_them(self, executor: Executor, maker: Maker) -> None:
        # Without busybox's shell, which ignores SIGQUIT and hands that on.
        run = maker("grep", "-E", "SigBlk|SigIgn", "/proc/self/status")
        await executor.execute(run)
        await ended(executor, run)
        blocked, ignored = (int(mask, 16) for mask in (await output(executor, run)).split()[1::2])
        # Signals 32 and 33 are the C library's own, and come from whoever started the engine.
        assert (blocked & 0x7FFFFFFF, ignored & 0x7FFFFFFF) == (self.blocked_by_init, 0)

    async def test_output_is_combined_in_order(self, executor: Executor, maker: Maker) -> None:
        # The engine reads the two streams apart; each is in order.
        run = maker("python", "-c", "import os\nfor i in range(6): os.write(1 + i % 2, b'%d\\n' % i)")
        await executor.execute(run)
        await ended(executor, run)
        lines = (await output(executor, run)).split()
        assert [line for line in lines if int(line) % 2] == ["1", "3", "5"]
        assert [line for line in lines if not int(line) % 2] == ["0", "2", "4"]

    async def test_errors_can_be_kept_apart(self, executor: Executor, maker: Maker) -> None:
        code = "import os\nfor i in range(4): os.write(1 + i % 2, b'%d\\n' % i)"
        run = attrs.evolve(maker("python", "-c", code), errors=maker.root / "errors")
        await executor.execute(run)
        await ended(executor, run)
        assert await output(executor, run) == "0\n2\n"
        assert (maker.root / "errors").read_text() == "1\n3\n"

    async def test_container_is_what_section_5_5_says(
        self, executor: Executor, maker: Maker, settings: DockerSettings, host: Host
    ) -> None:
        run = maker("sleep", "1000", env={"TOKEN": SECRET}, cpu_count=1.5, memory=64 * MIB)
        await executor.execute(run)
        found = await asyncio.to_thread(host.inspect, container_name(run))
        assert found["Name"].removeprefix("/") == f"os-job-{run.job_id}-001"
        assert found["Config"]["Labels"] == {
            "job-runner": "",
            "jobrunner-local": "",
            "workspace": "workspace",
            "action": "action",
            "org.rap-controller.task": run.task_id,
            "org.rap-controller.agent": settings.agent_id,
            "org.opencontainers.image.version": "2.0",
            "org.opencontainers.image.revision": "abc",
        }
        limits = found["HostConfig"]
        assert (limits["NanoCpus"], limits["Memory"], limits["MemorySwap"]) == (1_500_000_000, 64 * MIB, 64 * MIB)
        assert (limits["PidsLimit"], limits["NetworkMode"], limits["Init"]) == (1024, "none", True)
        secrets = [key for key, value in found.items() if key != "Config" and SECRET in json.dumps(value)]
        secrets += [key for key, value in found["Config"].items() if SECRET in json.dumps(value)]
        assert secrets == ["Env"]

    async def test_end_is_told_in_full(self, executor: Executor, maker: Maker) -> None:
        run = maker("sh", "-c", "exit 3", env={"TOKEN": SECRET, "OPENSAFELY_BACKEND": "test"})
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.labels == {"org.opencontainers.image.version": "2.0", "org.opencontainers.image.revision": "abc"}
        assert exit.image_id is not None
        assert exit.image_id.startswith("sha256:")
        assert SECRET not in repr(exit)
        assert "OPENSAFELY_BACKEND=test" in exit.metadata["Config"]["Env"]  # type: ignore[index]  # the engine's JSON
        assert exit.metadata["State"]["ExitCode"] == 3  # type: ignore[index]  # the same
        notes = b"".join(path.read_bytes() for path in run.state_dir.iterdir())
        assert SECRET.encode() not in notes

    async def test_privileges(self, executor: Executor, maker: Maker) -> None:
        run = maker("grep", "-E", "CapEff|CapBnd|NoNewPrivs", "/proc/self/status")
        await executor.execute(run)
        await ended(executor, run)
        said = dict(line.split(":\t") for line in (await output(executor, run)).splitlines())
        assert said == {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}

    async def test_no_network(self, executor: Executor, maker: Maker) -> None:
        code = "import os; print(os.listdir('/sys/class/net'))"
        run = maker("python", "-c", code)
        await executor.execute(run)
        await ended(executor, run)
        assert await output(executor, run) == "['lo']\n"

    async def test_a_run_that_is_over_at_once_has_metrics_all_the_same(self, executor: Executor, maker: Maker) -> None:
        if not shutil.which("dockerd"):
            pytest.skip("the engine is on another machine, whose control groups are out of sight")
        run = maker("python", "-c", "pass")
        await executor.execute(run)
        metrics = (await ended(executor, run)).metrics
        assert metrics["cpu_mean"] > 0
        assert metrics["mem_mb_peak"] > 0

    async def test_jobs_run_as_whom_the_operator_says(
        self, settings: DockerSettings, maker: Maker, executor: Executor
    ) -> None:
        run = maker("id", "-u")
        other = DockerExecutor(attrs.evolve(settings, user="12345:54321"))
        await other.execute(run)
        await ended(other, run)
        assert await output(other, run) == "12345\n"
        await other.close()

    async def test_out_of_memory_is_told_from_a_kill(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"bytearray({600 * MIB})", memory=100 * MIB)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code == 137
        assert exit.oom_killed
        assert exit.lost is None

    async def test_operators_kill_is_no_loss(self, executor: Executor, maker: Maker, host: Host) -> None:
        run = maker("sleep", "1000")
        await executor.execute(run)
        await asyncio.to_thread(host.ask, "POST", f"/containers/{container_name(run)}/kill")
        exit = await ended(executor, run)
        assert exit.code == 137
        assert not any((exit.oom_killed, exit.terminated, exit.timed_out, exit.lost))

    async def test_fork_bomb(self, executor: Executor, maker: Maker) -> None:
        code = (
            "import os, sys\nmade = 0\ntry:\n  while True:\n"
            "    if os.fork() == 0: os.read(os.pipe()[0], 1)\n    made += 1\n"
            "except BlockingIOError: print(made)"
        )
        run = maker("python", "-c", code)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code == 0
        assert 1000 < int(await output(executor, run)) < 1024

    async def test_container_that_was_taken_away_is_lost(self, executor: Executor, maker: Maker, host: Host) -> None:
        run = maker("sleep", "1000")
        await executor.execute(run)
        waiter = asyncio.create_task(ended(executor, run))
        await asyncio.to_thread(host.ask, "DELETE", f"/containers/{container_name(run)}", force="1")
        exit = await waiter
        assert exit.lost  # "it is dead" while it is being removed, "no longer" after that
        await executor.execute(run)
        assert (await executor.status(run)).exit == exit, "a lost run does not run again by itself"

    async def test_ended_container_may_be_taken_away(self, executor: Executor, maker: Maker, host: Host) -> None:
        run = maker("sh", "-c", "echo kept; exit 4")
        await executor.execute(run)
        exit = await ended(executor, run)
        await asyncio.to_thread(host.ask, "DELETE", f"/containers/{container_name(run)}")
        assert (await executor.status(run)).exit == exit
        assert await output(executor, run) == "kept\n"

    async def test_time_limit_counts_from_the_start_over_a_restart(
        self, subject: Subject, executor: Executor, maker: Maker
    ) -> None:
        run = maker("sleep", "1000", seconds=1)
        await executor.execute(run)
        await executor.close()
        restarted = subject.make()
        exit = await ended(restarted, run)
        assert exit.timed_out
        assert 1 <= (exit.finished_at_ns - exit.started_at_ns) / 1e9 < 30

    async def test_name_of_somebody_else(self, executor: Executor, maker: Maker, settings: DockerSettings) -> None:
        run = maker("sleep", "1000")
        other = DockerExecutor(attrs.evolve(settings, agent_id="other"))
        await other.execute(run)
        for method in (executor.execute, executor.status, executor.terminate, executor.cleanup):
            with pytest.raises(ExecutorError, match="belongs to other"):
                await method(run)
        assert (await other.status(run)).phase is Phase.RUNNING
        await other.cleanup(run)
        await other.close()

    async def test_two_attempts_at_one_job_are_two_containers(self, executor: Executor, maker: Maker) -> None:
        first = maker("sleep", "1000")
        second = attrs.evolve(
            first, task_id=f"{first.job_id}-002", args=("sh", "-c", "exit 6"), state_dir=first.state_dir.parent / "two"
        )
        maker.made.append(second)
        await executor.execute(first)
        await executor.execute(second)
        assert (await ended(executor, second)).code == 6
        assert (await executor.status(first)).phase is Phase.RUNNING

    async def test_cancelled_start_is_known(self, executor: Executor, maker: Maker) -> None:
        run = maker("sleep", "1000")
        start = asyncio.create_task(executor.execute(run))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        await executor.cleanup(run)
        assert (await executor.status(run)).phase is Phase.ABSENT

    @pytest.mark.parametrize(
        ("changes", "fatal", "words"),
        [
            ({"image": "python-of-others:v2"}, True, "'python-of-others:v2' is not allowed.*RAP_ALLOWED_IMAGES"),
            ({"image_sha": "sha256:ABC"}, True, "malformed digest"),
            ({"image": "localhost/sh:v9"}, False, "'localhost/sh:v9' is not there any more"),
            ({"limits": Limits(cpu_count=1, memory_bytes=1000)}, True, "[Mm]emory"),
            ({"volume": Path("/nonexistent/volume")}, False, "DOCKER_HOST_VOLUME_DIR"),
            ({"network": True}, False, "DATABASE_ACCESS_NETWORK"),
            ({"env": {"A=B": "x"}}, True, "A=B"),
        ],
    )
    async def test_refusals(
        self, executor: Executor, maker: Maker, changes: dict[str, object], fatal: bool, words: str
    ) -> None:
        run = attrs.evolve(maker("sleep", "1000"), **changes)  # type: ignore[arg-type]  # each of its field's type
        with pytest.raises(ExecutorError, match=words) as caught:
            await executor.execute(run)
        assert caught.value.fatal is fatal
        if "malformed digest" not in words and "not allowed" not in words:
            assert (await executor.status(run)).phase is Phase.ABSENT

    async def test_output_beyond_its_bound_is_dropped(
        self, settings: DockerSettings, maker: Maker, executor: Executor
    ) -> None:
        run = maker("python", "-c", "for i in range(100000): print(i)")
        bounded = DockerExecutor(settings, log_bytes=1000)
        await bounded.execute(run)
        assert (await ended(bounded, run)).code == 0
        assert len(await bounded.logs(run, 0, MIB)) == 1000
        await bounded.close()


class Named(Maker):
    """Names jobs for their test, since container names are one space for all tests."""

    def __call__(self, *args: str, **options: object) -> Run:
        options["name"] = f"{self.root.name}-{options.get('name') or len(self.made)}"
        return super().__call__(*args, **options)

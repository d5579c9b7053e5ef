"""The filter of system calls in real containers: what a job may not ask of the kernel, and what it may."""

import asyncio
import errno
import json
import platform
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest

from agent.executors import syscalls
from agent.executors.base import Executor, ExecutorError, Phase
from agent.executors.docker import profile
from agent.executors.docker.executor import DockerExecutor
from agent.executors.docker.spec import DockerSettings, container_name
from tests.agent.executors import docker_host, podman_host
from tests.agent.executors.docker_host import PYTHON, Host
from tests.agent.executors.executor_contract import Maker, ended, output
from tests.agent.executors.test_executors_docker import Named
from tests.agent.executors.test_sandbox_calls import ARGUMENTS, CALLS, MODES, OLD_ABI, ORDINARY, pyseccomp

pytestmark = pytest.mark.slow  # real containers


@pytest.fixture(scope="module", params=["docker", "podman"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """An engine of this module."""
    with docker_host.engine() if request.param == "docker" else podman_host.service() as host:
        yield host


@pytest.fixture
def settings(host: Host, tmp_path: Path) -> DockerSettings:
    return DockerSettings(agent_id=tmp_path.name, host=host.address, user="0:0", allowed_images=("localhost",))


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Named(tmp_path, PYTHON, [])


@pytest.fixture
async def executor(settings: DockerSettings, maker: Maker) -> AsyncIterator[DockerExecutor]:
    executor = DockerExecutor(settings)
    yield executor
    for run in maker.made:
        await executor.cleanup(run)
    await executor.close()


async def tell(executor: Executor, maker: Maker, *command: str) -> str:
    """What a job prints."""
    run = maker(*command)
    await executor.execute(run)
    exit = await ended(executor, run)
    said = await output(executor, run)
    assert exit.code == 0, said
    return said


async def ask(executor: Executor, maker: Maker, calls: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """How a job's calls are answered: see `test_sandbox_calls.ask`."""
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name.split(":")[0]) for name in calls}
    there = [name for name, number in numbers.items() if number >= 0]
    asked = json.dumps([[numbers[name], *calls[name]] for name in there])
    answers = json.loads(await tell(executor, maker, "python", "-c", CALLS, asked))
    return {name: errno.errorcode.get(answer, "done") for name, answer in zip(there, answers, strict=True)}


async def test_calls_that_no_job_needs(executor: DockerExecutor, maker: Maker) -> None:
    named = dict.fromkeys((*syscalls.DENIED, *syscalls.ABSENT), (0, 0, 0, 0, 0))
    answers = await ask(executor, maker, {**named, **{name: given for name, (given, _, _) in ARGUMENTS.items()}})
    expected = {name: "ENOSYS" if name in syscalls.ABSENT else "EPERM" for name in named}
    expected |= {name: answer for name, (_, answer, _) in ARGUMENTS.items()}
    assert {name: answer for name, answer in answers.items() if answer != expected[name]} == {}
    assert len(answers) > 80


async def test_calls_of_newer_kernels_do_not_exist(executor: DockerExecutor, maker: Maker) -> None:
    newer = [[number, 0, 0, 0, 0, 0] for number in sorted(syscalls.NEWER - syscalls.KNOWN_NEWER)]
    said = json.loads(await tell(executor, maker, "python", "-c", CALLS, json.dumps(newer)))
    assert set(said) == {errno.ENOSYS}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there are no 32-bit calls of that sort")
async def test_calls_of_the_32_bit_abi_end_the_process(executor: DockerExecutor, maker: Maker) -> None:
    run = maker("python", "-c", OLD_ABI)
    await executor.execute(run)
    assert (await ended(executor, run)).code == 128 + signal.SIGSYS


async def test_files_with_rights_of_their_own(executor: DockerExecutor, maker: Maker) -> None:
    assert await tell(executor, maker, "python", "-c", MODES) == ""


async def test_ordinary_work(executor: DockerExecutor, maker: Maker) -> None:
    run = maker("python", "work.py")
    await asyncio.to_thread((run.volume / "work.py").write_text, ORDINARY)
    await executor.execute(run)
    exit = await ended(executor, run)
    assert (await output(executor, run), exit.code) == ("all done True True\n", 0)
    described = json.dumps(exit.metadata["HostConfig"])
    assert "SCMP_ACT" not in described


async def test_the_engines_own_filter(settings: DockerSettings, host: Host, maker: Maker) -> None:
    executor = DockerExecutor(attrs.evolve(settings, seccomp=profile.ENGINE))
    answers = await ask(executor, maker, {"inotify_init1": (0,), "ptrace": (0, 0, 0, 0)})
    assert answers["inotify_init1"] == "done", "which ours refuses"
    inspected = await asyncio.to_thread(host.inspect, container_name(maker.made[0]))
    assert "seccomp=" not in json.dumps(inspected["HostConfig"]["SecurityOpt"])
    await executor.cleanup(maker.made[0])
    await executor.close()


async def test_a_filter_that_the_engine_cannot_use(
    executor: DockerExecutor, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "text", lambda: "{no json")
    run = maker("sleep", "1000")
    with pytest.raises(ExecutorError, match="RAP_DOCKER_SECCOMP=engine"):
        await executor.execute(run)
    assert (await executor.status(run)).phase is Phase.ABSENT

"""The docker executor on Podman's compatible socket: the same suite, and what Podman does otherwise."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from agent.executors.base import Executor, ExecutorError, Phase
from agent.executors.docker.executor import DockerExecutor
from agent.executors.docker.spec import DockerSettings
from tests.agent.executors import podman_host
from tests.agent.executors import test_executors_docker as on_docker
from tests.agent.executors.docker_host import Host
from tests.agent.executors.executor_contract import MIB, Maker, ended, output

pytestmark = pytest.mark.slow  # real containers

settings = on_docker.settings


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The service of this module."""
    with podman_host.service() as host:
        yield host


class TestPodman(on_docker.TestDocker):
    """All that a Docker Engine does."""

    blocked_by_init = 0b111 << (signal.SIGTSTP - 1)  # and SIGTTIN, SIGTTOU: no job of ours has a terminal

    async def test_memory_limit(self, executor: Executor, maker: Maker) -> None:
        # Podman 4.3 with cgroups v1 does not know why a job was killed: see docs/security.md.
        run = maker("python", "-c", f"bytearray({600 * MIB}); print('had it')", memory=200 * MIB)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.code == 137
        assert "had it" not in await output(executor, run)

    async def test_out_of_memory_is_told_from_a_kill(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "-c", f"bytearray({600 * MIB})", memory=100 * MIB)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert (exit.code, exit.lost, exit.terminated) == (137, None, False)

    async def test_volume_that_the_engine_does_not_see(
        self, executor: Executor, maker: Maker, settings: DockerSettings, tmp_path: Path
    ) -> None:
        run = maker("sleep", "1000")
        await asyncio.to_thread((run.volume / ".opensafely-timestamp").touch)
        other = DockerExecutor(attrs.evolve(settings, host_volume_dir=tmp_path / "elsewhere"))
        with pytest.raises(ExecutorError, match="DOCKER_HOST_VOLUME_DIR") as caught:
            await other.execute(run)
        assert not caught.value.fatal
        assert (await other.status(run)).phase is Phase.ABSENT
        await other.close()

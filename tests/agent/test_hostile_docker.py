"""Hostile jobs in containers."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.executors.docker_spec import DockerSettings
from tests.agent import docker_host
from tests.agent.docker_host import Host
from tests.agent.executor_contract import Maker, Subject
from tests.agent.hostile_contract import HostileContract
from tests.agent.test_executors_docker import Contained, Named

pytestmark = pytest.mark.slow  # real containers


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The engine of this module."""
    with docker_host.engine() as host:
        yield host


class InContainers:
    """Containers whose user is root, the worst case: what holds for it holds for DOCKER_USER_ID."""

    system_is_shared = False

    @pytest.fixture
    async def subject(self, host: Host, tmp_path: Path) -> AsyncIterator[Subject]:
        settings = DockerSettings(
            agent_id=tmp_path.name, host=host.address, user="0:0", allowed_images=("localhost",), pull_seconds=10
        )
        subject = Contained(settings)
        yield subject
        for made in subject.made:
            await made.close()

    @pytest.fixture
    def maker(self, subject: Subject, tmp_path: Path) -> Maker:
        return Named(tmp_path, subject.image, [])


class TestDocker(InContainers, HostileContract):
    tmp_is_memory = False

"""Hostile jobs in containers."""

from collections.abc import Iterator

import pytest

from tests.agent.executors import docker_host
from tests.agent.executors import test_executors_docker as on_docker
from tests.agent.executors.docker_host import Host
from tests.agent.executors.hostile_contract import HostileContract
from tests.agent.executors.test_executors_docker import InContainers

pytestmark = pytest.mark.slow  # real containers

settings = on_docker.settings


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The engine of this module."""
    with docker_host.engine() as host:
        yield host


class TestDocker(InContainers, HostileContract):
    system_is_shared = False
    tmp_is_memory = False

"""Curious jobs in Podman's containers, whose settings are its own.

What bounds a greedy one is the same kernel as with Docker, told the same (tests.agent.executors.test_executors_podman).
"""

from collections.abc import Iterator

import pytest

from tests.agent.executors import podman_host
from tests.agent.executors import test_executors_docker as on_docker
from tests.agent.executors.docker_host import Host
from tests.agent.executors.hostile_contract import CuriousContract
from tests.agent.executors.test_executors_docker import InContainers

pytestmark = pytest.mark.slow  # real containers

settings = on_docker.settings


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The service of this module."""
    with podman_host.service() as host:
        yield host


class TestPodman(InContainers, CuriousContract):
    system_is_shared = False

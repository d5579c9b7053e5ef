"""Hostile jobs on a cluster's node: in the sandbox there, and out of reach of what Slurm itself has."""

import os
from collections.abc import Iterator

import pytest

from tests.agent.executors import slurm_cluster
from tests.agent.executors.executor_contract import Subject
from tests.agent.executors.hostile_contract import HostileContract
from tests.agent.executors.slurm_cluster import Cluster
from tests.agent.executors.test_executors_slurm import OnCluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_cluster.is_installed(), reason="Slurm is not installed (slurm-wlm, munge)"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster.running() as cluster:
        yield cluster


class TestSlurm(HostileContract):
    """A node without Slurm's own control groups (tests run in containers), the worst case."""

    processes_are_bounded = os.geteuid() != 0  # nor does the kernel count root's

    @pytest.fixture
    def subject(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Subject:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        return OnCluster()

"""Hostile jobs in the sandbox."""

import pytest

from tests.agent.executors.executor_contract import Subject
from tests.agent.executors.hostile_contract import HostileContract
from tests.agent.executors.test_executors_sandbox import Sandboxed

pytestmark = pytest.mark.slow  # real processes, and many of them


class TestSandbox(HostileContract):
    """Not bare processes (RAP_ALLOW_UNISOLATED): those can do all of this, as docs/security.md says."""

    @pytest.fixture
    def subject(self) -> Subject:
        return Sandboxed()

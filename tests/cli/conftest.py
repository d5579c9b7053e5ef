"""What tests of several commands ask for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.fake_controller import FakeController, backend, serving


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `rap up` of the person who runs the tests is found."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    """A controller with one backend, `test`; modules whose commands need another make their own."""
    async with serving() as controller:
        controller.script["GET /api/backends"] = (200, {"backends": [backend("test")]})
        yield controller

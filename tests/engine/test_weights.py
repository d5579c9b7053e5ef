"""Weights files as an operator changes them: mistakes keep the old weights, and are told with their lines."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.environ import ConfigurationError
from controller.__main__ import reload_weights
from controller.settings import Settings, from_environ
from tests.engine.conftest import Harness

GOOD = "[default]\n'.*' = {weight}\n"
BAD = "[default]\n'(' = 2\n'.*' = -1\n"


def settings(file: Path) -> Settings:
    return from_environ({"RAP_DATABASE_URL": "postgresql://h/d", "BACKENDS": "test", "TEST_JOB_WEIGHTS": str(file)})


async def test_weights_are_read_again_and_mistakes_keep_the_old_ones(harness: Harness, tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    file.write_text(GOOD.format(weight=2))
    configured = await asyncio.to_thread(settings, file)

    def weight() -> float:
        return harness.context.backends["test"].weights.weigh("w", "a", "c")

    await reload_weights(configured, harness.engine)
    assert weight() == 2
    file.write_text(GOOD.format(weight=3))
    await reload_weights(configured, harness.engine)
    assert weight() == 3
    file.write_text(BAD)
    with capture_logs() as logs:
        await reload_weights(configured, harness.engine)
    assert weight() == 3
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("weights_refused", "error")
    assert "line 2" in line["error"]
    assert "line 3" in line["error"]


@pytest.mark.parametrize(("text", "words"), [(BAD, "line 2"), (None, "cannot be read")])
def test_a_controller_does_not_start_with_a_faulty_file(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "weights.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        settings(file)
    assert any("TEST_JOB_WEIGHTS" in fault and words in fault for fault in caught.value.faults)

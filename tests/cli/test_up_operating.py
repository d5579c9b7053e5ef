"""Operators' commands against real processes: a reboot is prepared, confirmed by the agent, and survived."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.up_stack import eventually, rap, rap_json, study, up

pytestmark = pytest.mark.slow

SLOW = """\
import pathlib, time
out = pathlib.Path("output")
out.mkdir(exist_ok=True)
(out / "begun.txt").write_text("")
while not pathlib.Path("go").exists():
    time.sleep(0.02)
"""


def test_a_reboot_is_prepared_and_the_job_begins_anew(tmp_path: Path):
    home, data = tmp_path, tmp_path / "data"
    repository = study(home / "study", SLOW)

    def begun() -> list[Path]:
        return [found.parents[1] for found in data.glob("storage/high_privacy/volumes/*/output/begun.txt")]

    with up(home, "--data", str(data)):
        rap_id = rap_json(home, "submit", str(repository), "work")["rap_id"]

        def job() -> Any:
            return rap_json(home, "status", rap_id)["jobs"][0]

        eventually(begun)
        assert rap(home, "prepare-for-reboot", "test", "--status").returncode == 1

        refused = rap(home, "prepare-for-reboot", "test")
        assert (refused.returncode, job()["state"]) == (2, "running")
        done = rap_json(home, "prepare-for-reboot", "test", "-y")
        assert (done["changed"], done["jobs"]) == (["paused"], [job()["id"]])
        assert (job()["code"], job()["attempt"]) == ("waiting_on_reboot", 1)
        eventually(lambda: rap(home, "prepare-for-reboot", "test", "--status").returncode == 0)
        (paused, *_) = rap_json(home, "flags", "test")["flags"]
        assert (paused["id"], paused["value"]) == ("paused", "true")

        told = rap(home, "unpause", "test")
        assert (told.returncode, told.stdout) == (0, "Backend test is not paused: jobs start again\n")
        assert "nothing changed" in rap(home, "unpause", "test").stdout

        def finished() -> Any:
            for volume in begun():
                (volume / "go").touch()
            return job() if job()["state"] == "succeeded" else None

        assert eventually(finished)["attempt"] == 2

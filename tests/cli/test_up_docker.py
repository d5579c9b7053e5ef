"""`rap up` beside a real Docker Engine: it is taken once it has images, and the study's jobs are its containers."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.agent.executors.docker_host import daemon, load_images
from tests.cli.up_stack import rap, rap_json, study, up

pytestmark = pytest.mark.slow

IN_A_CONTAINER = """\
import pathlib
output = pathlib.Path("output")
output.mkdir()
(output / "a.txt").write_text(pathlib.Path("/etc/passwd").read_text())
"""


def test_an_engine_is_taken_once_it_has_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with daemon() as engine:
        environ = {
            "RAP_EXECUTOR": "",
            "DOCKER_HOST": engine.address,
            "DOCKER_REGISTRY": "localhost",
            "SLURM_CONF": str(tmp_path / "none"),
        }
        done = rap(tmp_path, "doctor", "--json", **environ)
        before = {each["name"]: each for each in json.loads(done.stdout)["executors"]}
        assert before["docker"]["standing"] == "on_request"
        assert "no image of localhost (DOCKER_REGISTRY)" in before["docker"]["finding"]
        assert before["sandbox"]["taken"]
        load_images(engine)
        with up(tmp_path, "--data", str(data), **environ) as running:
            assert "executor: docker (1 image that jobs may use is there)" in running.said
            assert json.loads((data / "ready.json").read_text())["executor"] == "docker"
            document = rap_json(tmp_path, "submit", str(repository(tmp_path / "study")), "work", "--wait")
            assert [job["state"] for job in document["rap"]["jobs"]] == ["succeeded"]
            told = rap(tmp_path, "doctor", **environ).stdout
            assert "Executors (`rap up` takes docker)" in told
            assert "  taken      docker   Docker " in told
    output = data / "storage" / "medium_privacy" / "workspaces" / "study" / "output" / "a.txt"
    assert output.read_text() == "root:x:0:0:root:/:/bin/sh\n", "the image's file, not the machine's or the sandbox's"


def repository(folder: Path) -> Path:
    """A study whose image is the one that `load_images` makes."""
    study(folder, IN_A_CONTAINER)
    project = folder / "project.yaml"
    project.write_text(project.read_text().replace("python:v2", "python:latest"))
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *identity, "commit", "-aqm", "image"], cwd=folder, check=True, capture_output=True)
    return folder

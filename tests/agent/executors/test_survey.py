"""What is said of the executors of a machine: engines and clusters that are away, hang, or lack what jobs need."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.executors import survey as surveys
from agent.executors.choice import Prospect, Standing
from agent.executors.survey import survey
from tests.agent.executors.test_docker_images import FakeEngine, serving, succeed

IMAGE = {"RepoTags": ["ghcr.io/opensafely-core/python:v2"], "RepoDigests": None}


async def look(name: str, folder: Path, seconds: float = 20.0, **values: str) -> Prospect:
    found = await survey({"RAP_DOCKER_HOST": f"unix://{folder}/none.sock", **values}, [folder], seconds=seconds)
    assert [each.name for each in found] == ["docker", "slurm", "sandbox"]
    return next(each for each in found if each.name == name)


class Stocked(FakeEngine):
    """A fake engine that can say which images it has."""

    stock: list[dict[str, Any]]

    def app(self) -> web.Application:
        app = super().app()

        async def images(_: web.Request) -> web.Response:
            return web.json_response(self.stock)

        app.router.add_get("/{v}/images/json", images)
        return app


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stocked]:
    monkeypatch.setattr("tests.agent.executors.test_docker_images.FakeEngine", Stocked)
    async with serving(succeed) as engine:
        assert isinstance(engine, Stocked)
        engine.stock = [{"RepoTags": ["other:v1"], "RepoDigests": ["other@sha256:00"]}, IMAGE]
        engine.info["Name"] = socket.gethostname()
        engine.version["Version"] = "26.1.5"
        yield engine


async def test_an_engine_with_images_is_ready(engine: Stocked, tmp_path: Path) -> None:
    found = await look("docker", tmp_path, RAP_DOCKER_HOST=engine.address)
    assert (found.standing, found.version) == (Standing.READY, "Docker 26.1.5")
    assert found.finding == "1 image that jobs may use is there"


@pytest.mark.parametrize(
    ("info", "values", "words"),
    [
        ({}, {"DOCKER_REGISTRY": "ghcr.io/others"}, "no image of ghcr.io/others (DOCKER_REGISTRY)"),
        ({"SecurityOptions": ["name=rootless"]}, {}, "DOCKER_USER_ID"),
    ],
)
async def test_an_engine_that_lacks_something_must_be_asked_for(
    engine: Stocked, tmp_path: Path, info: dict[str, Any], values: dict[str, str], words: str
) -> None:
    engine.info |= info
    found = await look("docker", tmp_path, RAP_DOCKER_HOST=engine.address, **values)
    assert found.standing is Standing.ON_REQUEST
    assert words in found.finding
    assert "--executor docker" in found.advice


async def test_an_engine_outside_of_our_container_must_be_asked_for(
    engine: Stocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "_CONTAINER_MARKS", (str(tmp_path),))
    engine.info["Name"] = "outside"
    found = await look("docker", tmp_path, RAP_DOCKER_HOST=engine.address)
    assert found.standing is Standing.ON_REQUEST
    assert "DOCKER_HOST_VOLUME_DIR" in found.advice
    told = await look("docker", tmp_path, RAP_DOCKER_HOST=engine.address, DOCKER_HOST_VOLUME_DIR="/srv/volumes")
    assert told.standing is Standing.READY


async def test_an_engine_that_is_too_old_is_no_use(engine: Stocked, tmp_path: Path) -> None:
    engine.version["ApiVersion"] = "1.40"
    found = await look("docker", tmp_path, RAP_DOCKER_HOST=engine.address)
    assert found.standing is Standing.UNUSABLE
    assert "API 1.40" in found.finding


@pytest.mark.parametrize(
    ("body", "kind"), [("<html>welcome</html>", "text/html"), ("[]", "application/json"), ("{}", "application/json")]
)
async def test_what_answers_may_be_something_else(tmp_path: Path, body: str, kind: str) -> None:
    """A proxy or a web site at the address of an engine."""

    async def welcome(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type=kind)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", welcome)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        found = await look("docker", tmp_path, RAP_DOCKER_HOST=f"unix://{tmp_path}/s")
    finally:
        await runner.cleanup()
    assert found.standing is Standing.UNUSABLE
    assert found.finding == f"what answers at unix://{tmp_path}/s is no container engine: set RAP_DOCKER_HOST"


async def test_a_socket_that_refuses_is_named(tmp_path: Path) -> None:
    path = _socket(tmp_path, listens=False)
    found = await look("docker", tmp_path, RAP_DOCKER_HOST=f"unix://{path}")
    assert (found.standing, found.finding) == (Standing.UNUSABLE, f"{path}: connection refused")
    assert "DOCKER_HOST=" in found.advice


async def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = await look("docker", tmp_path)
    assert found.finding == f"there is no {tmp_path}/none.sock"
    assert "systemctl start docker" in found.advice


async def test_an_engine_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """The bound is what ends it: the socket takes the question and nobody ever reads it."""
    with socket.socket(socket.AF_UNIX) as server:
        path = _socket(tmp_path, listens=True, server=server)
        found = await look("docker", tmp_path, seconds=0.2, RAP_DOCKER_HOST=f"unix://{path}")
    assert (found.standing, found.finding) == (Standing.UNUSABLE, "no answer within 0.2 s")


@pytest.mark.parametrize(
    ("name", "value", "executor"),
    [("DOCKER_HOST", "ssh://me@there", "docker"), ("RAP_SLURM_PARTITION", "a b", "slurm")],
)
async def test_a_faulty_setting_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, executor: str
) -> None:
    _clients(tmp_path, monkeypatch)
    found = await look(executor, tmp_path, **{name: value})
    assert found.standing is Standing.UNUSABLE
    assert found.finding.startswith(f"{name} is ")


@pytest.mark.parametrize(
    ("scripts", "values", "words"),
    [
        ({"sbatch": None}, {}, "there is no sbatch"),
        ({"scontrol": "echo 'scontrol: error: x' >&2; exit 1"}, {}, "slurmctld does not answer"),
        (
            {"scontrol": 'if [ "$1" = ping ]; then echo "Slurmctld(primary) at c is UP"; else exit 1; fi'},
            {"RAP_SLURM_PARTITION": "nope"},
            "RAP_SLURM_PARTITION is 'nope', which is no partition",
        ),
        (
            {
                "scontrol": 'if [ "$1" = ping ]; then echo "Slurmctld(primary) at c is UP"; else'
                ' echo "slurm_load_partitions error: Unable to contact slurm controller (connect failure)" >&2;'
                " exit 1; fi"
            },
            {"RAP_SLURM_PARTITION": "main"},
            "slurmctld does not answer",
        ),
    ],
)
async def test_a_cluster_that_cannot_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: Mapping[str, str | None],
    values: dict[str, str],
    words: str,
) -> None:
    _clients(tmp_path, monkeypatch, scripts)
    found = await look("slurm", tmp_path, RAP_ALLOW_UNISOLATED="true", **values)
    assert found.standing is Standing.UNUSABLE
    assert words in found.finding
    assert found.advice


async def test_a_busy_cluster_must_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its nodes see our folders nobody knows; a job in the queue is taken back."""
    monkeypatch.setattr(surveys, "_NODE_SECONDS", 0.3)
    _clients(tmp_path, monkeypatch, {"sbatch": "cat > /dev/null; echo 7", "squeue": "echo '7|PENDING|x|0:0|Priority'"})
    found = await look("slurm", tmp_path, RAP_ALLOW_UNISOLATED="true")
    assert found.standing is Standing.ON_REQUEST, found
    assert "none was free" in found.finding
    assert await asyncio.to_thread((tmp_path / "cancelled").read_text) == "--quiet 7\n"
    assert not list(await asyncio.to_thread(lambda: list(tmp_path.glob(".slurm-probe-*"))))


async def test_a_folder_in_which_nothing_can_be_asked_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _clients(tmp_path, monkeypatch)
    found = await look("slurm", Path("/proc"), RAP_ALLOW_UNISOLATED="true")
    assert found.standing is Standing.UNUSABLE
    assert found.finding.startswith("the folder /proc cannot be written: ")


async def test_a_slurmctld_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _clients(tmp_path, monkeypatch, {"scontrol": "exec sleep 1000"})
    found = await look("slurm", tmp_path, seconds=1.0, RAP_ALLOW_UNISOLATED="true")
    assert (found.standing, found.finding) == (Standing.UNUSABLE, "no answer within 1 s")


async def test_without_bubblewrap_it_depends_on_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await look("sandbox", tmp_path)
    assert (found.standing, found.finding) == (Standing.UNUSABLE, "bubblewrap is not installed (package `bubblewrap`)")
    assert "RAP_ALLOW_UNISOLATED=true" in found.advice
    bare = await look("sandbox", tmp_path, RAP_ALLOW_UNISOLATED="true")
    assert (bare.standing, bare.isolated) == (Standing.READY, False)
    assert "WITHOUT isolation" in bare.finding


async def test_a_machine_without_docker_does_not_import_its_library(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from agent.executors.survey import survey;"
        "asyncio.run(survey({'DOCKER_HOST': 'unix:///nonexistent'}, [Path('.')]));"
        "assert 'aiodocker' not in sys.modules"
    )
    environ = {"PYTHONPATH": str(Path(surveys.__file__).parents[2]), "PATH": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environ, cwd=tmp_path)
    assert await process.wait() == 0


def _socket(folder: Path, *, listens: bool, server: socket.socket | None = None) -> str:
    """A socket that somebody listens at, or has left behind; its path, short as sockets need it."""
    path = f"/proc/self/fd/{os.open(folder, os.O_PATH)}/s"
    server = server or socket.socket(socket.AF_UNIX)
    server.bind(path)
    if listens:
        server.listen(1)
    else:
        server.close()
    return path


def _clients(folder: Path, monkeypatch: pytest.MonkeyPatch, scripts: Mapping[str, str | None] | None = None) -> None:
    """Slurm's commands, as little as is asked of them; None for one that is not there."""
    given: dict[str, str | None] = {
        "sbatch": "echo slurm-wlm 22.05.8",
        "scontrol": 'echo "Slurmctld(primary) at c is UP"',
        "squeue": "true",
        "scancel": f'echo "$*" > {folder}/cancelled',
    }
    programs = folder / "bin"
    programs.mkdir()
    for name, script in (given | dict(scripts or {})).items():
        if script is not None:
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
    for name in ("sleep", "cat"):
        (programs / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))

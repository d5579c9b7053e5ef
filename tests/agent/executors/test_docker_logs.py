"""A log that an engine stops telling, with an engine that is made for the test."""

import asyncio
from pathlib import Path

import pytest
from aiodocker import DockerError
from aiohttp import web

from agent.executors.base import Limits, Run
from agent.executors.docker import follower as docker_follow
from agent.executors.docker.engine import Engine
from agent.executors.docker.notes import Notes

FRAME = b"\x01\0\0\0\0\0\0\x05begun"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(
        task_id="job-001",
        job_id="job",
        workspace="w",
        action="a",
        image="python:v2",
        image_sha=None,
        args=(),
        env={},
        volume=tmp_path / "volume",
        state_dir=tmp_path / "state",
        limits=Limits(cpu_count=1, memory_bytes=1 << 30),
    )


async def test_log_that_never_ends_is_kept_as_far_as_it_came(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_follow, "LOG_SECONDS", 0.05)
    over = asyncio.Event()

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "Components": []})

    async def info(_: web.Request) -> web.Response:
        return web.json_response({"OSType": "linux", "MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True})

    async def logs(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(FRAME)
        await over.wait()
        return response

    app = web.Application()
    for path in ("/version", "/{v}/version"):
        app.router.add_get(path, version)
    app.router.add_get("/{v}/info", info)
    app.router.add_get("/{v}/containers/{name}/logs", logs)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine = Engine("http://{}:{}".format(*runner.addresses[0][:2]))
    try:
        run.state_dir.mkdir()
        with pytest.raises(DockerError, match="no more of the log"):
            await docker_follow.copy_log(engine, run, "name", 1000, follow=False)
        assert Notes(run.state_dir).read_log(0, 100) == b"begun"
    finally:
        over.set()
        await engine.close()
        await runner.cleanup()

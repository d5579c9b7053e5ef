"""Pulling images, and engines that cannot be used: with an engine that is made for the test."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web

from agent.executors.base import ExecutorError, Limits, Phase, Run, Unusable
from agent.executors.docker.executor import DockerExecutor
from agent.executors.docker.spec import DockerSettings

VERSION: dict[str, Any] = {"ApiVersion": "1.41", "Components": [{"Name": "Engine"}]}
INFO = {"OSType": "linux", "MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True, "NCPU": 2}
IMAGE = "ghcr.io/opensafely-core/python:v2"
Pull = Callable[["FakeEngine", str], Awaitable[str]]


@attrs.define
class FakeEngine:
    """As much of an engine as pulls need."""

    address: str
    pull: Pull
    version: dict[str, Any] = attrs.Factory(lambda: dict(VERSION))
    info: dict[str, Any] = attrs.Factory(lambda: dict(INFO))
    images: set[str] = attrs.Factory(set)
    pulls: list[str] = attrs.Factory(list)
    running: bool = False
    go: asyncio.Event = attrs.Factory(asyncio.Event)
    asked: asyncio.Event = attrs.Factory(asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/{v}/version", self._version)
        app.router.add_get("/{v}/info", self._info)
        app.router.add_get("/{v}/images/{name:.+}/json", self._inspect)
        app.router.add_post("/{v}/images/create", self._create)
        app.router.add_get("/{v}/containers/{name}/json", self._container)
        app.router.add_post("/{v}/containers/{name}/kill", self._kill)
        return app

    async def _version(self, _: web.Request) -> web.Response:
        return await _json(self.version)

    async def _info(self, _: web.Request) -> web.Response:
        return await _json(self.info)

    async def _inspect(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name in self.images:
            return await _json({"Id": "sha256:1"})
        return await _json({"message": f"No such image: {name}"}, 404)

    async def _create(self, request: web.Request) -> web.Response:
        name = request.query["fromImage"]
        self.pulls.append(name)
        self.asked.set()
        return web.Response(text=await self.pull(self, name), content_type="application/json")

    async def _container(self, request: web.Request) -> web.Response:
        state = {"Status": "exited", "StartedAt": "2026-01-01T00:00:00Z", "FinishedAt": "2026-01-01T00:00:01Z"}
        state |= {"ExitCode": 0} if not self.running else {"Status": "running", "Running": True}
        if request.match_info["name"] != "os-job-other-001":
            return await _json({"message": "No such container"}, 404)
        marks = {"org.rap-controller.task": "other-001", "org.rap-controller.agent": "agent-1"}
        return await _json({"Id": "c1", "State": state, "Config": {"Labels": marks}})

    async def _kill(self, request: web.Request) -> web.Response:
        self.running = False
        return web.Response(status=204)


async def _json(body: Any, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


@asynccontextmanager
async def serving(pull: Pull) -> AsyncIterator[FakeEngine]:
    """A fake engine on a socket."""
    with tempfile.TemporaryDirectory(prefix="rap-") as folder:
        engine = FakeEngine(f"unix://{folder}/s", pull)
        runner = web.AppRunner(engine.app(), shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, f"{folder}/s").start()
        try:
            yield engine
        finally:
            await runner.cleanup()


def make_executor(address: str, **changes: Any) -> DockerExecutor:
    return DockerExecutor(DockerSettings(agent_id="agent-1", host=address, **changes), pull_pause=0.01)


def make_run(folder: Path, task: str = "job-001", **changes: Any) -> Run:
    run = Run(
        task_id=task,
        job_id=task[:-4],
        workspace="w",
        action="a",
        image=IMAGE,
        image_sha=None,
        args=(),
        env={},
        volume=folder / "volume",
        state_dir=folder / task,
        limits=Limits(cpu_count=1, memory_bytes=1 << 26),
    )
    return attrs.evolve(run, **changes)


async def succeed(engine: FakeEngine, name: str) -> str:
    await engine.go.wait()
    engine.images.add(name)
    return '{"status": "Pulling"}\n{"status": "Done"}\n'


async def refuse(engine: FakeEngine, name: str) -> str:
    return '{"errorDetail": {"message": "manifest unknown"}, "error": "manifest unknown"}\n'


async def break_off(engine: FakeEngine, name: str) -> str:
    return '{"status": "Pulling"}\n'


async def test_one_pull_for_all_who_need_the_image(tmp_path: Path) -> None:
    async with serving(succeed) as engine:
        executor = make_executor(engine.address)
        waiting = [asyncio.create_task(executor.prepare(make_run(tmp_path, f"j{n}-001"))) for n in range(4)]
        await engine.asked.wait()
        waiting[0].cancel()  # somebody's cancel is no reason for the others to go without
        engine.go.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in done] == [True, False, False, False]
        assert done[1:] == [None] * 3
        assert engine.pulls == [IMAGE]
        await executor.prepare(make_run(tmp_path))
        assert engine.pulls == [IMAGE]
        await executor.close()


async def test_slow_pull_holds_up_nothing_else(tmp_path: Path) -> None:
    async with serving(succeed) as engine:
        executor = make_executor(engine.address)
        pull = asyncio.create_task(executor.prepare(make_run(tmp_path)))
        await engine.asked.wait()
        engine.running = True
        other = make_run(tmp_path, "other-001")
        assert (await executor.status(other)).phase is Phase.RUNNING
        await executor.terminate(other)
        assert not engine.running
        assert not pull.done()
        pull.cancel()
        await asyncio.gather(pull, return_exceptions=True)
        await executor.close()


async def test_digest_goes_through_the_proxy(tmp_path: Path) -> None:
    async with serving(succeed) as engine:
        engine.go.set()
        executor = make_executor(engine.address, proxy="proxy.example.org")
        await executor.prepare(make_run(tmp_path, image_sha=f"sha256:{'a' * 64}"))
        assert engine.pulls == [f"proxy.example.org/opensafely-core/python@sha256:{'a' * 64}"]
        await executor.close()


async def test_unknown_image_is_fatal_at_once(tmp_path: Path) -> None:
    async with serving(refuse) as engine:
        executor = make_executor(engine.address)
        with pytest.raises(ExecutorError, match=f"Unknown image '{IMAGE}' .DOCKER_REGISTRY.: manifest") as caught:
            await executor.prepare(make_run(tmp_path))
        assert caught.value.fatal
        assert len(engine.pulls) == 1
        await executor.close()


async def test_broken_pull_is_tried_three_times(tmp_path: Path) -> None:
    async with serving(break_off) as engine:
        executor = make_executor(engine.address)
        with pytest.raises(ExecutorError, match="cannot be pulled: the pull ended early") as caught:
            await executor.prepare(make_run(tmp_path))
        assert not caught.value.fatal
        assert len(engine.pulls) == 3
        await executor.close()


async def test_endless_pull_ends(tmp_path: Path) -> None:
    async with serving(succeed) as engine:
        executor = make_executor(engine.address, pull_seconds=0.05)
        with pytest.raises(ExecutorError, match=r"within 0.05 s .IMAGE_PULL_TIMEOUT") as caught:
            await executor.prepare(make_run(tmp_path))
        assert not caught.value.fatal
        assert len(engine.pulls) == 3
        await executor.close()


@pytest.mark.parametrize(
    ("version", "info", "words"),
    [
        ({"ApiVersion": "1.40"}, {}, "API 1.40, and 1.41"),
        ({"ApiVersion": "x"}, {}, "no container engine"),
        ({}, {"MemoryLimit": False}, "cgroups lack MemoryLimit"),
        ({}, {"OSType": "windows"}, "runs windows containers"),
    ],
)
async def test_unusable_engines(version: dict[str, Any], info: dict[str, Any], words: str) -> None:
    async with serving(succeed) as engine:
        engine.version |= version
        engine.info |= info
        executor = make_executor(engine.address)
        with pytest.raises(Unusable, match=f"(?s){words}.*RAP_DOCKER_HOST"):
            await executor.check()
        await executor.close()


@pytest.mark.parametrize("address", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1", "nonsense"])
async def test_no_engine(address: str) -> None:
    executor = make_executor(address)
    with pytest.raises(Unusable, match="RAP_DOCKER_HOST"):
        await executor.check()
    await executor.close()

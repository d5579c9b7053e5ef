"""A controller process on an embedded PostgreSQL with fsync on, and no agent: the benches play the agent."""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from attrs import frozen

from cli.stack.place import free_port
from cli.stack.postgres import Postgres, ensure_database
from controller.store.schema import migrate


@frozen(kw_only=True)
class Bench:
    """Where the controller listens, and a session for its portal and one for its agent."""

    url: str
    portal: aiohttp.ClientSession
    agent: aiohttp.ClientSession
    folder: Path
    """For repositories and the like; gone afterwards."""


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    """The controller, ready; everything is stopped and removed on leaving."""
    folder = Path(tempfile.mkdtemp(prefix="rap-bench-"))
    folder.chmod(0o755)
    server = Postgres(folder / "postgres", folder / "postgres.log")
    client, agent, port = secrets.token_hex(16), secrets.token_hex(16), free_port(0)
    process = None
    try:
        server.prepare()
        server.spawn()
        server.wait_ready(60)
        dsn = await ensure_database(server, "bench")
        await migrate(dsn)
        process = subprocess.Popen(
            [sys.executable, "-m", "controller"],
            env={
                **os.environ,
                "RAP_DATABASE_URL": dsn,
                "RAP_LISTEN": f"127.0.0.1:{port}",
                "BACKENDS": "test",
                "TEST_CLIENT_TOKENS": client,
                "TEST_JOB_SERVER_TOKEN": agent,
                "TEST_MAX_WORKERS": "1000",
                "ALLOW_LOCAL_GIT_REPOS": "true",
                "WORKDIR": str(folder / "work"),
            },
            stderr=(folder / "controller.log").open("wb"),
        )
        url = f"http://127.0.0.1:{port}"
        async with (
            aiohttp.ClientSession(headers={"Authorization": client}) as portal,
            aiohttp.ClientSession(headers={"Authorization": agent}) as agents,
        ):
            await _ready(portal, url)
            yield Bench(url=url, portal=portal, agent=agents, folder=folder)
    finally:
        if process is not None:
            process.terminate()
            process.wait(20)
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _ready(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


def commit(folder: Path, project: str) -> str:
    """Make `folder` a repository with this project file; its commit."""
    folder.mkdir()
    (folder / "project.yaml").write_text(project)
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        ["-c", "user.name=Bench", "-c", "user.email=bench@example.org", "commit", "--quiet", "-m", "Bench"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()

"""A whole backend for tests: a controller and an agent with a real executor, which fetch code from a private host."""

import io
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import asyncpg
from attrs import frozen

from tests.e2e import git_server
from tests.e2e.conftest import LiveController
from tests.e2e.git_server import GitServer
from tests.e2e.machines import Machine
from tests.e2e.processes import (
    PATIENCE,
    Process,
    address,
    agent_process,
    controller_process,
    eventually,
    portal,
    running,
)
from tests.engine.conftest import Study

GIT_TOKEN = "ghp-canary-git-token-4711"
CHECKS = {
    "MAINTENANCE_ENABLED_BACKENDS": "test",
    "DATA_CHECK_ENABLED_BACKENDS": "test",
    "DATA_CHECK_HES_EXPECTED_ACTIVITY_MONTH": "202304",
}
"""Settings of a controller that asks for checks of the database."""


@frozen(kw_only=True)
class Backend:
    """Everything, running."""

    machine: Machine
    live: LiveController
    git: GitServer
    controller: Process
    agent: Process
    folder: Path
    """All that controller and agent keep."""
    database_dsn: str
    """The controller's own database."""

    @property
    def high(self) -> Path:
        """The high-privacy area."""
        return self.folder / "agents" / "high"

    @property
    def medium(self) -> Path:
        """The medium-privacy area."""
        return self.folder / "agents" / "medium"

    async def create(self, repo_url: str, commit: str, *actions: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        """Ask for actions of a study; status and body."""
        return await self.live.create(Study(Path(), commit), *actions, repo_url=repo_url, **changes)

    async def finished(self, rap_id: str, patience: float = PATIENCE) -> dict[str, dict[str, Any]]:
        """The RAP's jobs by action, once all have ended."""

        async def look() -> dict[str, dict[str, Any]] | None:
            jobs = await self.live.jobs(rap_id)
            return jobs if all(job["completed_at"] for job in jobs.values()) else None

        return await eventually(look, patience)

    async def dump(self) -> bytes:
        """Everything that the controller's database holds."""
        connection = await asyncpg.connect(self.database_dsn)
        try:
            dumped = io.BytesIO()
            names = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
            for (name,) in await connection.fetch(names):
                await connection.copy_from_table(name, output=dumped)
            return dumped.getvalue()
        finally:
            await connection.close()

    async def ask_store(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the controller's database."""
        connection = await asyncpg.connect(self.database_dsn)
        try:
            return [tuple(row) for row in await connection.fetch(question, *values)]
        finally:
            await connection.close()

    def kept(self) -> bytes:
        """Every file of controller and agent, its name included."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            found.append(os.fsencode(path))
            try:
                found.append(path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
            except FileNotFoundError:  # removed meanwhile
                continue
        return b"\n".join(found)

    def said(self) -> str:
        """Every log line of controller and agent."""
        return "\n".join([*self.controller.said, *self.agent.said])


@asynccontextmanager
async def backend(
    machine: Machine,
    database_dsn: str,
    folder: Path,
    *,
    controllers: dict[str, str] | None = None,
    agents: dict[str, str] | None = None,
    between: Callable[[str], AbstractAsyncContextManager[str]] = nullcontext,
) -> AsyncIterator[Backend]:
    """Start everything, and end it.

    :param controllers: further settings of the controller.
    :param agents: further settings of the agent.
    :param between: what is put between the agent and the controller: given the controller's address, another.
    """
    async with AsyncExitStack() as stack:
        git = await stack.enter_async_context(git_server.serving(folder / "git", token=GIT_TOKEN))
        both = {
            "ALLOW_LOCAL_GIT_REPOS": "false",
            "GITHUB_PROXY_DOMAIN": git.domain,
            "PRIVATE_REPO_ACCESS_TOKEN": GIT_TOKEN,
            "SSL_CERT_FILE": str(git.certificate),
        }
        ours = folder / "ours"
        controller = controller_process(database_dsn, ours / "controller", **both, **(controllers or {}))
        await stack.enter_async_context(running(controller))
        where = await address(controller)
        name, settings = f"agent-{folder.name}", both | dict(machine.environ) | (agents or {})
        via = await stack.enter_async_context(between(where))
        agent = agent_process(name, f"http://{via}", ours / "agents", prefix=machine.prefix, **settings)
        await stack.enter_async_context(running(agent))
        await agent.wait_for("agent_starting")
        live = await stack.enter_async_context(portal(where))
        yield Backend(
            machine=machine,
            live=live,
            git=git,
            controller=controller,
            agent=agent,
            folder=ours,
            database_dsn=database_dsn,
        )

"""A whole agent for a test: a study in git, a controller over a socket, a scripted executor, a clock by hand."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from attrs import define, evolve, field
from structlog.testing import capture_logs

from agent.app import assemble, make_places
from agent.loop import Loop, StopMode
from agent.outputs.workspaces import Places
from agent.reports import Reports
from agent.settings import Settings, from_environ
from common.protocol import TaskOffer
from tests.agent.fake_controller import FakeController
from tests.agent.hand_clock import HandClock
from tests.agent.scripted import ScriptedExecutor

TOKEN = "canary-token-value"
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
NEVER = 1_000_000
"""Seconds: longer than any test cranks its clock."""


def git(folder: Path, *arguments: str) -> str:
    """Run git in a test's repository, whatever this machine's configuration is."""
    environ = {"PATH": "/usr/bin:/bin:/usr/local/bin", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(folder)}
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def make_repo(folder: Path, files: dict[str, str]) -> tuple[str, str]:
    """A repository with one commit; its path and the commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=study")
    return str(folder), git(folder, "rev-parse", "HEAD")


def make_settings(folder: Path, url: str, **changes: Any) -> Settings:
    """Settings of a test agent."""
    settings = from_environ(
        {
            "BACKEND": "test",
            "RAP_CONTROLLER_URL": url,
            "CONTROLLER_TASK_API_TOKEN": TOKEN,
            "RAP_AGENT_ID": "agent-1",
            "RAP_AGENT_SLOTS": "2",
            "WORKDIR": str(folder / "work"),
            "HIGH_PRIVACY_STORAGE_BASE": str(folder / "high"),
            "MEDIUM_PRIVACY_STORAGE_BASE": str(folder / "medium"),
            "HIGH_PRIVACY_ARCHIVE_DIR": str(folder / "archives"),
            "RAP_EGRESS": "open",
            "ALLOW_LOCAL_GIT_REPOS": "true",
            "DEFAULT_DATABASE_URL": "canary-database-url",
            "RAP_GIT_TIMEOUT": str(NEVER),
            "STATS_POLL_INTERVAL": str(NEVER),
            "RAP_DISK_RESERVE": "0",
            "RAP_POLL_SECONDS": "60",
        }
    )
    return evolve(settings, **changes)


@define
class Stage:
    """Everything that stands when a test begins; agents come and go on it."""

    folder: Path
    controller: FakeController
    executor: ScriptedExecutor
    clock: HandClock
    settings: Settings
    repo: str
    commit: str
    logged: list[Any]
    """What the agents logged."""
    loops: list[Loop] = field(factory=list)

    @property
    def places(self) -> Places:
        return Places(
            high=self.folder / "high",
            medium=self.folder / "medium",
            archive=self.folder / "archives",
            work=self.folder / "work",
        )

    @property
    def notes(self) -> list[str]:
        """Tasks that the agent would take up after a restart."""
        return sorted(path.parent.name for path in (self.folder / "work" / "tasks").glob("*/offer.json"))

    def definition(self, job_id: str = "jobone", **changes: Any) -> dict[str, Any]:
        return {
            "id": job_id,
            "rap_id": "rap1",
            "task_id": f"{job_id}-001",
            "repo_url": self.repo,
            "commit": self.commit,
            "study": {"git_repo_url": self.repo, "commit": self.commit, "branch": "main"},
            "workspace": "ws",
            "action": "analyse",
            "created_at": 1_770_000_000,
            "image": "ghcr.io/opensafely-core/python:v2",
            "image_sha": "sha256:image",
            "args": ["python", "analyse.py"],
            "env": {"OPENSAFELY_BACKEND": "test"},
            "inputs": [],
            "input_job_ids": [],
            "output_spec": {"output/*.csv": "moderately_sensitive"},
            "allow_database_access": False,
            "database_name": None,
            "level4_max_csv_rows": 5000,
            "level4_max_filesize": 16777216,
            "level4_file_types": [".csv", ".txt"],
            "user": "someone",
            "cpu_count": 1.5,
            "memory_limit": "512m",
        } | changes

    def run_task(self, job_id: str = "jobone", attempt: int = 1, **changes: Any) -> TaskOffer:
        return TaskOffer(
            id=f"{job_id}-{attempt:03}",
            type="runjob",
            attempt=attempt,
            job_id=job_id,
            definition=self.definition(job_id, **changes),
            attributes={"user": "someone", "project": "p", "orgs": "o"},
            traceparent=TRACEPARENT,
            created_at=1_770_000_001,
        )

    def cancel_task(self, job_id: str = "jobone", attempt: int = 1, **changes: Any) -> TaskOffer:
        task = self.run_task(job_id, attempt, image_sha=None, **changes)
        return evolve(task, id=f"{task.id}-cancel", type="canceljob")

    @contextlib.asynccontextmanager
    async def agent(self, stop: StopMode | None = None, **changes: Any) -> AsyncIterator[Loop]:
        """A running agent; it ends by being stopped, or, without `stop`, as if it were killed."""
        settings = evolve(self.settings, **changes)
        places = await asyncio.to_thread(make_places, settings)
        async with assemble(settings, places, self.executor, self.clock) as (loop, reports):
            self.loops.append(loop)
            claiming = asyncio.create_task(loop.run())
            sending = asyncio.create_task(reports.run())
            try:
                yield loop
            finally:
                claiming.cancel()
                await asyncio.wait([claiming])
                await self._end(loop, reports, stop)
                for task in (claiming, sending):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task  # neither ends by itself: a bug in one fails the test

    async def _end(self, loop: Loop, reports: Reports, stop: StopMode | None) -> None:
        if stop is not None:
            await loop.stop(stop)
            return
        lives = {*loop._tasks, *loop._concluding}
        for task in lives:
            task.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


@contextlib.asynccontextmanager
async def stand(folder: Path, **changes: Any) -> AsyncIterator[Stage]:
    """Set the stage in an empty folder."""
    repo, commit = await asyncio.to_thread(
        make_repo,
        folder / "study",
        {
            "analyse.py": "print('canary-source-text')\n",
            "project.yaml": "version: 4\nactions:\n  analyse:\n    run: python:v2 analyse.py\n",
        },
    )
    with capture_logs() as logged:
        async with FakeController().serving() as controller:
            settings = await asyncio.to_thread(make_settings, folder, controller.url, **changes)
            yield Stage(
                folder=folder,
                controller=controller,
                executor=ScriptedExecutor(),
                clock=HandClock(),
                settings=settings,
                repo=repo,
                commit=commit,
                logged=logged,
            )


def write_output(run: Any, text: str = "a,b\n1,2\n", name: str = "output/table.csv") -> int:
    """A script for the executor: one output and success."""
    path = run.volume / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return 0

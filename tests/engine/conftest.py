"""A real engine: real PostgreSQL, real git, a hand-cranked clock, and no loops (tests call `schedule` themselves)."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve

from common.ids import random_id
from common.protocol import ClaimRequest, Declaration, Held, Report, ReportsRequest, TaskOffer, Verdict
from controller.core.definition import Terms
from controller.core.model import Job, RapId, RapRequest
from controller.core.resources import JobLimits
from controller.core.retry import DEFAULT
from controller.core.schedule import Limits
from controller.core.weights import parse as parse_weights
from controller.engine.context import BackendTerms, Context, Sources
from controller.engine.facade import Engine
from controller.engine.results import Created
from controller.sources.git import Git
from controller.sources.project_file import ProjectFiles
from controller.sources.reusable import ReusableActions
from controller.store import backends
from controller.store.db import Database
from controller.store.listen import Listener
from tests.factories import principal, rap_request
from tests.fakes.clock import ManualClock
from tests.fakes.wakeups import ObservedWakeups

PROJECT = {
    "version": "4",
    "actions": {
        "extract": {
            "run": "python:v2 python extract.py",
            "outputs": {"highly_sensitive": {"rows": "output/rows.csv"}},
        },
        "analyse": {
            "run": "python:v2 python analyse.py",
            "needs": ["extract"],
            "outputs": {"moderately_sensitive": {"table": "output/table.csv"}},
        },
        "count": {
            "run": "python:v2 python count.py",
            "needs": ["extract"],
            "outputs": {"moderately_sensitive": {"count": "output/count.csv"}},
        },
        "report": {
            "run": "python:v2 python report.py",
            "needs": ["analyse", "count"],
            "outputs": {"moderately_sensitive": {"report": "output/report.html"}},
        },
        "query": {
            "run": "sqlrunner:v1 query.sql",
            "outputs": {"highly_sensitive": {"query": "output/query.csv"}},
        },
    },
}
"""A diamond, and a database job beside it."""

TERMS = Terms(
    docker_registry="ghcr.io/opensafely-core",
    ordinary=JobLimits(cpu_count=2, memory_limit="4G"),
    level4_max_csv_rows=5000,
    level4_max_filesize=16 * 1024**2,
    level4_file_types=(".csv", ".html"),
    stata_license=None,
    ehrql_max_join_count={},
)


def commit_project(folder: Path, project: Mapping[str, Any]) -> str:
    """Make `folder` a repository whose head has this project file (JSON is YAML); the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.yaml").write_text(json.dumps(project))
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(folder)}

    def git(*args: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        done = subprocess.run(
            ["git", *identity, *args], cwd=folder, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", ".")
    git("commit", "--quiet", "-m", "Project")
    return git("rev-parse", "HEAD")


@define
class Study:
    """A repository on this machine."""

    path: Path
    commit: str

    def request(self, *actions: str, **changes: Any) -> RapRequest:
        """A request for some of its actions under a new id."""
        values = {
            "rap_id": RapId(random_id()),
            "repo_url": str(self.path),
            "commit": self.commit,
            "requested_actions": actions or ("run_all",),
        }
        return rap_request(**values | changes)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The diamond."""
    path = tmp_path_factory.mktemp("repos") / "study"
    return Study(path, commit_project(path, PROJECT))


@define
class Harness:
    """An engine, and the words that tests speak of it in."""

    engine: Engine
    context: Context
    clock: ManualClock
    agent: str = "agent-1"

    async def create(self, request: RapRequest) -> Created:
        answer = await self.engine.create_rap(principal("test", "other"), request)
        assert isinstance(answer, Created)
        return answer

    async def settle(self, backend: str = "test") -> None:
        """Schedule until there is nothing left to decide."""
        while (await self.engine.schedule(backend)).moved:
            pass

    async def claim(
        self, slots: int = 10, *, wait: float = 0, holding: Sequence[TaskOffer] = (), agent: str | None = None
    ) -> tuple[TaskOffer, ...]:
        held = tuple(Held(task_id=task.id, attempt=task.attempt) for task in holding)
        request = ClaimRequest(agent=agent or self.agent, slots=slots, wait=wait, holding=held)
        return (await self.engine.claim("test", request)).tasks

    async def report(self, task: TaskOffer, stage: str, *, agent: str | None = None, **said: Any) -> Verdict:
        report = Report(task_id=task.id, attempt=task.attempt, stage=stage, **said)
        answer = await self.engine.report("test", ReportsRequest(agent=agent or self.agent, reports=(report,)))
        return answer.answers[0].verdict

    async def finish(self, task: TaskOffer, exit_code: int = 0, **results: Any) -> Verdict:
        """The final report of an ordinary job."""
        said = {"error": False, "exit_code": str(exit_code)} | results
        return await self.report(task, "finalized", complete=True, results=said)

    async def jobs(self, *rap_ids: str) -> dict[str, Job]:
        """The jobs of these RAPs, by action."""
        report = await self.engine.status(principal("test", "other"), [RapId(r) for r in rap_ids])
        return {job.spec.action: job for job in report.jobs}

    async def codes(self, *rap_ids: str) -> dict[str, str]:
        """The status codes of these RAPs' jobs, by action."""
        return {action: job.progress.code.value for action, job in (await self.jobs(*rap_ids)).items()}

    async def run_all(self) -> list[str]:
        """Play an agent whose every job succeeds until nothing is left; the job ids in the order they ran."""
        ran = []
        await self.settle()
        while tasks := await self.claim():
            for task in tasks:
                assert await self.finish(task) is Verdict.APPLIED
                ran.append(task.job_id or "")
            await self.settle()
        return ran

    async def waiter_arrives(self) -> None:
        """Return once somebody has begun to wait (a long-poll has looked, found nothing, and sleeps)."""
        assert isinstance(self.context.wakeups, ObservedWakeups)
        await self.context.wakeups.asleep.wait()

    async def set_flag(self, flag: str, value: str | None) -> None:
        async with self.context.db.transaction() as tx:
            await backends.set_flag.run(tx, backend="test", id=flag, value=value, now=self.clock.now())


def make_context(database: Database, clock: ManualClock, workdir: Path, *, workers: float = 10) -> Context:
    git = Git(workdir, allowed_orgs=("opensafely",), allow_local=True, environ=os.environ)
    limits = Limits(workers=workers, db_workers=workers)
    return Context(
        db=database,
        clock=clock,
        wakeups=ObservedWakeups(),
        sources=Sources(git=git, projects=ProjectFiles(git), reusable=ReusableActions(git), digests=None),
        backends={slug: BackendTerms(limits=limits, terms=TERMS, most=TERMS.ordinary) for slug in ("test", "other")},
        event_level_projects=frozenset(),
        retry=DEFAULT,
        lease_seconds=60,
        poll_seconds=30,
        log_bytes=1000,
        closing=asyncio.Event(),
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def harness(database: Database, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Harness]:
    """An engine with two backends and an agent at one of them."""
    context = make_context(database, clock, tmp_path / "work")
    async with database.connection() as tx:
        await backends.ensure.run(tx, slugs=list(context.backends), now=clock.now())
    made = Harness(Engine(context), context, clock)
    await made.engine.declare_agent("test", made.agent, Declaration(version="1", executor="fake", slots=10))
    yield made
    await context.sources.close()


@asynccontextmanager
async def listening(harness: Harness) -> AsyncIterator[None]:
    """The harness with wake-ups, as a controller has them."""
    heard = asyncio.Event()
    wakeups = harness.context.wakeups

    def reconnected() -> None:
        heard.set()
        wakeups.wake_all()

    listener = Listener(
        harness.context.db.dsn,
        (backends.TASKS_CHANNEL, backends.SCHEDULE_CHANNEL),
        harness.clock,
        heard=wakeups.wake,
        reconnected=reconnected,
    )
    task = asyncio.create_task(listener.run())
    try:
        await heard.wait()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def limited(harness: Harness, workers: float, weights: str = "") -> Harness:
    """The same engine with other limits and weights."""
    terms = {
        slug: evolve(terms, limits=Limits(workers=workers, db_workers=workers), weights=parse_weights(weights))
        for slug, terms in harness.context.backends.items()
    }
    context = evolve(harness.context, backends=terms)
    return Harness(Engine(context), context, harness.clock)

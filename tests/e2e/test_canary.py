"""Nothing leaves a backend that its policy forbids: on every real executor, in all that the agent sent and the rest.

A few hundred jobs succeed, fail, crash and are cancelled; then every byte of the wire, the controller's database, its
logs and what its APIs say are searched for canaries.
"""

import asyncio
import base64
import io
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.agent.executors import slurm_cluster
from tests.agent.executors.docker_host import PYTHON, Host
from tests.e2e import machines
from tests.e2e.backend import CHECKS, Backend, backend
from tests.e2e.canaries import LOGGED, OUTCOMES, Canaries, files, project
from tests.e2e.machines import REGISTRY, Machine
from tests.e2e.processes import OPERATOR_TOKEN, eventually
from tests.e2e.recorder import Recorder

RAPS = {"sandbox": 15, "docker": 4, "slurm": 4}
"""How often the study is run, each time in a workspace of its own."""
PATIENCE = 300.0
"""Seconds for all jobs of an executor; containers are slow where tests run side by side."""


@contextmanager
def on_slurm() -> Iterator[Machine]:
    """The executor `slurm`, on a cluster of one node."""
    with slurm_cluster.running() as cluster:
        environ = {
            **machines.sandbox().environ,
            "RAP_EXECUTOR": "slurm",
            "RAP_SLURM_POLL_SECONDS": "0.5",
            "SLURM_CONF": str(cluster.conf),
        }
        yield Machine(environ=environ, database_host="localhost", address="127.0.0.1")


def label(host: Host, canaries: Canaries) -> None:
    """Give the image of the jobs labels with canaries, those that are reported as well."""
    names = ["version", "revision", "created", "title"]
    labels = [f"org.opencontainers.image.{name}=canary-{canaries.seed}-label" for name in names]
    labels += [f"org.opensafely.base.vcs-ref=canary-{canaries.seed}-label", f"other=canary-{canaries.seed}-label"]
    recipe = "\n".join([f"FROM {PYTHON}", *(f"LABEL {each}" for each in labels)])
    status, said = host.ask("POST", "/build", _pack(recipe), t=f"{REGISTRY}/python:v2")
    assert status == 200, said
    assert b'"error"' not in said, said


def _pack(recipe: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(recipe)
        archive.addfile(entry, io.BytesIO(recipe.encode()))
    return packed.getvalue()


@asynccontextmanager
async def on(kind: str, request: pytest.FixtureRequest, canaries: Canaries, folder: Path) -> AsyncIterator[Machine]:
    """One of the real executors."""
    if kind == "sandbox":
        yield machines.sandbox()
    elif kind == "docker":
        host = request.getfixturevalue("docker_engine")
        await asyncio.to_thread(label, host, canaries)
        yield await asyncio.to_thread(machines.docker, host, folder)
    else:
        manager = on_slurm()
        machine = await asyncio.to_thread(manager.__enter__)
        try:
            yield machine
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)


@attrs.frozen(kw_only=True)
class Exposed:
    """What is outside of the backend after the jobs have run."""

    sent: bytes
    dump: bytes
    logs: bytes
    told: bytes
    """What the controller's APIs say."""

    def seen(self, canaries: Canaries) -> dict[str, set[str]]:
        """Kinds of canaries by where they are."""
        return {name: canaries.seen(data) for name, data in attrs.asdict(self).items()}


async def run_jobs(made: Backend, raps: int) -> list[dict[str, Any]]:
    """Run the study that often, cancel what hangs; all jobs as they ended."""
    repository = await asyncio.to_thread(made.git.repository, "opensafely/study")
    commit = await asyncio.to_thread(repository.commit, files())
    created = []
    for number in range(raps):
        status, body = await made.create(repository.url, commit, *OUTCOMES, workspace=f"workspace-{number}")
        assert status == 201, body
        created.append(body["rap_id"])
    ended = await asyncio.gather(*(_see_through(made, rap_id) for rap_id in created))
    return [job for jobs in ended for job in jobs.values()]


async def _see_through(made: Backend, rap_id: str) -> dict[str, dict[str, Any]]:
    async def hangs() -> bool:
        return bool((await made.live.jobs(rap_id))["hang"]["status_code"] == "executing")

    await eventually(hangs, PATIENCE)
    status, answer = await made.live.post("rap/cancel/", {"rap_id": rap_id, "actions": ["hang"]})
    assert status == 200, answer
    return await made.finished(rap_id, PATIENCE)


async def told(made: Backend, jobs: Sequence[dict[str, Any]]) -> bytes:
    """Everything that the controller says of these jobs, to portal and operators."""
    found = io.BytesIO()
    paths = [
        "raps",
        "agents",
        "backends",
        *(f"jobs/{job['identifier']}{part}" for job in jobs for part in ("", "/log")),
    ]
    for path in paths:
        headers = {"Authorization": OPERATOR_TOKEN}
        async with made.live.portal.get(f"{made.live.url}/api/{path}", headers=headers) as response:
            assert response.status < 500
            found.write(await response.read())
    found.write(repr(jobs).encode())
    return found.getvalue()


@pytest.fixture(
    params=["sandbox", pytest.param("docker", marks=pytest.mark.xdist_group("docker")), "slurm"],
)
def kind(request: pytest.FixtureRequest) -> str:
    """The executor."""
    return str(request.param)


async def expose(machine: Machine, dsn: str, folder: Path, canaries: Canaries, egress: str, raps: int) -> Exposed:
    """Run jobs under a policy and collect all that is outside of the backend then."""
    recorder = Recorder()
    agents = {
        "RAP_EGRESS": egress,
        "RAP_AGENT_SLOTS": "8",
        "STATS_POLL_INTERVAL": "0.5",
        "DEFAULT_DATABASE_URL": f"postgresql://reader:{canaries.seed}@{machine.database_host}/canary-{canaries.seed}-url",
        "TEMP_DATABASE_NAME": f"canary-{canaries.seed}-environment",
    }
    controllers = {
        **CHECKS,
        "RAP_JOB_RESOURCES": "true",
        "DEFAULT_JOB_CPU_COUNT": "1",
        "RAP_RETRY_LIMIT": "2",
        "TEST_MAX_WORKERS": "100",
        "TEST_MAX_DB_WORKERS": "100",
    }
    async with backend(
        machine, dsn, folder, controllers=controllers, agents=agents, between=recorder.between()
    ) as made:
        jobs = await run_jobs(made, raps)
        wrong = [
            (job["action"], job["status_code"])
            for job in jobs
            if OUTCOMES.get(job["action"], "succeeded") != job["status_code"]
        ]
        assert not wrong
        assert len(jobs) == raps * (len(OUTCOMES) + 1)
        kept = canaries.seen(await asyncio.to_thread(made.kept))
        assert {"data", "name", "folder", "log", "exception", "exit"} <= kept, "the canaries live, inside"
        said = "\n".join(made.controller.said).encode()
        exposed = Exposed(sent=recorder.sent, dump=await made.dump(), logs=said, told=await told(made, jobs))
    for job in jobs:
        assert job["identifier"].encode() in exposed.sent, "the recorder hears the agent"
    return exposed


async def test_closed_policy(kind: str, request: pytest.FixtureRequest, database_dsn: str, tmp_path: Path) -> None:
    canaries = Canaries()
    async with on(kind, request, canaries, tmp_path) as machine:
        exposed = await expose(machine, database_dsn, tmp_path, canaries, "status", RAPS[kind])
    assert exposed.seen(canaries) == {"sent": set(), "dump": set(), "logs": set(), "told": set()}


async def test_metrics_are_numbers(request: pytest.FixtureRequest, database_dsn: str, tmp_path: Path) -> None:
    canaries = Canaries()
    async with on("sandbox", request, canaries, tmp_path) as machine:
        exposed = await expose(machine, database_dsn, tmp_path, canaries, "+metrics", 2)
    assert b"mem_mb_peak" in exposed.sent
    assert exposed.seen(canaries) == {"sent": set(), "dump": set(), "logs": set(), "told": set()}


async def test_logs_let_out_what_jobs_print(
    kind: str, request: pytest.FixtureRequest, database_dsn: str, tmp_path: Path
) -> None:
    canaries = Canaries()
    async with on(kind, request, canaries, tmp_path) as machine:
        exposed = await expose(machine, database_dsn, tmp_path, canaries, "+logs", 1)
    assert exposed.seen(canaries) == {"sent": LOGGED, "dump": LOGGED, "logs": set(), "told": LOGGED}


async def test_levels_let_out_names_of_outputs(
    request: pytest.FixtureRequest, database_dsn: str, tmp_path: Path
) -> None:
    canaries = Canaries()
    async with on("sandbox", request, canaries, tmp_path) as machine:
        exposed = await expose(machine, database_dsn, tmp_path, canaries, "+outputs:moderately_sensitive", 1)
    names = {"name", "folder"}
    assert exposed.seen(canaries) == {"sent": names, "dump": names, "logs": set(), "told": names}


async def test_nothing_leaves_before_it_is_reviewed(
    request: pytest.FixtureRequest, database_dsn: str, tmp_path: Path
) -> None:
    canaries = Canaries()
    async with on("sandbox", request, canaries, tmp_path) as machine:
        policy = "+outputs:moderately_sensitive:reviewed"
        exposed = await expose(machine, database_dsn, tmp_path, canaries, policy, 1)
    assert exposed.seen(canaries) == {"sent": set(), "dump": set(), "logs": set(), "told": set()}


def test_search_finds_what_is_hidden() -> None:
    canaries = Canaries()
    for shift in range(3):
        assert canaries.seen(base64.b64encode(b"." * shift + f"canary-{canaries.seed}-log".encode())) == {"encoded"}
    assert canaries.seen(f"canary-{canaries.seed}-log".encode()) == {"log"}
    assert canaries.seen(canaries.seed.upper().encode()) == {"seed"}
    assert canaries.seen(b"canary") == set()
    assert canaries.seed not in project()

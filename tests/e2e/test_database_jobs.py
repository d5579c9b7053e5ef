"""Database jobs and checks of the database, from the request to the outputs, with a real database behind a password.

What is shown: the secrets of the database and a way to it are in database jobs and nowhere else.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cli.stack.postgres import Postgres
from tests.e2e.backend import CHECKS, Backend, backend
from tests.e2e.machines import NETWORK, Machine
from tests.e2e.patients import PASSWORD, Door, patients
from tests.e2e.process_table import every_command_line
from tests.e2e.processes import eventually

SECRETS = {
    "EMIS_ORGANISATION_HASH": "canary-organisation",
    "PRESTO_TLS_CERT": "-----BEGIN\ncanary-certificate\n-----END",
    "PRESTO_TLS_KEY": "-----BEGIN\ncanary-key\n-----END",
}
"""What database jobs get beside DATABASE_URL."""
INSIDE = "canary-temporary"
"""The name of a database is no secret inside the backend (reference section 5.5), and never leaves it."""
GIVEN = {**SECRETS, "TEMP_DATABASE_NAME": INSIDE}
OURS = {*GIVEN, "DATABASE_URL"}
GATE = 4711
"""A lock in the database: a database job waits for it, and so shows itself."""

DATASET = f"""
import asyncio, json, os, socket, sys, asyncpg

async def main():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute("SELECT pg_advisory_lock_shared({GATE})")
    name = await connection.fetchval("SELECT name FROM patients WHERE id = 7")
    await connection.close()
    return name

def resolve(host):
    try:
        return socket.getaddrinfo(host, 443)[0][4][0]
    except OSError:
        return "unknown"

os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
found = {{
    "name": asyncio.run(main()),
    "names": sorted(os.environ),
    "resolved": [resolve("github.com"), resolve("ghcr.io")],
    "permissions": os.environ.get("EHRQL_PERMISSIONS"),
}}
with open(sys.argv[sys.argv.index("--output") + 1], "w") as file:
    json.dump(found, file)
"""
PRY = """
import json, os, socket, sys
address, port = json.load(open("door.json"))
try:
    socket.create_connection((address, port), 5)
    reached = "reached"
except OSError as error:
    reached = type(error).__name__
links = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
found = {"reached": reached, "environment": dict(os.environ), "links": links}
json.dump(found, open("pry.json", "w"))
"""
LOOK = """
import json, os, sys
json.dump(sorted(os.environ), open(sys.argv[sys.argv.index("--output") + 1], "w"))
"""
PROJECT = {
    "version": "4",
    "actions": {
        "extract": {
            "run": "ehrql:v1 generate-dataset dataset.py --output dataset.json",
            "outputs": {"highly_sensitive": {"dataset": "dataset.json"}},
        },
        "measure": {
            "run": "ehrql:v1 generate-measures look.py --output measure.json",
            "outputs": {"highly_sensitive": {"measure": "measure.json"}},
        },
        "pry": {
            "run": "python:v2 python pry.py",
            "outputs": {"highly_sensitive": {"pry": "pry.json"}},
        },
    },
}


@pytest.fixture
async def door(machine: Machine, postgres_server: Postgres) -> AsyncIterator[Door]:
    async with patients(postgres_server, machine.database_host, machine.address) as door:
        yield door


async def commit(made: Backend, door: Door) -> tuple[str, str]:
    """The study, at the git host; its URL and commit."""
    files = {
        "project.yaml": json.dumps(PROJECT),
        "dataset.py": DATASET,
        "look.py": LOOK,
        "pry.py": PRY,
        "door.json": json.dumps([door.address, door.port]),
    }
    repository = await asyncio.to_thread(made.git.repository, "opensafely/study")
    encoded = {name: text.encode() for name, text in files.items()}
    return repository.url, await asyncio.to_thread(repository.commit, encoded)


async def read(path: Path) -> Any:
    return json.loads(await asyncio.to_thread(path.read_text))


def seen(text: str | bytes) -> list[str]:
    """Which secrets of the database are in there."""
    data = text if isinstance(text, bytes) else text.encode()
    values = (PASSWORD, "canary-organisation", "canary-certificate", "canary-key")
    return [value for value in values if value.encode() in data]


async def waiting(door: Door) -> bool | None:
    """Whether a database job has come to the gate."""
    connection = await asyncpg.connect(door.dsn)
    try:
        return await connection.fetchval("SELECT true FROM pg_locks WHERE objid = $1 AND NOT granted", GATE)
    finally:
        await connection.close()


def containers(made: Backend) -> list[dict[str, Any]]:
    """What the engine says about the agent's containers."""
    host = made.machine.engine
    assert host is not None
    filters = json.dumps({"label": [f"org.rap-controller.agent={made.agent.environ['RAP_AGENT_ID']}"]})
    listed = json.loads(host.ask("GET", "/containers/json", all="1", filters=filters)[1])
    return [host.inspect(container["Id"]) for container in listed]


async def test_database_jobs_reach_the_database_and_other_jobs_do_not(
    machine: Machine, door: Door, database_dsn: str, tmp_path: Path
) -> None:
    lines: set[str] = set()
    settings = {"DEFAULT_DATABASE_URL": door.url, **GIVEN}
    async with backend(machine, database_dsn, tmp_path, agents=settings) as made:
        url, sha = await commit(made, door)
        gate = await asyncpg.connect(door.dsn)
        await gate.execute(f"SELECT pg_advisory_lock({GATE})")
        async with every_command_line(lines):
            scope = {"dataset_permissions": ["icnarc"], "population_permissions": ["include_ndoo"]}
            status, body = await made.create(url, sha, "extract", "pry", analysis_scope=scope)
            assert status == 201, body
            await eventually(lambda: waiting(door))
            # The database job runs, with everything that it was given.
            while_running = await asyncio.to_thread(made.kept)
            inspected = await asyncio.to_thread(containers, made) if machine.engine else []
            await gate.close()
            jobs = await made.finished(body["rap_id"])
        assert {name: job["status_code"] for name, job in jobs.items()} == {"extract": "succeeded", "pry": "succeeded"}
        workspace = made.high / "workspaces" / "study"
        extracted, pried = await read(workspace / "dataset.json"), await read(workspace / "pry.json")
        after, dumped, said = await asyncio.to_thread(made.kept), await made.dump(), made.said()
        recorded = await asyncio.to_thread(
            lambda: [json.loads(path.read_text()) for path in made.high.glob("logs/*/os-job-*/metadata.json")]
        )

    assert extracted["name"] == "a patient"
    assert set(extracted["names"]) >= OURS
    assert json.loads(extracted["permissions"]) == ["icnarc", "include_ndoo"]
    assert len(door.peers) == 1, "the database job came, and nobody else"

    assert pried["reached"] != "reached"
    assert pried["links"] == ["lo"]
    assert not OURS & set(pried["environment"])
    assert not seen(json.dumps(pried))

    shown = "\n".join(lines)
    assert "dataset.py --output" in shown, "the process table was not looked at"
    told = shown + said + dumped.decode()
    assert INSIDE not in told
    for place in (told, while_running, after):
        assert not seen(place)
    if machine.engine:
        check_containers(inspected, extracted, recorded, door)


def check_containers(inspected: list[dict[str, Any]], extracted: Any, recorded: list[Any], door: Door) -> None:
    """What is said of a database job's container, by the engine and by us."""
    assert extracted["resolved"] == ["unknown", "unknown"]
    (found,) = [each for each in inspected if each["Config"]["Labels"]["action"] == "extract"]
    assert [key for key, value in found.items() if seen(json.dumps(value))] == ["Config"]
    assert [key for key, value in found["Config"].items() if seen(json.dumps(value))] == ["Env"]
    assert found["HostConfig"]["NetworkMode"] == NETWORK
    assert list(found["NetworkSettings"]["Networks"]) == [NETWORK]
    assert found["HostConfig"]["Dns"] == ["192.0.2.0"]
    assert found["HostConfig"]["ExtraHosts"] == [f"{door.host}:{door.address}"]
    environments = [each["container_metadata"]["Config"]["Env"] for each in recorded]
    assert ["DATABASE_URL=xxxx-REDACTED-xxxx" in environment for environment in environments].count(True) == 1


@pytest.mark.parametrize(
    ("mode", "month", "answers"),
    [
        # While the database is in maintenance its data are not asked for.
        ("db-maintenance;2", "202311", {"dbstatus": "db-maintenance"}),
        ("canary-mode", "202311", {"dbstatus": None, "dbdatacheck": "OK"}),
    ],
    ids=["maintenance", "nonsense"],
)
async def test_checks_ask_the_database_itself(
    machine: Machine, door: Door, database_dsn: str, tmp_path: Path, mode: str, month: str, answers: dict[str, Any]
) -> None:
    await door.execute(f"UPDATE state SET mode = '{mode}', newest = '{month}'")
    lines: set[str] = set()
    settings = {"DEFAULT_DATABASE_URL": door.url, **GIVEN}
    async with (
        every_command_line(lines),
        backend(machine, database_dsn, tmp_path, controllers=CHECKS, agents=settings) as made,
    ):
        results = await eventually(lambda: answered(made, set(answers)))
        async with made.live.portal.get(f"{made.live.url}/controller/v1/backend/status/") as response:
            (about,) = (await response.json())["backends"]
        assert about["db_maintenance"]["status"] == ("on" if answers["dbstatus"] else "off")
        assert about["db_maintenance"]["type"] == ("scheduled" if answers["dbstatus"] else None)
        dumped, said = await made.dump(), made.said()
    for kind, answer in answers.items():
        if answer is None:
            assert results[kind]["results"] is None
            assert results[kind]["error"]["type"] == "BadAnswer"
        else:
            assert results[kind] == {"results": {"status": answer}, "error": None}
    everything = dumped + said.encode() + "\n".join(lines).encode()
    assert b"canary-mode" not in everything
    assert not seen(everything)
    assert len(door.peers) >= len(answers)


async def answered(made: Backend, kinds: set[str]) -> dict[str, Any] | None:
    """The results of one check of each kind, once there are any."""
    rows = await made.ask_store("SELECT type, results FROM task WHERE finished_at IS NOT NULL AND job_id IS NULL")
    found = {str(kind): json.loads(results) for kind, results in rows if results is not None}
    return found if kinds <= set(found) else None


async def test_where_data_are_dummies_there_is_no_database(
    machine: Machine, door: Door, database_dsn: str, tmp_path: Path
) -> None:
    settings = {"DEFAULT_DATABASE_URL": door.url, **GIVEN, "USING_DUMMY_DATA_BACKEND": "true"}
    async with backend(machine, database_dsn, tmp_path, controllers=CHECKS, agents=settings) as made:
        url, sha = await commit(made, door)
        status, body = await made.create(url, sha, "measure")
        assert status == 201, body
        jobs = await made.finished(body["rap_id"])
        results = await eventually(lambda: answered(made, {"dbstatus", "dbdatacheck"}))
        names = await read(made.high / "workspaces" / "study" / "measure.json")
        recorded = await asyncio.to_thread(
            lambda: [json.loads(path.read_text()) for path in made.high.glob("logs/*/os-job-*/metadata.json")]
        )
        kept = await asyncio.to_thread(made.kept)
    assert jobs["measure"]["status_code"] == "succeeded"
    assert "EHRQL_PERMISSIONS" in names
    assert not OURS & set(names)
    assert {each["error"]["type"] for each in results.values()} == {"NoDatabase"}
    assert door.peers == []
    assert not seen(kept)
    if machine.engine:
        (metadata,) = recorded
        host = metadata["container_metadata"]["HostConfig"]
        assert host["NetworkMode"] in ("default", "bridge", "slirp4netns")
        assert not host["Dns"]
        assert not host["ExtraHosts"]

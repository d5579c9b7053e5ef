"""`rap migrate`, and the faults of `rap controller` and `rap agent` as their users see them."""

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from controller.store.schema import migrations
from tests.cli.up_stack import rap

pytestmark = pytest.mark.slow


@pytest.fixture
async def empty(postgres_dsn: str) -> AsyncIterator[str]:
    """The DSN of an empty database."""
    admin = await asyncpg.connect(postgres_dsn)
    await admin.execute("CREATE DATABASE migrate_me")
    yield postgres_dsn.replace("/postgres?", "/migrate_me?")
    await admin.execute("DROP DATABASE migrate_me WITH (FORCE)")
    await admin.close()


def test_it_applies_what_is_missing_once(tmp_path: Path, empty: str):
    first = rap(tmp_path, "migrate", RAP_DATABASE_URL=empty)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [f"applied {step.name}" for step in migrations()]
    second = rap(tmp_path, "migrate", RAP_DATABASE_URL=empty)
    assert second.stdout == "nothing to apply: the schema is up to date\n"
    assert json.loads(rap(tmp_path, "migrate", "--json", RAP_DATABASE_URL=empty).stdout) == {"applied": []}


def test_a_controller_does_not_start_on_an_empty_database(tmp_path: Path, empty: str):
    done = rap(tmp_path, "controller", RAP_DATABASE_URL=empty, RAP_LISTEN="127.0.0.1:0")
    assert done.returncode == 2
    assert "rap migrate" in last_line(done)


def test_a_database_that_is_not_there(tmp_path: Path):
    done = rap(tmp_path, "migrate", RAP_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x")
    assert done.returncode == 2
    assert done.stderr.startswith("rap: the database of RAP_DATABASE_URL cannot be migrated: ")
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("migrate", ["RAP_DATABASE_URL must be set"]),
        ("controller", ["RAP_DATABASE_URL must be set", "RAP_LISTEN is 'x'"]),
        ("agent", ["BACKEND must be set", "RAP_CONTROLLER_URL must be set", "CONTROLLER_TASK_API_TOKEN must be set"]),
    ],
)
def test_every_fault_of_the_environment_is_told(tmp_path: Path, name: str, words: list[str]):
    done = rap(tmp_path, name, RAP_LISTEN="x")
    assert done.returncode == 2
    for each in words:
        assert each in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_that_may_not_run_unisolated_says_so(tmp_path: Path):
    done = rap(
        tmp_path,
        "agent",
        BACKEND="test",
        RAP_CONTROLLER_URL="http://127.0.0.1:1",
        CONTROLLER_TASK_API_TOKEN="secret-secret",
        WORKDIR=str(tmp_path / "work"),
        PATH="/nowhere",
    )
    assert done.returncode == 2
    assert "RAP_ALLOW_UNISOLATED" in last_line(done)
    assert "secret-secret" not in done.stderr


@pytest.mark.parametrize("name", ["DEFAULT_JOB_MEMORY_LIMIT", "TPP_JOB_MEMORY_LIMIT"])
def test_a_malformed_memory_limit_is_told_before_any_job_has_it(tmp_path: Path, name: str):
    done = rap(
        tmp_path, "controller", RAP_DATABASE_URL="postgresql://u@127.0.0.1:1/x", BACKENDS="tpp", **{name: "4 gigs"}
    )
    assert done.returncode == 2
    assert f"{name} is '4 gigs', which is not a size such as 4G or 512m" in done.stderr


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]

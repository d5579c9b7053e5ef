"""Backups for real: made of a database in use, verified, refused when they must be, and restored."""

import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import attrs
import pytest

from common.protocol import Declaration, Verdict
from controller.engine.facade import Engine
from controller.engine.results import Created
from controller.store import backends
from controller.store.db import Database
from controller.store.schema import migrations
from tests import postgres
from tests.cli.up_stack import command, environment, eventually, rap, rap_json, study, up
from tests.engine.conftest import PROJECT, Harness, Study, commit_project, make_context
from tests.factories import principal
from tests.fakes.clock import ManualClock
from tests.store.seeded import seed_one

pytestmark = pytest.mark.slow

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"


@pytest.fixture
async def empty(postgres_dsn: str) -> AsyncIterator[str]:
    async with postgres.copied(postgres_dsn, template="template0") as dsn:
        yield dsn


@pytest.fixture
async def full(database: Database) -> str:
    """The DSN of a database with a RAP in it."""
    await seed_one(database)
    return database.dsn


@pytest.fixture
def study_of_engine(tmp_path: Path) -> Study:
    """The study of the engine's tests."""
    return Study(tmp_path / "repo", commit_project(tmp_path / "repo", PROJECT))


@pytest.fixture
async def harness(database: Database, tmp_path: Path) -> AsyncIterator[Harness]:
    """An engine with an agent, as in the engine's tests."""
    clock = ManualClock()
    context = make_context(database, clock, tmp_path / "work")
    async with database.connection() as tx:
        await backends.ensure.run(tx, slugs=list(context.backends), now=clock.now())
    made = Harness(Engine(context), context, clock)
    await made.engine.declare_agent("test", made.agent, Declaration(version="1", executor="fake", slots=10))
    yield made
    await context.sources.close()


async def contents(dsn: str) -> dict[str, list[Any]]:
    """Every row of every table."""
    connection = await asyncpg.connect(dsn)
    try:
        names = [row["relname"] for row in await connection.fetch(TABLES)]
        return {
            name: sorted(str(tuple(row)) for row in await connection.fetch(f'SELECT * FROM "{name}"')) for name in names
        }
    finally:
        await connection.close()


def rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """A copy with other members; the manifest is brought in line as far as `change` does so."""
    with tarfile.open(source) as tar:
        members = {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(target, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def manifest_change(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        document = json.loads(members["manifest.json"])
        members["manifest.json"] = json.dumps({**document, **changes}).encode()

    return change


def listed(folder: Path, beginning: str = "") -> list[str]:
    """Names in a folder, those with a dot included."""
    return sorted(name for name in os.listdir(folder) if name.startswith(beginning))


def started(home: Path, *arguments: str, **environ: str) -> "subprocess.Popen[bytes]":
    """A command that runs on, silently."""
    silent = subprocess.DEVNULL
    env = environment(home, **environ)
    return subprocess.Popen(command(*arguments), env=env, stdout=silent, stderr=silent)


def blobs_in(folder: Path) -> Path:
    (folder / "ab" / "cd").mkdir(parents=True)
    (folder / "ab" / "cd" / "one").write_bytes(os.urandom(100_000))
    (folder / "two").write_bytes(b"")
    return folder


async def test_everything_comes_back(tmp_path: Path, full: str, empty: str) -> None:
    blobs = blobs_in(tmp_path / "blobs")
    file = tmp_path / "backup.tar"
    made = rap(tmp_path, "backup", str(file), "--blobs", str(blobs), "--json", RAP_DATABASE_URL=full)
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert (told["raps"], told["jobs"], told["blobs"]) == (1, 2, 2)
    assert told["bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    assert listed(tmp_path, "backup") == ["backup.tar"]

    put = rap(tmp_path, "restore", str(file), "--blobs", str(tmp_path / "new"), "-y", RAP_DATABASE_URL=empty)
    assert put.returncode == 0, put.stderr
    assert "1 RAP, 2 jobs, 2 blobs" in put.stdout
    assert "tokens revoked since are valid again" in put.stdout
    assert "`rap doctor`" in put.stdout.splitlines()[-1]
    assert await contents(empty) == await contents(full)
    for path in ("ab/cd/one", "two"):
        assert (tmp_path / "new" / path).read_bytes() == (blobs / path).read_bytes()

    # A second one finds the database full, and changes nothing.
    before = await contents(empty)
    again = rap(tmp_path, "restore", str(file), "--blobs", str(tmp_path / "other"), "-y", RAP_DATABASE_URL=empty)
    assert (again.returncode, "is not empty" in again.stderr, "nothing was changed" in again.stderr) == (2, True, True)
    assert await contents(empty) == before
    assert not (tmp_path / "other").exists()


async def test_an_engine_carries_on_where_the_backup_was(
    tmp_path: Path, harness: Harness, study_of_engine: Study, empty: str
) -> None:
    """A finished, a running and a waiting job; the agent of old reports to the restored database."""
    done = await harness.create(study_of_engine.request("extract"))
    await harness.run_all()
    live = await harness.create(study_of_engine.request("report"))
    await harness.settle()
    tasks = await harness.claim(1)
    who = principal("test")
    seen = await harness.engine.status(who, [done.rap_id, live.rap_id])
    file = tmp_path / "b.tar"
    assert rap(tmp_path, "backup", str(file), RAP_DATABASE_URL=harness.context.db.dsn).returncode == 0
    assert rap(tmp_path, "restore", str(file), "-y", RAP_DATABASE_URL=empty).returncode == 0
    pool = Database(empty)
    await pool.open()
    try:
        context = attrs.evolve(harness.context, db=pool)
        restored = Harness(Engine(context), context, harness.clock)
        await restored.engine.check()
        assert await restored.engine.status(who, [done.rap_id, live.rap_id]) == seen
        assert await restored.finish(tasks[0]) is Verdict.APPLIED
        await restored.run_all()
        assert set((await restored.codes(live.rap_id)).values()) == {"succeeded"}
        assert isinstance(await restored.engine.create_rap(who, study_of_engine.request("query")), Created)
    finally:
        await pool.close()


async def test_the_moment_of_a_backup_is_one(tmp_path: Path, full: str) -> None:
    """The manifest counts what the dump has, though rows come in between."""
    file = tmp_path / "b.tar"
    assert rap(tmp_path, "backup", str(file), RAP_DATABASE_URL=full).returncode == 0
    refused = rap(tmp_path, "backup", str(file), RAP_DATABASE_URL=full)
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert rap(tmp_path, "backup", str(file), "--force", RAP_DATABASE_URL=full).returncode == 0
    with tarfile.open(file) as tar:
        names = tar.getnames()
        manifest = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        dump = tar.extractfile("database.dump").read()  # type: ignore[union-attr]
    assert names == ["database.dump", "manifest.json"]
    assert manifest["sha256"] == {"database.dump": hashlib.sha256(dump).hexdigest()}
    assert [each["name"] for each in manifest["migrations"]] == [step.name for step in migrations()]


async def test_a_bad_file_is_refused_and_nothing_changes(tmp_path: Path, full: str, empty: str) -> None:
    good, bad = tmp_path / "good.tar", tmp_path / "bad.tar"
    blobs = blobs_in(tmp_path / "blobs")
    assert rap(tmp_path, "backup", str(good), "--blobs", str(blobs), RAP_DATABASE_URL=full).returncode == 0
    size = good.stat().st_size

    def cut(at: int) -> Callable[[], Any]:
        return lambda: bad.write_bytes(good.read_bytes()[:at])

    def changed(change: Callable[[dict[str, bytes]], None]) -> Callable[[], Any]:
        return lambda: rewrite(good, bad, change)

    def rotten() -> None:
        data = bytearray(good.read_bytes())
        data[5000] ^= 1
        bad.write_bytes(data)

    newer = [{"number": 999, "name": "0999_later", "digest": "x"}]
    edited = [{"number": 1, "name": "0001_initial", "digest": "x"}]
    cases: dict[str, tuple[Callable[[], Any], str]] = {
        "empty": (cut(0), "no backup of ours"),
        "noise": (lambda: bad.write_bytes(os.urandom(4000)), "no backup of ours"),
        "cut in the dump": (cut(3000), "cut short"),
        "cut in the end": (cut(size // 2 // 512 * 512), "cut short"),
        "one bit": (rotten, "damaged"),
        "no manifest": (changed(lambda members: members.pop("manifest.json")), "no manifest.json"),
        "a newer format": (changed(manifest_change(format=2)), "use a newer program"),
        "newer migrations": (changed(manifest_change(migrations=newer)), "0999_later"),
        "edited migrations": (changed(manifest_change(migrations=edited)), "0001_initial"),
        "a missing blob": (changed(lambda members: members.pop("blobs/two")), "damaged: 'blobs/two'"),
        "a path that leads out": (changed(lambda members: members.update({"blobs/../../x": b""})), "no backup of ours"),
        "an absolute path": (changed(lambda members: members.update({"/tmp/x": b""})), "no backup of ours"),
        "a manifest of another shape": (changed(manifest_change(migrations=3)), "cannot be read"),
        "another pg_dump": (changed(manifest_change(pg_dump=99)), "pg_restore 99 or newer is needed"),
        "another server": (changed(manifest_change(server=99)), "the backup is from 99"),
        "a dump that is none": (
            changed(
                lambda members: (
                    members.update({"database.dump": b"PGDMP and no more"}),
                    manifest_change(
                        sha256={
                            **json.loads(members["manifest.json"])["sha256"],
                            "database.dump": hashlib.sha256(b"PGDMP and no more").hexdigest(),
                        }
                    )(members),
                )[-1]
            ),
            "pg_restore failed",
        ),
    }
    for case, (make, words) in cases.items():
        make()
        done = rap(tmp_path, "restore", str(bad), "--blobs", str(tmp_path / "b2"), "-y", RAP_DATABASE_URL=empty)
        assert (case, done.returncode) == (case, 2)
        assert words in done.stderr, (case, done.stderr)
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "b2").exists(), case
    assert await contents(empty) == {}
    assert listed(tmp_path, ".b2") == []


async def test_what_else_is_refused(tmp_path: Path, full: str, empty: str) -> None:
    file = tmp_path / "b.tar"
    (tmp_path / "link").symlink_to("/etc")
    said = {
        "no database": rap(tmp_path, "backup", str(file)),
        "nothing there": rap(tmp_path, "backup", str(file), "--data", str(tmp_path / "nowhere")),
        "an empty database": rap(tmp_path, "backup", str(file), RAP_DATABASE_URL=empty),
        "away": rap(tmp_path, "backup", str(file), RAP_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x"),
        "no folder": rap(tmp_path, "backup", str(tmp_path / "no" / "b.tar"), RAP_DATABASE_URL=full),
        "a link": rap(tmp_path, "backup", str(file), "--blobs", str(tmp_path), RAP_DATABASE_URL=full),
        "no yes": rap(tmp_path, "restore", str(file), RAP_DATABASE_URL=empty),
        "no file": rap(tmp_path, "restore", str(file), "-y", RAP_DATABASE_URL=empty),
    }
    for case, done in said.items():
        assert (case, done.returncode) == (case, 2)
        assert done.stderr.startswith("rap: "), case
        assert len(done.stderr.splitlines()) == 1, (case, done.stderr)
        assert "hunter2" not in done.stderr
    assert not file.exists()
    assert rap(tmp_path, "backup", str(file), RAP_DATABASE_URL=full).returncode == 0
    blobs = rap(tmp_path, "restore", str(file), "--blobs", str(tmp_path / "b"), "-y", RAP_DATABASE_URL=empty)
    assert "made without blobs" in blobs.stderr


async def test_an_older_backup_says_what_to_migrate(tmp_path: Path, database: Database, empty: str) -> None:
    newest = migrations()[-1]
    async with database.connection() as tx:
        await tx.execute("DELETE FROM schema_migration WHERE number = $1", newest.number)
    file = tmp_path / "b.tar"
    assert rap(tmp_path, "backup", str(file), RAP_DATABASE_URL=database.dsn).returncode == 0
    done = rap(tmp_path, "restore", str(file), "-y", RAP_DATABASE_URL=empty)
    assert done.returncode == 0, done.stderr
    assert f"lacks migrations ({newest.name}): run `rap migrate`" in done.stdout


async def test_a_killed_backup_leaves_nothing(tmp_path: Path, full: str) -> None:
    """pg_dump waits for a lock that we hold; then the backup is killed, and takes it along."""
    holder = await asyncpg.connect(full)
    lock = holder.transaction()
    await lock.start()
    await holder.execute("LOCK TABLE output IN ACCESS EXCLUSIVE MODE")
    folder = tmp_path / "backups"
    folder.mkdir()
    process = started(tmp_path, "backup", str(folder / "b.tar"), RAP_DATABASE_URL=full)
    waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'output'::regclass"
    try:
        while not await holder.fetch(waiting):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert listed(folder) == []
    finally:
        process.kill()
        await lock.rollback()
        while await holder.fetch("SELECT FROM pg_stat_activity WHERE application_name = 'pg_dump'"):
            pass
        await holder.close()


@pytest.mark.parametrize("url", ["postgresql://u:s3cret@h:5/d?x=1", "postgresql://u@h/d?password=s3cret"])
def test_no_password_on_a_command_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.backup import programs

    monkeypatch.setenv("RAP_TOKEN", "t0ken")
    where, env = programs._connection(url)
    assert "s3cret" not in where
    assert env["PGPASSWORD"] == "s3cret"
    assert "RAP_TOKEN" not in env


QUICK = """\
import pathlib
out = pathlib.Path("output")
out.mkdir(exist_ok=True)
(out / "r.txt").write_text("1")
"""


def test_a_rap_up_is_backed_up_while_it_runs_and_carries_on_elsewhere(tmp_path: Path) -> None:
    home, old, new = tmp_path, tmp_path / "old", tmp_path / "new"
    repository = study(home / "study", QUICK)
    file, cold = tmp_path / "hot.tar", tmp_path / "cold.tar"
    with up(home, "--data", str(old)):
        finished = rap_json(home, "submit", str(repository), "work")["rap_id"]
        eventually(lambda: rap_json(home, "status", finished)["jobs"][0]["state"] == "succeeded")
        assert rap(home, "pause", "test").returncode == 0
        waiting = rap_json(home, "submit", str(repository), "work", "--workspace", "second")["rap_id"]
        eventually(lambda: rap_json(home, "status", waiting)["jobs"][0]["code"] == "paused")
        told = rap_json(home, "backup", str(file), "--data", str(old))
        assert (told["raps"], told["jobs"]) == (2, 2)
        states = {each: rap_json(home, "status", each) for each in (finished, waiting)}
        refused = rap(home, "restore", str(file), "--data", str(old), "-y")
        assert (refused.returncode, "already running" in refused.stderr) == (2, True)
    assert rap_json(home, "backup", str(cold), "--data", str(old))["jobs"] == 2
    full = rap(home, "restore", str(file), "--data", str(old), "-y")
    assert (full.returncode, "is not empty" in full.stderr) == (2, True)

    put = rap(home, "restore", str(file), "--data", str(new), "-y")
    assert put.returncode == 0, put.stderr
    with up(home, "--data", str(new)):
        for each in (finished, waiting):
            now = rap_json(home, "status", each)
            assert _stable(now) == _stable(states[each])
        assert rap(home, "unpause", "test").returncode == 0
        eventually(lambda: rap_json(home, "status", waiting)["rap"]["state"] in ("succeeded", "failed"))
        assert rap_json(home, "status", waiting)["rap"]["state"] == "succeeded"


def _stable(detail: Any) -> Any:
    """What must be the same; `updated_at` of an idle job is brought up to date in every answer."""
    return {"rap": detail["rap"], "jobs": [{**job, "updated_at": None} for job in detail["jobs"]]}

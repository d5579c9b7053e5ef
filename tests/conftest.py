"""What every test may ask for, and what no test may leave behind."""

import os
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import psutil
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from controller.store.db import Database
from tests import postgres

_WATCHED = frozenset({"agent", "engine", "store", "dialects"})
"""Folders whose tests fail when something blocks the event loop."""

_SLOW = ("e2e", "sources", "test_chaos.py", "test_plans.py", "test_schema.py", "test_races.py", "test_example_study.py")
"""Folders and files that `make test-fast` leaves out, beside what is marked: whole controllers, git, seeded tables."""

_TOGETHER = {
    "test_chaos.py": "chaos",
    "test_executors_slurm.py": "slurm",
    "test_executors_docker.py": "docker",
    "test_docker_restarts.py": "docker",
    "test_database_jobs.py": "docker",
    "test_reusable_actions.py": "docker",
    "test_up_docker.py": "docker",
    "test_executors_podman.py": "podman",
    "test_hostile_slurm.py": "slurm",
    "test_hostile_docker.py": "docker",
    "test_hostile_podman.py": "podman",
    "test_container_calls.py": "podman",
    "test_hostile_sandbox.py": "hostile",
}
"""Files whose tests run one after the other in one worker: they share an engine or a cluster, or use the machine up."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    """The embedded PostgreSQL of this run, started when the first test needs it."""
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_dsn(postgres_server: postgres.Postgres) -> str:
    """The DSN of the server's `postgres` database, for tests that make databases of their own."""
    return postgres_server.dsn("postgres")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: postgres.Postgres) -> str:
    """The name of a migrated database to copy."""
    postgres.make_template(postgres_server)
    return postgres.TEMPLATE


@pytest.fixture
async def database_dsn(postgres_dsn: str, postgres_template: str) -> AsyncIterator[str]:
    """The DSN of a migrated, empty database of this test's own."""
    async with postgres.copied(postgres_dsn, template=postgres_template) as dsn:
        yield dsn


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    """An open pool on a migrated, empty database of this test's own."""
    pool = Database(database_dsn)
    await pool.open()
    yield pool
    await pool.close()


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Raises where the event loop is blocked by a call that waits; `@pytest.mark.may_block` turns it off."""
    folders = request.path.relative_to(request.config.rootpath).parts
    if not _WATCHED.intersection(folders[1:2]) or request.node.get_closest_marker("may_block"):
        yield None
        return
    with blockbuster_ctx(scanned_modules=["controller", "agent", "common"]) as watch:
        for name in ("os.stat", "os.path.exists", "io.BufferedReader.read", "io.TextIOWrapper.read"):
            # Opening a connection, asyncpg looks for ~/.pgpass and certificates: local, small, once per connection.
            if name in watch.functions:
                watch.functions[name].can_block_in(
                    "asyncpg/connect_utils.py",
                    {"_parse_connect_dsn_and_args", "_read_password_from_pgpass", "_dot_postgresql_path"},
                )
        yield watch


@pytest.fixture(scope="session", autouse=True)
def _no_leftover_processes() -> Iterator[None]:
    """A run that leaves processes behind fails at its end, and does not leave them."""
    yield
    left = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(left, timeout=5)
    told = [f"{process.pid} {process.name()}" for process in alive]
    for process in alive:
        process.kill()
    assert not told, f"tests left processes running: {told}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {item.path.name, item.path.parent.name} & set(_SLOW):
            item.add_marker(pytest.mark.slow)
        if item.path.name in _TOGETHER:
            item.add_marker(pytest.mark.xdist_group(_TOGETHER[item.path.name]))
    # The longest begin first, so that no worker is left with them at the end.
    items.sort(
        key=lambda item: list(_TOGETHER).index(item.path.name) if item.path.name in _TOGETHER else len(_TOGETHER)
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "may_block: the test's subject is allowed to block the event loop")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """In CI a test that would be skipped fails: what is missing there is to be installed, not forgiven."""
    report = yield
    if _in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} would be skipped, which CI does not allow: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a module that would be skipped as a whole."""
    report = yield
    if _in_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} would be skipped, which CI does not allow: {report.longrepr}"
    return report


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true"}

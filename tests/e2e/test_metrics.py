"""`/metrics` of a whole controller: what a RAP leaves there, who may read it, and what agents tell of themselves."""

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import AGENT_TOKEN, CLIENT_TOKEN, OTHER_TOKEN
from tests.e2e.processes import (
    OPERATOR_TOKEN,
    address,
    agent_process,
    controller_process,
    ended,
    eventually,
    portal,
    running,
)
from tests.engine.conftest import Study, commit_project

SCRAPER_TOKEN = "scraper-token-of-test"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Samples:
    """(name, sorted labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lint(text: str) -> None:
    """Prometheus' own opinion on the format and the names."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def metrics_url(ready: str) -> str:
    """Where the metrics alone are served, from the line of a controller that is ready."""
    return f"http://{json.loads(ready)['metrics'][0]}"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def ask(session: aiohttp.ClientSession, url: str, token: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with session.get(f"{url}/metrics", headers=headers) as response:
        return response.status, await response.text()


@pytest.fixture
def chain(tmp_path: Path) -> Study:
    """Two actions, the second of which needs the first."""
    actions = {
        name: {
            "run": f"python:v2 write:output/{name}.csv=1",
            "needs": needs,
            "outputs": {"highly_sensitive": {"rows": f"output/{name}.csv"}},
        }
        for name, needs in (("extract", []), ("analyse", ["extract"]))
    }
    return Study(tmp_path / "study", commit_project(tmp_path / "study", {"version": "4", "actions": actions}))


async def test_a_rap_leaves_its_numbers(
    database_dsn: str, tmp_path: Path, chain: Study, session: aiohttp.ClientSession
) -> None:
    controller = controller_process(database_dsn, tmp_path / "controller")
    async with running(controller):
        where = await address(controller)
        agents = [
            agent_process("open", f"http://{where}", tmp_path, RAP_EGRESS="status,+metrics", RAP_POLL_SECONDS="0.2"),
            agent_process("closed", f"http://{where}", tmp_path),
        ]
        async with running(*agents), portal(where) as live:
            status, created = await live.create(chain)
            assert status == 201, created

            async def done() -> bool:
                jobs = (await live.jobs(created["rap_id"])).values()
                assert not [job for job in jobs if job["status"] == "failed"]
                return all(job["status"] == "succeeded" for job in jobs)

            await eventually(done)

            async def told() -> Samples | None:
                _, text = await ask(session, live.url, OPERATOR_TOKEN)
                samples = parse(text)
                return samples if value(samples, "rap_agent_slots_used", backend="test") == 0 else None

            samples = await eventually(told)
            status, text = await ask(session, live.url, OPERATOR_TOKEN)
            assert status == 200
    lint(text)
    assert value(samples, "rap_raps_created_total", backend="test") == 1
    assert value(samples, "rap_jobs_created_total", backend="test") == 2
    assert value(samples, "rap_transitions_total", backend="test", code="created") == 2
    assert value(samples, "rap_transitions_total", backend="test", code="initiated") == 2
    assert value(samples, "rap_transitions_total", backend="test", code="succeeded") == 2
    assert value(samples, "rap_transitions_total", backend="test", code="internal_error") == 0
    assert value(samples, "rap_attempts_started_total", backend="test") == 2
    assert value(samples, "rap_job_attempts_bucket", backend="test", state="succeeded", le="1.0") == 2
    assert value(samples, "rap_job_wait_seconds_count", backend="test") == 2
    assert value(samples, "rap_job_run_seconds_count", backend="test", state="succeeded") == 2
    assert value(samples, "rap_task_dispatch_seconds_count", backend="test", type="runjob") == 2
    assert value(samples, "rap_queue_jobs", backend="test", state="pending", code="created") == 0
    assert value(samples, "rap_agents", backend="test", executor="fake") == 2
    assert value(samples, "rap_agents_telling", backend="test", executor="fake") == 1, "a closed backend tells nothing"
    assert value(samples, "rap_agent_slots", backend="test") == 8
    assert 0 < (value(samples, "rap_agent_disk_free_ratio", backend="test") or 0) <= 1
    assert (value(samples, "rap_database_query_seconds_count", query="tasks.claim") or 0) >= 2
    assert (value(samples, "rap_database_query_seconds_count", query="commit") or 0) >= 2
    assert (value(samples, "rap_notifications_received_total", channel="rap_tasks") or 0) >= 1
    assert (value(samples, "rap_event_loop_lag_seconds_count") or 0) >= 1
    assert value(samples, "rap_listener_connected") == 1
    assert value(samples, "rap_database_up") == 1
    route = {"method": "POST", "route": "/controller/v1/rap/create/"}
    assert value(samples, "rap_http_requests_total", status="201", **route) == 1
    assert value(samples, "rap_http_request_seconds_count", **route) == 1
    assert not [name for name, _ in samples if name.endswith("_created")]
    assert created["rap_id"] not in str(samples)


async def test_only_operators_of_everything_and_scrapers_read_it(
    database_dsn: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    settings = {
        "BACKENDS": "test,other",
        "OTHER_CLIENT_TOKENS": OTHER_TOKEN,
        "OTHER_OPERATOR_TOKENS": "operator-of-both",
        "TEST_OPERATOR_TOKENS": f"{OPERATOR_TOKEN},operator-of-both",
        "RAP_METRICS_TOKEN": SCRAPER_TOKEN,
        "RAP_METRICS_LISTEN": "127.0.0.1:0",
    }
    controller = controller_process(database_dsn, tmp_path, **settings)
    async with running(controller):
        url = f"http://{await address(controller)}"
        refused = {
            token: await ask(session, url, token)
            for token in (None, "wrong", AGENT_TOKEN, CLIENT_TOKEN, OPERATOR_TOKEN)
        }
        assert {token: status for token, (status, _) in refused.items()} == {
            None: 401,
            "wrong": 401,
            AGENT_TOKEN: 401,
            CLIENT_TOKEN: 403,
            OPERATOR_TOKEN: 403,
        }
        assert not [text for _, text in refused.values() if "rap_" in text]
        for token in (SCRAPER_TOKEN, "operator-of-both"):
            status, text = await ask(session, url, token)
            assert status == 200
            assert "rap_build_info" in text
        line = await controller.wait_for("controller_ready")
        own = metrics_url(line)
        assert (await ask(session, own))[0] == 401
        assert (await ask(session, own, "operator-of-both"))[0] == 401, "only the scraper's token, there"
        assert (await ask(session, own, SCRAPER_TOKEN))[0] == 200
        async with session.get(
            f"{own}/controller/v1/backend/status/", headers={"Authorization": CLIENT_TOKEN}
        ) as other:
            assert other.status == 404


async def test_the_loopback_address_needs_no_token(
    database_dsn: str, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    controller = controller_process(database_dsn, tmp_path, RAP_METRICS_LISTEN="127.0.0.1:0")
    async with running(controller):
        line = await controller.wait_for("controller_ready")
        status, text = await ask(session, metrics_url(line))
        assert status == 200
        assert "rap_build_info" in text


async def test_an_address_that_others_reach_needs_a_token(database_dsn: str, tmp_path: Path) -> None:
    controller = controller_process(database_dsn, tmp_path, RAP_METRICS_LISTEN="0.0.0.0:9100")
    async with ended(controller):
        await controller.start()
        assert "RAP_METRICS_TOKEN" in await controller.wait_for("RAP_METRICS_LISTEN")
        assert controller.process is not None
        assert await controller.process.wait() == 2

"""The whole way: a portal's request, controllers and an agent as processes, and a collector that decodes what comes."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.conftest import LiveController
from tests.e2e.processes import address, agent_process, controller_process, eventually, portal, running
from tests.engine.conftest import Study, commit_project
from tests.fakes.collector import Collector, Received, collecting, decode

TRACE = "0af7651916cd43dd8448eb211c80319c"
PORTAL = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as made:
        yield made


@pytest.fixture
def chain(tmp_path: Path) -> Study:
    """Three jobs, one after the other."""
    actions: dict[str, Any] = {}
    for name, needs in {"extract": [], "analyse": ["extract"], "report": ["analyse"]}.items():
        outputs = {"highly_sensitive": {"rows": f"output/{name}.txt"}}
        actions[name] = {"run": f"python:v2 write:output/{name}.txt={name}", "needs": needs, "outputs": outputs}
    return Study(tmp_path / "chain", commit_project(tmp_path / "chain", {"version": "4", "actions": actions}))


def exporting(collector: Collector, **more: str) -> dict[str, str]:
    """A controller's settings."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50", "VERSION": "1.2.3"}
    return environ | {"OTEL_EXPORTER_OTLP_HEADERS": '"x-team=s3cret-of-the-collector"'} | more


def tree(spans: list[Received]) -> dict[str, Any]:
    """What was traced of each job: the names of its spans in their order, and of the agent's steps."""
    found = {}
    for job in (span for span in spans if span.name == "JOB"):
        below = sorted((span for span in spans if span.parent_id == job.span_id), key=lambda span: span.start_ns)
        codes = [span.name for span in below if span.name.isupper()]
        steps = [span.name for span in below if span.name.islower()]
        found[job.attributes["job.action"]] = (codes, steps)
    return found


RAN = ["PREPARING", "PREPARED", "EXECUTING", "FINALIZING"]
STEPS = ["prepare", "execute", "finalize"]


def stages(codes: list[str]) -> list[str]:
    """The agent's part of a job's codes; what of the waiting was seen is a matter of moments."""
    return [code for code in codes if code in RAN]


async def ended(collector: Collector, raps: int = 1) -> None:
    await collector.until(lambda it: len({span.span_id for span in it.named("RAP")}) >= raps)


async def test_the_tree_of_a_rap_that_two_controllers_ran(
    database_dsn: str, tmp_path: Path, chain: Study, collector: Collector
) -> None:
    one = controller_process(database_dsn, tmp_path / "one", **exporting(collector))
    two = controller_process(database_dsn, tmp_path / "two", **exporting(collector))
    async with running(one, two):
        agent = agent_process("a", f"http://{await address(two)}", tmp_path / "agent")
        async with running(agent), portal(await address(one)) as live:
            headers = {"traceparent": PORTAL, "tracestate": ",".join(f"v{n}={'x' * 200}" for n in range(50))}
            live.portal.headers.update(headers)
            status, created = await live.create(chain)
            assert status == 201, created
            await ended(collector)
            jobs = await live.jobs(created["rap_id"])
            await collector.until(lambda it: len(it.named("JOB")) == 3 and it.named("POST /controller/v1/rap/create/"))
            await collector.until(lambda it: it.named("LOOP"))
    told = [span for span in collector.spans if span.attributes.get("http.route") is None and span.name != "LOOP"]
    assert {span.trace_id for span in told} == {TRACE}
    assert collector.doubled() == []
    found = tree(told)
    assert sorted(found) == ["analyse", "extract", "report"]
    for codes, steps in found.values():
        assert codes[0] == "CREATED"
        assert codes[-1] == "SUCCEEDED"
        assert stages(codes) == RAN
        assert steps == STEPS
    (root,) = collector.named("RAP")
    assert (root.parent_id, root.attributes["rap.id"]) == (PORTAL[36:52], created["rap_id"])
    spans = {span.attributes["job.action"]: span for span in collector.named("JOB")}
    assert {span.parent_id for span in spans.values()} == {root.span_id}
    assert {action: f"00-{span.trace_id}-{span.span_id}-01" for action, span in spans.items()} == {
        action: job["trace_context"]["traceparent"] for action, job in jobs.items()
    }
    assert (spans["extract"].links, spans["report"].links) == ((), (spans["analyse"].span_id,))
    assert all(root.start_ns <= span.start_ns and span.end_ns <= root.end_ns for span in spans.values())
    resources = {span.resource["rap.service"]: span.resource["service.namespace"] for span in told}
    assert resources == {"controller": "unknown", "agent": "test"}
    assert {headers["x-team"] for headers in collector.headers} == {"s3cret-of-the-collector"}
    assert {span.attributes["rap.backend"] for span in collector.named("LOOP")} == {"test"}
    (request,) = collector.named("POST /controller/v1/rap/create/")
    assert (request.trace_id, request.parent_id) == (TRACE, PORTAL[36:52])
    for process in (one, two):
        assert not [line for line in process.said if "s3cret-of-the-collector" in line]


async def test_a_controller_that_is_killed_in_the_middle_loses_and_doubles_nothing(
    database_dsn: str, tmp_path: Path, chain: Study, collector: Collector
) -> None:
    """Killed while it exports and jobs run; what it had sent and nobody confirmed is sent once more, the same."""
    environ = exporting(collector, OTEL_EXPORTER_OTLP_TIMEOUT="0.5")
    held: list[list[Received]] = []

    async def keep_and_say_nothing(request: web.Request) -> web.StreamResponse:
        """The collector takes it, and the controller never learns that."""
        held.append(decode(await request.read()))
        await asyncio.Event().wait()
        return web.Response()

    one = controller_process(database_dsn, tmp_path / "one", **environ)
    async with running(one):
        url = await address(one)
        agent = agent_process("a", f"http://{url}", tmp_path / "agent")
        async with running(agent), portal(url) as live:
            status, created = await live.create(chain)
            assert status == 201, created
            collector.answers.append(keep_and_say_nothing)
            collector.asked.clear()
            async with asyncio.timeout(60):
                await collector.asked.wait()
            await one.end(signal.SIGKILL)
            again = controller_process(database_dsn, tmp_path / "again", url, **environ)
            async with running(again):
                await address(again)
                await ended(collector)
                await collector.until(lambda it: len(it.named("JOB")) == 3)
    told = [span for span in collector.spans if span.attributes.get("http.route") is None and span.name != "LOOP"]
    assert len({span.span_id for span in told}) == len(told)
    for codes, steps in tree(told).values():
        assert (codes[0], codes[-1]) == ("CREATED", "SUCCEEDED")
        assert (stages(codes), steps) == (RAN, STEPS)
    by_id = {span.span_id: span for span in told}
    lost = [span for span in held[0] if span.name != "LOOP" and span.attributes.get("http.route") is None]
    assert all(by_id[span.span_id] == span for span in lost)


async def test_a_collector_that_hangs_delays_no_job(
    database_dsn: str, tmp_path: Path, chain: Study, collector: Collector
) -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    collector.answers += [hang] * 1000
    one = controller_process(database_dsn, tmp_path / "one", **exporting(collector, OTEL_EXPORTER_OTLP_TIMEOUT="20"))
    async with running(one):
        url = await address(one)
        async with running(agent_process("a", f"http://{url}", tmp_path / "agent")), portal(url) as live:
            for number in range(2):
                status, created = await live.create(chain, workspace=f"w{number}")
                assert status == 201, created

                async def succeeded(rap_id: str = created["rap_id"]) -> bool:
                    return {job["status"] for job in (await live.jobs(rap_id)).values()} == {"succeeded"}

                await eventually(succeeded)
        assert collector.spans == []
        # And it does not hold up the end of the controller either.
        assert await one.end() == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "nonsense"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": PORTAL, "tracestate": "x" * 10_000},
        {"traceparent": PORTAL, "tracestate": "=,=;\t," * 1_500},
        {"traceparent": "00-" + "a" * 10_000, "tracestate": "a=b"},
    ],
    ids=["nonsense", "zeroes", "long state", "odd state", "long parent"],
)
async def test_what_a_portal_may_send_instead_of_a_trace(
    live: LiveController, study: Study, headers: Mapping[str, str]
) -> None:
    live.portal.headers.update(headers)
    status, created = await live.create(study, "extract")
    assert status == 201, created
    (job,) = (await live.jobs(created["rap_id"])).values()
    parts = job["trace_context"]["traceparent"].split("-")
    assert [len(part) for part in parts] == [2, 32, 16, 2]
    valid = headers["traceparent"] == PORTAL
    assert (parts[1] == TRACE) == valid


async def test_the_trace_is_there_without_a_collector(live: LiveController, study: Study) -> None:
    status, created = await live.create(study, "extract")
    assert status == 201
    async with live.portal.get(f"{live.url}/api/raps/{created['rap_id']}/trace") as answer:
        said = await answer.json()
    assert [span["kind"] for span in said["spans"][:2]] == ["rap", "job"]

"""The native API over real HTTP, and its mapping: every field, every query, every error."""

import fnmatch
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from controller.core.codes import JobState, StatusCode
from controller.core.errors import NotFound, Rejected, Unavailable
from controller.core.model import Job, JobId, JobSpec, Progress, RapId, TaskType
from controller.core.resources import JobLimits
from controller.dialects.native import jobs, raps, routes, times
from controller.engine import measuring, operating, results
from tests.dialects import operated, traced
from tests.dialects.serving import AGENT, CLIENT, PRINCIPAL, serve
from tests.fakes.engine import ScriptedEngine

SCHEMAS = Path(__file__).parents[2] / "schemas" / "native"
EXAMPLES = {path.stem: json.loads(path.read_text()) for path in (SCHEMAS / "examples").glob("*.json")}
CONTRACT: dict[str, Any] = YAML(typ="safe", pure=True).load((SCHEMAS / "openapi.yaml").read_text())
T0 = datetime(2026, 1, 1, tzinfo=UTC)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
RAP = "abcdefgh23456777"
JOB = "mzxw6ytboi2dgnbu"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

SUMMARY = results.RapSummary(
    id=RapId(RAP),
    backend="test",
    workspace="study-main",
    created_by="alice",
    project="study",
    repo_url="https://github.com/example/study",
    branch="main",
    commit=COMMIT,
    created_at=T0,
    requested_actions=("run_all",),
    traceparent=PARENT,
    counts={JobState.SUCCEEDED: 1},
)
SPEC = JobSpec(
    id=JobId(JOB),
    rap_id=RapId(RAP),
    position=0,
    backend="test",
    workspace="study-main",
    action="describe",
    run_command="python:v2 python analysis/describe.py",
    requires_db=False,
    needs=("extract",),
    output_spec={"moderately_sensitive": {"table": "output/table.csv"}},
    repo_url="https://github.com/example/study",
    commit=COMMIT,
    branch="main",
    traceparent=PARENT,
    created_at=T0,
)
DETAIL = results.JobDetail(
    job=Job(
        spec=SPEC,
        progress=Progress(
            state=JobState.SUCCEEDED,
            code=StatusCode.SUCCEEDED,
            message="Completed successfully",
            attempt=1,
            started_at=T0 + timedelta(seconds=1),
            completed_at=T0 + timedelta(seconds=3, microseconds=250000),
            updated_at=T0 + timedelta(seconds=3, microseconds=250000),
            code_changed_at=T0 + timedelta(seconds=3, microseconds=250000),
        ),
        metrics={"cpu_mean": 96.5, "cpu_peak": 101.0, "mem_mb_mean": 120.0, "mem_mb_peak": 131.5},
    ),
    outputs=(
        results.OutputView(
            path="output/table.csv",
            level="moderately_sensitive",
            size=1234,
            sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            excluded=False,
            message="",
        ),
    ),
    history=(
        results.HistoryEntry(at=T0, attempt=0, state=JobState.PENDING, code=StatusCode.CREATED, message="Created"),
        results.HistoryEntry(
            at=T0 + timedelta(seconds=1),
            attempt=1,
            state=JobState.RUNNING,
            code=StatusCode.INITIATED,
            message="Job executing on the backend",
        ),
        results.HistoryEntry(
            at=T0 + timedelta(seconds=3, microseconds=250000),
            attempt=1,
            state=JobState.SUCCEEDED,
            code=StatusCode.SUCCEEDED,
            message="Completed successfully",
        ),
    ),
    agent="backend-node-1",
    exit_code="0",
    limits=JobLimits(cpu_count=2.0, memory_limit="4G", time_limit=7200.0),
)
ANSWERS: dict[str, Any] = {
    "list_raps": results.Page(raps=(SUMMARY,), next_cursor="NDI"),
    "rap_detail": results.RapDetail(rap=SUMMARY, jobs=(DETAIL,)),
    "rap_trace": traced.rap_trace(SUMMARY, DETAIL, T0),
    "job_detail": DETAIL,
    "job_log": results.LogPage(job_id=JobId(JOB), attempt=1, text="reading 442 rows\n", next_offset=17, complete=True),
    "job_metrics": measuring.Series(
        job_id=JobId(JOB),
        attempt=1,
        complete=True,
        points=(
            measuring.Point(
                at=T0 + timedelta(seconds=2),
                cpu=96.5,
                mem_mb=None,
                metrics={"cpu_mean": 96.5, "cpu_peak": 101.0},
            ),
        ),
    ),
    "agents": [
        results.AgentView(
            id="backend-node-1",
            backend="test",
            version="0.1.0",
            executor="sandbox",
            slots=4,
            last_seen=T0,
            egress={"metrics": True, "logs": False, "outputs": "moderately_sensitive", "reviewed": True},
            policy="status,+metrics,+outputs:moderately_sensitive:reviewed",
            load=3,
        )
    ],
    "backends": [
        results.BackendView(
            slug="test",
            last_seen=T0,
            paused=True,
            paused_since=T0 - timedelta(days=1),
            db_maintenance=False,
            db_maintenance_since=None,
            db_maintenance_type=None,
            checks=(
                results.CheckView(kind=TaskType.DBSTATUS, finished_at=T0, answer=""),
                results.CheckView(kind=TaskType.DBDATACHECK, finished_at=T0, answer=None),
            ),
        )
    ],
}
ANSWERS |= {
    "flags": tuple(operated.flags(paused="true")),
    "reboot_status": operating.RebootStatus(backend="test", paused=True, running=0, cancelling=0),
}
PATHS = [
    *("raps", f"raps/{RAP}", f"raps/{RAP}/trace", f"jobs/{JOB}", f"jobs/{JOB}/log", f"jobs/{JOB}/metrics"),
    *("agents", "backends"),
    *("flags?backend=test", "backends/test/reboot-status"),
]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**ANSWERS, **operated.ANSWERS)


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with serve(engine, "/api", routes.make_app()) as client:
        yield client


async def get(client: Any, path: str, headers: Any = CLIENT) -> Any:
    return await client.get(f"/api/{path}", headers=headers)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_examples_are_what_is_served(client: Any, engine: ScriptedEngine, name: str) -> None:
    """Golden answers, byte for byte in the order of keys, and within the contract."""
    example = EXAMPLES[name]
    request, expected = example["request"], example["response"]
    if expected["status"] == 404 and "rap_id" in expected["body"]:
        engine.script["rap_detail"] = NotFound(expected["body"]["message"], rap_id=expected["body"]["rap_id"])
    sent = {"json": request["body"]} if "body" in request else {}
    response = await client.request(request["method"], request["path"], headers=CLIENT, **sent)
    assert response.status == expected["status"]
    assert json.dumps(await response.json()) == json.dumps(expected["body"])
    schema = _answer_schema(request["method"], request["path"], expected["status"])
    Draft202012Validator(schema).validate(expected["body"])


def test_there_is_an_example_for_every_path() -> None:
    shown = {_template(example["request"]["path"]) for example in EXAMPLES.values()}
    assert shown == set(CONTRACT["paths"])
    served = {route.resource.canonical for route in routes.make_app().router.routes() if route.resource}
    assert served == set(CONTRACT["paths"])


def _template(path: str) -> str:
    bare = path.partition("?")[0].removeprefix("/api")
    fitting = [
        each
        for each in CONTRACT["paths"]
        if fnmatch.fnmatch(bare, re.sub(r"{\w+}", "*", each)) and each.count("/") == bare.count("/")
    ]
    assert len(fitting) == 1
    return str(fitting[0])


def _answer_schema(method: str, path: str, status: int) -> dict[str, Any]:
    answer = CONTRACT["paths"][_template(path)][method.lower()]["responses"][str(status)]
    if "$ref" in answer:
        answer = CONTRACT["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
    return {**answer["content"]["application/json"]["schema"], "components": CONTRACT["components"]}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "wrong"}, {"Authorization": "Bearer "}, AGENT])
async def test_only_clients_are_let_in(client: Any, engine: ScriptedEngine, path: str, headers: Any) -> None:
    response = await get(client, path, headers)
    assert response.status == 401
    assert (await response.json())["error"] == "unauthorized"
    assert engine.calls == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_bare_token_is_enough(client: Any, engine: ScriptedEngine, path: str) -> None:
    assert (await get(client, path, {"Authorization": "client-token"})).status == 200
    assert engine.calls[0][1][0] == PRINCIPAL


async def test_filters_reach_the_engine(client: Any, engine: ScriptedEngine) -> None:
    await get(client, "raps?limit=3&cursor=abc&backend=test&workspace=w%20x&state=active&created_by=alice&search=%25")
    wanted = {"limit": 3, "cursor": "abc", "backend": "test", "workspace": "w x", "state": "active"}
    wanted |= {"created_by": "alice", "search": "%"}
    assert engine.calls == [("list_raps", (PRINCIPAL,), wanted)]


async def test_a_list_without_filters_has_a_bound(client: Any, engine: ScriptedEngine) -> None:
    await get(client, "raps")
    wanted = {"limit": 50, "cursor": None, "backend": None, "workspace": None, "state": None}
    wanted |= {"created_by": None, "search": None}
    assert engine.calls == [("list_raps", (PRINCIPAL,), wanted)]


async def test_a_part_of_a_log(client: Any, engine: ScriptedEngine) -> None:
    response = await get(client, f"jobs/{JOB}/log?offset=5&limit=100&attempt=2")
    assert (await response.json())["offset"] == 5
    assert engine.calls == [("job_log", (PRINCIPAL, JOB), {"attempt": 2, "offset": 5, "limit": 100})]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("raps?limit=0&state=odd&colour=red", ["limit", "state", "colour"]),
        ("raps?limit=201", ["limit"]),
        ("raps?limit=-1", ["limit"]),
        ("raps?limit=%D9%A3", ["limit"]),  # an Arabic-Indic three
        ("raps?cursor=&backend=a%00b&workspace=" + "x" * 513, ["cursor", "backend", "workspace"]),
        (f"jobs/{JOB}/log?offset=-1&limit=0&attempt=0", ["offset", "limit", "attempt"]),
        (f"jobs/{JOB}/log?offset=2000000001", ["offset"]),
        (f"jobs/{JOB}/metrics?attempt=0&x=1", ["attempt", "x"]),
        (f"raps/{RAP}?x=1", ["x"]),
        (f"jobs/{JOB}?x=1", ["x"]),
        ("agents?x=1", ["x"]),
        ("flags?backend=&x=1", ["backend", "x"]),
        ("backends/test/reboot-status?x=1", ["x"]),
        ("backends?x=1", ["x"]),
    ],
)
async def test_every_fault_of_a_query_is_named(
    client: Any, engine: ScriptedEngine, path: str, names: list[str]
) -> None:
    response = await get(client, path)
    assert response.status == 400
    answer = await response.json()
    assert [fault.split()[0] for fault in answer["faults"]] == names
    assert engine.calls == []


@pytest.mark.parametrize("path", ["raps/x", "raps/ABCDEFGH23456777", "jobs/%00", "jobs/a%2Fb", "jobs/x/log"])
async def test_what_cannot_be_an_id_is_not_looked_for(client: Any, engine: ScriptedEngine, path: str) -> None:
    response = await get(client, path)
    assert (response.status, (await response.json())["error"]) == (404, "not_found")
    assert engine.calls == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Rejected("cursor is not ours", field="cursor"), 400),
        (NotFound("no such thing", message="hides nothing"), 404),
        (Unavailable("the database is away", retry_after=0.2), 503),
    ],
)
async def test_errors_of_the_engine(client: Any, engine: ScriptedEngine, error: Any, status: int) -> None:
    for path, name in zip(PATHS, ANSWERS, strict=True):
        engine.script[name] = error
        response = await get(client, path)
        answer = await response.json()
        assert (response.status, answer["error"], answer["message"]) == (status, error.key, error.message)
        assert response.headers.get("Retry-After") == ("1" if status == 503 else None)


async def test_unknown_paths_and_methods(client: Any) -> None:
    missing = await get(client, "nothing")
    assert (missing.status, (await missing.json())["error"]) == (404, "not_found")
    wrong = await client.post("/api/raps", headers=CLIENT)
    assert (wrong.status, (await wrong.json())["error"]) == (405, "method_not_allowed")


@given(st.datetimes(timezones=st.just(timezone(timedelta(hours=-7)))))
def test_times_are_utc_with_six_digits(at: datetime) -> None:
    try:
        at.astimezone(UTC)
    except OverflowError:
        return
    text = times.timestamp(at)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert datetime.fromisoformat(text) == at


@given(st.dictionaries(st.sampled_from(JobState), st.integers(0, 3)))
def test_the_state_of_a_rap_as_a_whole(counts: dict[JobState, int]) -> None:
    state = raps.overall(counts)
    active = counts.get(JobState.PENDING, 0) + counts.get(JobState.RUNNING, 0)
    finished = counts.get(JobState.SUCCEEDED, 0) + counts.get(JobState.FAILED, 0)
    assert state.is_terminal == (finished > 0 and active == 0)
    if state is JobState.SUCCEEDED:
        assert not counts.get(JobState.FAILED)
    if state is JobState.PENDING:
        assert not finished
        assert not counts.get(JobState.RUNNING)


@pytest.mark.parametrize("sent", ["", "x", "00-xyz-00f067aa0ba902b7-01", PARENT + "-more"])
def test_what_is_no_traceparent_has_no_trace_id(sent: str) -> None:
    assert jobs.trace_id(sent) is None
    assert raps.rap(attrs.evolve(SUMMARY, traceparent=sent)).trace_id is None

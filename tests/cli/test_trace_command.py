"""`rap trace`: the waterfall tells who waits for what, and where each attempt ran."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from io import StringIO
from typing import Any

import attrs
import pytest
from rich.console import Console

from cli import waterfall
from common import convert
from controller.core import machine
from controller.core.codes import StatusCode
from controller.core.model import JobId, RapId
from controller.core.spans import Attempt, JobFacts
from controller.core.traces import job_spans, rap_span
from controller.dialects.native import traces as native
from controller.engine.traces import RapTrace
from tests.cli.fake_controller import RAP, FakeController, invoke, serving
from tests.core.test_traces import RAP as FACTS
from tests.core.test_traces import TRACE, lived
from tests.factories import later


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        yield controller


DEPENDENCIES = machine.Waiting(code=StatusCode.WAITING_ON_DEPENDENCIES)
EXECUTING = machine.Progressed(code=StatusCode.EXECUTING)
EXTRACT = lived(
    (0, machine.Waiting(code=StatusCode.WAITING_ON_WORKERS)),
    (10, machine.Started()),
    (12, EXECUTING),
    (30, machine.Faulted(rest=timedelta(seconds=5), cause="The disk is [red]full\x1b[2J")),
    (40, machine.Started()),
    (42, machine.Progressed(code=StatusCode.PREPARING)),
    (45, EXECUTING),
    (60, machine.Succeeded()),
    attempts=[Attempt(attempt=1, agent="node-1", results=None), Attempt(attempt=2, agent="node-2", results={})],
)
COUNT = lived((0, DEPENDENCIES), (60, machine.Started()), (65, machine.Failed(code=StatusCode.NONZERO_EXIT)))
MODEL = lived((0, DEPENDENCIES), (60, machine.Started()), (65, EXECUTING))
REPORT = lived((0, DEPENDENCIES))
QUERY = lived((0, machine.Waiting(code=StatusCode.WAITING_DB_MAINTENANCE)))


def answer(**jobs: tuple[JobFacts, str]) -> dict[str, Any]:
    """What the controller says 100 s after the beginning of a RAP of these jobs; each with what it needs."""
    facts = []
    for place, (action, (known, needs)) in enumerate(jobs.items(), 1):
        span = f"00-{TRACE}-{place:016x}-01"
        changes = {"id": JobId(action.ljust(16, "x")), "action": action, "traceparent": span}
        facts.append(as_specified(known, changes | {"needs": tuple(needs.split())}))
    spans = (rap_span(FACTS, facts), *(span for each in facts for span in job_spans(FACTS, each)))
    trace = native.trace(RapTrace(rap_id=RapId(RAP), at=later(100), spans=spans))
    return dict(json.loads(convert.dumps(trace)))


def as_specified(known: JobFacts, changes: dict[str, Any]) -> JobFacts:
    """The same life of another job."""
    return attrs.evolve(known, job=attrs.evolve(known.job, spec=attrs.evolve(known.job.spec, **changes)))


TOLD = answer(
    extract=(EXTRACT, ""),
    count=(COUNT, "extract"),
    model=(MODEL, "extract"),
    report=(REPORT, "extract model"),
    query=(QUERY, ""),
)


async def test_who_waits_for_what_and_where_it_ran(controller: FakeController) -> None:
    controller.script[f"GET /api/raps/{RAP}/trace"] = (200, TOLD)
    result = await invoke(controller, "trace", RAP)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    head, _, *rows, key, trace_id = lines
    assert head.startswith(f"RAP {RAP} running")
    told = [row.rstrip("·░▒█▓ ") for row in rows]
    assert told == [
        "extract succeeded 1m 00s",
        "waited for a free worker 10.0s",
        "attempt 1 on node-1: This job returned an error that could be 20.0s",
        "retriedwith a new task. The disk is [red]full\\x1b[2J",
        "waiting for the agent 2.0s",
        "execute 18.0s",
        "waited for another attempt 10.0s",
        "attempt 2 on node-2 20.0s",
        "waiting for the agent 2.0s",
        "prepare 3.0s",
        "execute 15.0s",
        "count failed: Job exited with an error 1m 05s",
        "waited for extract 1m 00s",
        "attempt 1 no agent has taken it 5.0s",
        "waiting for the agent 5.0s",
        "model running 1m 40s",
        "waited for extract 1m 00s",
        "attempt 1 agent without a name 40.0s",
        "waiting for the agent 5.0s",
        "execute 35.0s",
        "report pending 1m 40s",
        "waits for model 1m 40s",
        "query pending 1m 40s",
        "waits for the database's maintenance to end 1m 40s",
    ]
    assert key.startswith("· wait ░ start")
    assert trace_id == f"Trace id: {TRACE}"


async def test_the_answer_as_json(controller: FakeController) -> None:
    controller.script[f"GET /api/raps/{RAP}/trace"] = (200, TOLD)
    assert json.loads((await invoke(controller, "trace", RAP, "--json")).stdout) == TOLD


async def test_an_unknown_rap(controller: FakeController) -> None:
    result = await invoke(controller, "trace", RAP)
    assert (result.exit_code, result.stdout) == (2, "")


def drawn(trace: dict[str, Any], width: int) -> list[str]:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    waterfall.print_trace(console, trace)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_bars_are_where_the_time_was() -> None:
    """A job that ran in the second half of its RAP is drawn in the second half, a short piece at least once."""
    bars = [line for line in drawn(answer(model=(MODEL, "extract")), 120) if line.startswith("model")]
    (bar,) = [line[line.index("·") :] for line in bars]
    assert bar.count("·") == pytest.approx(bar.count("█") / 35 * 60, abs=2)
    assert bar.strip("·").startswith("░")
    assert bar.rstrip().endswith("█")


def test_it_fits_a_narrow_terminal() -> None:
    assert max(map(len, drawn(TOLD, 60))) <= 120
    assert all(len(line) <= 60 for line in drawn(TOLD, 60)[1:-2])


def test_a_rap_that_is_over() -> None:
    assert drawn(answer(extract=(EXTRACT, "")), 100)[0].startswith(f"RAP {RAP} succeeded")
    assert drawn(answer(count=(COUNT, "")), 100)[0].startswith(f"RAP {RAP} failed")
    assert drawn(answer(report=(REPORT, "")), 100)[0].startswith(f"RAP {RAP} pending")

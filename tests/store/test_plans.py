"""No query of the hot paths reads its way through history: none scans a table that grows with use."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from controller.store import backends, diagnosis, events, gauges, jobs, pruning, raps, samples, tasks
from controller.store.db import Database
from controller.store.queries import ALL, Query
from tests.factories import NOW
from tests.store.seeded import JOBS_OF_A_RAP, RAPS, seed

GROWING = frozenset({"job", "job_event", "job_need", "task", "rap", "output", "job_log", "event", "job_sample"})

RAP_IDS = [f"{number:016x}" for number in range(RAPS - 3, RAPS + 3)]
MANY_RAP_IDS = [f"{number:016x}" for number in range(1, 501)]
JOB_IDS = [f"{RAPS * 1000 + number:x}".rjust(16, "j") for number in range(JOBS_OF_A_RAP)]
TASK_IDS = [f"{job}-001" for job in JOB_IDS]

VALUES: Mapping[str, Any] = {
    "after": 0,
    "actions": [f"action_{n}" for n in range(JOBS_OF_A_RAP)],
    "agent": "agent-1",
    "alive_since": NOW,
    "attempt": 1,
    "backend": "test",
    "backends": ["test", "other"],
    "before": None,
    "before_position": JOBS_OF_A_RAP,
    "believable": NOW,
    "changes": [],
    "code": None,
    "created_by": None,
    "cutoff": NOW,
    "db_workers": 10.0,
    "down_to": None,
    "everything": False,
    "holding": TASK_IDS,
    "id": JOB_IDS[0],
    "ids": JOB_IDS,
    "job_id": JOB_IDS[0],
    "job_ids": JOB_IDS,
    "lease": NOW,
    "look": 500,
    "missed_since": NOW,
    "now": NOW,
    "only_finished": False,
    "outputs": [],
    "page_size": 50,
    "rap_id": RAP_IDS[0],
    "rap_ids": RAP_IDS,
    "rap_seqs": list(range(len(RAP_IDS))),
    "search": None,
    "slots": 10,
    "start": 0,
    "state": None,
    "stop": 100,
    "types": ["dbstatus", "dbdatacheck"],
    "workers": 10.0,
    "workspace": None,
    "workspaces": ["study"] * JOBS_OF_A_RAP,
}

EXTREMES: list[tuple[Query[Any], Mapping[str, Any]]] = [
    (jobs.of_raps, {"rap_ids": [f"{number:016x}" for number in range(10**6, 10**6 + 40_000)]}),
    (jobs.schedulable, {"everything": True}),
    (tasks.lock, {"ids": TASK_IDS}),
    (tasks.release, {"ids": TASK_IDS}),
    (tasks.hand_over_releases, {"gone": "agent-1"}),
    (raps.list_page, {"before": 1000}),
    (raps.list_page, {"workspace": "none such"}),
    (raps.list_page, {"only_finished": True}),
    (raps.list_page, {"down_to": RAPS - 100, "search": "none such", "created_by": "nobody"}),
    (raps.list_active_page, {"search": "none such", "created_by": "nobody"}),
    (jobs.list_active_page, {"search": "none such", "created_by": "nobody"}),
    (jobs.list_page, {"before": RAPS, "rap_ids": MANY_RAP_IDS, "rap_seqs": list(range(500)), "created_by": "nobody"}),
    (raps.window, {"before": RAPS}),
    (raps.window, {"before": 2**63 - 1, "workspace": "none such"}),
    (jobs.list_page, {"before": RAPS, "rap_ids": MANY_RAP_IDS, "rap_seqs": list(range(500)), "state": "failed"}),
    (jobs.list_page, {"before": 10, "rap_ids": MANY_RAP_IDS, "rap_seqs": list(range(500)), "code": "job_error"}),
    (jobs.list_active_page, {"state": "running"}),
    (jobs.list_active_page, {"workspace": "none such", "after": 10}),
    (backends.demand, {}),
    (backends.agents, {}),
    (raps.find, {"id": RAP_IDS[0]}),
    (raps.summary, {"id": RAP_IDS[0]}),
    (raps.owners, {"ids": RAP_IDS}),
    (backends.seen, {}),
    (events.after, {"seqs": [49_000, 0]}),
    (events.bounds, {}),
    (events._record, {"events": [], "kept": 10_000, "channel": "rap_events"}),
    (samples.series, {}),
    (samples.executing_since, {}),
    (samples._full, {"attempts": [1] * JOBS_OF_A_RAP, "most": 500}),
    (samples._thin, {}),
]

WITHOUT_PLAN = {"insert", "insert_needs", "record_events", "append_log"}
"""They only add rows."""


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def test_no_query_scans_what_grows_with_use(database: Database) -> None:
    await seed(database)
    ordinary: list[tuple[Query[Any], Mapping[str, Any]]] = [
        (query, {}) for query in ALL if query.name not in WITHOUT_PLAN and set(query.parameters) <= set(VALUES)
    ]
    assert {
        jobs.of_raps,
        jobs.schedulable,
        tasks.claim,
        tasks.rounds,
        tasks.last_checks,
        pruning.removable,
        diagnosis.tasks,
        gauges.queue,
        gauges.tasks,
        gauges.agents,
    } <= {query for query, _ in ordinary}
    scans = []
    async with database.connection() as tx:
        for query, special in [*ordinary, *EXTREMES]:
            values = {**VALUES, **special}
            arguments = [values[name] for name in query.parameters]
            (plan,) = json.loads(await tx.fetchval(f"EXPLAIN (FORMAT JSON) {query.sql}", *arguments))
            scans += [
                f"{query.name} {dict(special) if len(str(special)) < 99 else '...'}: {node['Relation Name']}"
                for node in nodes(plan["Plan"])
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in GROWING
            ]
    assert scans == []


@pytest.mark.parametrize(
    ("query", "special"),
    [
        (raps.list_page, {}),
        (raps.list_page, {"only_finished": True}),
        (raps.list_page, {"workspace": "none such"}),
        (raps.list_page, {"backends": ["other"]}),
        (raps.list_page, {"before": 1000}),
        (raps.list_active_page, {}),
        (raps.list_active_page, {"before": 1000}),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
async def test_a_page_of_raps_reads_no_more_than_the_page(
    database: Database, query: Query[Any], special: dict[str, Any]
) -> None:
    await seed(database)
    async with database.connection() as tx:
        values = {**VALUES, **special}
        arguments = [values[name] for name in query.parameters]
        explained = await tx.fetchval(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query.sql}", *arguments)
        (plan,) = json.loads(explained)
    looked_at = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes(plan["Plan"])
        if node.get("Relation Name") == "rap"
    )
    assert looked_at <= 2 * VALUES["page_size"]

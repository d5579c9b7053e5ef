"""What clients and agents can get wrong is told them as their mistake; the next request works."""

import json
import random
import string
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import AGENT_TOKEN, LiveController
from tests.engine.conftest import Study, commit_project

AGENT = {"Authorization": f"Bearer {AGENT_TOKEN}"}
HUGE = 10**30
LONG = "".join(random.Random(7).choices(string.ascii_letters, k=20_000))
"""Longer than an index entry may be, and nothing to compress."""


async def send(live: LiveController, path: str, body: str) -> tuple[int, dict[str, Any]]:
    """A POST of our agents."""
    async with live.portal.post(f"{live.url}/agent/v1/test/{path}", data=body, headers=AGENT) as response:
        assert response.content_type == "application/json", await response.text()
        return response.status, await response.json()


async def running_task(live: LiveController, study: Study) -> dict[str, Any]:
    """The one task of a one-action RAP, claimed."""
    status, _ = await live.create(study, "extract")
    assert status == 201
    _, answer = await send(live, "claim", json.dumps({"agent": "a", "slots": 1, "wait": 20}))
    (task,) = answer["tasks"]
    return dict(task)


def final(task: dict[str, Any], **said: Any) -> str:
    """The final report of a job that went well, with something odd in it."""
    results = {"error": False, "exit_code": "0"} | said.pop("results", {})
    report = {"task_id": task["id"], "attempt": 1, "stage": "finalized", "complete": True, "results": results}
    return json.dumps({"agent": "a", "reports": [report | said]})


def output(**changes: Any) -> dict[str, Any]:
    return {"path": "a.csv", "level": "highly_sensitive", "size": 1, "sha256": "0" * 64} | changes


@pytest.mark.parametrize(
    "odd",
    [
        {"results": {"note": HUGE}},
        {"results": {"note": -HUGE}},
        {"results": {"job_metrics": {"cpu_mean": HUGE}}},
        {"results": {"job_metrics": {"cpu_mean": float("nan")}}},
        {"results": {"job_metrics": {"\0\ud800": 1}}},
        {"results": {"job_metrics": [1]}},
        {"results": {"exit_code": "0", "status_message": {"a": 1}}},
        {"metrics": {"cpu_mean": HUGE}},
        {"metrics": {"cpu_mean": float("inf")}},
        {"stage": "\0"},
        {"timestamp_ns": 2**63 - 1},
        {"results": {"outputs": [output(), output()]}},
        {"results": {"outputs": [output(size=-1)]}},
        {"results": {"outputs": [output(size=HUGE)]}},
        {"results": {"outputs": [output(path=LONG)]}},
        {"results": {"outputs": [output(path="")]}},
        {"results": {"outputs": [output(level="secret")]}},
        {"results": {"outputs": "all of them"}},
        {"results": {"deep": json.loads("[" * 50 + "]" * 50)}},
    ],
    ids=lambda odd: json.dumps(odd)[:60],
)
async def test_oddities_in_a_final_report_never_keep_the_job_from_its_end(
    live: LiveController, study: Study, odd: dict[str, Any]
) -> None:
    task = await running_task(live, study)
    status, answer = await send(live, "reports", final(task, **odd))
    assert (status, answer["answers"][0]["verdict"]) == (200, "applied")
    (job,) = (await live.jobs(task["definition"]["rap_id"])).values()
    assert job["status_code"] == "succeeded"


async def test_a_task_api_update_with_a_huge_number_ends_the_job(live: LiveController, study: Study) -> None:
    task = await running_task(live, study)
    said = {"task_id": task["id"], "stage": "finalized", "complete": True, "timestamp_ns": None}
    said |= {"results": {"error": False, "exit_code": 0, "n": HUGE, "job_metrics": {"cpu_mean": HUGE}}}
    url, form = f"{live.url}/test/task/update/", {"payload": json.dumps(said)}
    async with live.portal.post(url, data=form, headers={"Authorization": AGENT_TOKEN}) as response:
        assert response.status == 200
    (job,) = (await live.jobs(task["definition"]["rap_id"])).values()
    assert job["status_code"] == "succeeded"


@pytest.mark.parametrize(
    "odd",
    [
        {"workspace": LONG},
        {"workspace": "a\0"},
        {"branch": "\0"},
        {"created_by": "\0"},
        {"project": "\0"},
        {"orgs": ["\0"]},
        {"repo_url": "/\0"},
        {"repo_url": "/" + LONG},
        {"requested_actions": ["\0"]},
        {"requested_actions": [LONG]},
        {"requested_actions": ["x"] * 50_000},
        {"backend": "\0"},
        {"analysis_scope": {"extra": 1}},
        {"analysis_scope": {"extra": {"a": "b"}}},
        {"analysis_scope": {"extra": [1]}},
        {"analysis_scope": {"extra": [HUGE]}},
        {"analysis_scope": {"extra": "word"}},
        {"analysis_scope": {"extra": ["\0"]}},
        {"analysis_scope": {"\0": ["a"]}},
        {"analysis_scope": {"dataset_permissions": None}},
        {"analysis_scope": {"population_permissions": "include_t1oo"}},
    ],
    ids=lambda odd: json.dumps(odd)[:60],
)
async def test_oddities_in_a_create_are_accepted_or_told_as_the_clients_mistake(
    live: LiveController, study: Study, odd: dict[str, Any]
) -> None:
    status, body = await live.create(study, "report", **odd)
    assert status in (201, 400), body
    assert "details" in body
    assert (await live.create(study, "report", workspace="next"))[0] == 201


CLAIMS = (
    '{{"agent": {0}, "slots": 1}}',
    '{{"agent": "a", "slots": {0}}}',
    '{{"agent": "a", "slots": 1, "wait": {0}, "holding": [{{"task_id": "t", "attempt": 1}}]}}',
    '{{"agent": "a", "slots": 1, "holding": {0}}}',
    '{{"agent": "a", "slots": 1, "holding": [{{"task_id": {0}, "attempt": 1}}]}}',
    '{{"agent": "a", "slots": 1, "holding": [{{"task_id": "t", "attempt": {0}}}]}}',
)
ODD_VALUES = (
    '"\\u0000"',
    '"\\ud800"',
    "NaN",
    "1e999",
    str(HUGE),
    f'"{LONG}"',
    "null",
    "[]",
    '"\\u00e9"',
    '"../x"',
    "-1",
)


async def test_no_odd_claim_is_a_fault_of_ours(live: LiveController) -> None:
    for template in CLAIMS:
        for raw in ODD_VALUES:
            status, _ = await send(live, "claim", template.format(raw))
            assert status in (200, 400), (template, raw)


ODD_ACTION = {"run": "python:v2 a.py", "outputs": {"highly_sensitive": {"x": "a.csv"}}}


@pytest.mark.parametrize(
    "actions",
    [
        {LONG: ODD_ACTION},
        {"\U0001f600" * 250: ODD_ACTION},
        {"".join(random.Random(5).choices("\U0001f600\U0001f601\U0001f602\U0001f603\U0001f604", k=1000)): ODD_ACTION},
        {"a\0b": ODD_ACTION},
        {"a\ud800b": ODD_ACTION},
        {"a": ODD_ACTION | {"run": "python:v2 a\0b"}},
        {"a": ODD_ACTION | {"run": "python:v2 a\ud800b"}},
        {"a": ODD_ACTION | {"outputs": {"highly_sensitive": {"x\0": "a.csv"}}}},
        {"a": ODD_ACTION | {"outputs": {"highly_sensitive": {"x": "a\0.csv"}}}},
        {"a": ODD_ACTION | {"config": {"a": "\0"}}},
        {"a": ODD_ACTION | {"config": {"a": "\ud800"}}},
        {"a": ODD_ACTION | {"config": {"a": HUGE}}},
        {"a": ODD_ACTION | {"outputs": {"highly_sensitive": {"x": LONG + ".csv"}}}},
    ],
    ids=lambda actions: json.dumps(actions)[:70],
)
async def test_oddities_in_a_project_are_accepted_or_told_as_its_mistake(
    live: LiveController, tmp_path: Path, actions: dict[str, Any]
) -> None:
    path = tmp_path / "odd"
    commit = commit_project(path, {"version": "4", "actions": actions})
    status, body = await live.create(Study(path, commit))
    assert status in (201, 400), body
    if status == 201:
        async with aiohttp.ClientSession(headers=AGENT) as session:
            claim = {"agent": "a", "slots": 1, "wait": 20}
            async with session.post(f"{live.url}/agent/v1/test/claim", json=claim) as response:
                assert len((await response.json())["tasks"]) == 1

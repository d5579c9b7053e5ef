"""Reusable actions end to end: an author's code from the actions' organisation runs in a study's workspace."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.e2e.backend import Backend, backend
from tests.e2e.machines import Machine
from tests.sources.repositories import Repository

MAKE = """
import pathlib
pathlib.Path("rows.csv").write_text("name,number\\na,1\\nb,2\\n")
"""
TALLY = """
import csv, json, os, sys
config = json.loads(sys.argv[sys.argv.index("--config") + 1])
with open(config["input"]) as file:
    total = sum(int(row["number"]) for row in csv.DictReader(file))
with open("tally.csv", "w") as file:
    file.write(f"total\\n{total * config['factor']}\\n")
with open("seen.json", "w") as file:
    json.dump({"arguments": sys.argv[1:], "files": sorted(os.listdir()), "environment": sorted(os.environ)}, file)
"""
PROJECT: dict[str, Any] = {
    "version": "4",
    "actions": {
        "make": {
            "run": "python:v2 python make.py",
            "outputs": {"highly_sensitive": {"rows": "rows.csv"}},
        },
        "tally": {
            "run": "tally:v1.2 --level 3",
            "config": {"input": "rows.csv", "factor": 10},
            "needs": ["make"],
            "outputs": {"moderately_sensitive": {"tally": "tally.csv"}, "highly_sensitive": {"seen": "seen.json"}},
        },
    },
}


@frozen
class Action:
    """A reusable action at the git host."""

    repository: Repository
    commit: str
    """Of the tag `v1.2`."""


@pytest.fixture
async def made(machine: Machine, database_dsn: str, tmp_path: Path) -> AsyncIterator[Backend]:
    patient = {"RAP_RETRY_LIMIT": "100"}
    agents = {"DEFAULT_DATABASE_URL": "canary-database"}
    async with backend(machine, database_dsn, tmp_path, controllers=patient, agents=agents) as made:
        yield made


def publish(made: Backend, name: str = "tally", run: str = "python:v2 python tally.py") -> Action:
    """An action: tag `v1.2`, annotated, on an older commit of `main`; tag `v2` beside it, which nobody approved."""
    repository = made.git.repository(f"opensafely-actions/{name}")
    files = {"action.yaml": f"run: {run}\n".encode(), "tally.py": TALLY.encode(), "README": b"An action"}
    commit = repository.commit(files)
    repository.git("tag", "--annotate", "--message=first", "v1.2", commit)
    repository.commit(files | {"tally.py": b"raise SystemExit('not this one')"})
    repository.git("tag", "v2", repository.commit(files, branch=None, parent=commit))
    return Action(repository, commit)


def commit_study(made: Backend, name: str = "study", **actions: Any) -> tuple[str, str]:
    """A study; its URL and commit."""
    project = PROJECT | {"actions": PROJECT["actions"] | actions}
    repository = made.git.repository(f"opensafely/{name}")
    return repository.url, repository.commit({"project.yaml": json.dumps(project).encode(), "make.py": MAKE.encode()})


async def test_an_action_runs_its_own_code_on_the_studys_files(made: Backend) -> None:
    action = await asyncio.to_thread(publish, made)
    url, sha = await asyncio.to_thread(commit_study, made)
    status, body = await made.create(url, sha, "tally")
    assert (status, body.get("count")) == (201, 2), body
    jobs = await made.finished(body["rap_id"])
    assert {name: job["status_code"] for name, job in jobs.items()} == {"make": "succeeded", "tally": "succeeded"}
    assert jobs["tally"]["run_command"] == (
        'python:v2 python tally.py --level 3 --config \'{"input": "rows.csv", "factor": 10}\''
    )

    ((definition,),) = await made.ask_store(
        "SELECT definition FROM task WHERE job_id = $1", jobs["tally"]["identifier"]
    )
    definition = json.loads(definition)
    assert (definition["repo_url"], definition["commit"]) == (action.repository.url, action.commit)
    assert definition["study"] == {"git_repo_url": url, "commit": sha, "branch": "main"}

    def look() -> tuple[str, Any, Any]:
        kept = made.medium / "workspaces" / "study"
        seen = (made.high / "workspaces" / "study" / "seen.json").read_text()
        return (
            (kept / "tally.csv").read_text(),
            json.loads(seen),
            json.loads((kept / "metadata" / "manifest.json").read_text()),
        )

    tally, seen, manifest = await asyncio.to_thread(look)
    assert tally == "total\n30\n"
    assert seen["arguments"] == ["--level", "3", "--config", '{"input": "rows.csv", "factor": 10}']
    # The action's code and its input; nothing of the study's code.
    assert {"README", "action.yaml", "tally.py", "rows.csv"} <= set(seen["files"])
    assert not {"make.py", "project.yaml"} & set(seen["files"])
    assert "DATABASE_URL" not in seen["environment"]
    # Reviewers are told which study it was, not whose code it used.
    entry = manifest["outputs"]["tally.csv"]
    assert (entry["repo"], entry["commit"], entry["action"]) == (url, sha, "tally")
    assert made.git.users() == {"jobrunner-ctrl", "jobrunner-test"}
    everything = made.said().encode() + await made.dump() + await asyncio.to_thread(made.kept)
    assert made.git.token.encode() not in everything


@pytest.mark.parametrize("machine", ["sandbox"], indirect=True)
async def test_an_action_that_may_not_be_used_says_why(made: Backend) -> None:
    await asyncio.to_thread(publish, made)
    await asyncio.to_thread(publish, made, "query", "ehrql:v1 generate-dataset dataset.py --output dataset.csv")
    outputs = {"highly_sensitive": {"x": "x.csv"}}
    refusals = {
        "tally:v2 x": "tag 'v2' has not yet been approved for use (not merged into main branch)",
        "tally:v9 x": "'v9' is not a tag listed in https://github.com/opensafely-actions/tally/tags",
        "nothing:v1 x": "could not find a repo at https://github.com/opensafely-actions/nothing",
        "query:v1.2 x": "invalid action, please open an issue on https://github.com/opensafely-actions/query/issues",
    }
    for number, (run, reason) in enumerate(refusals.items()):
        odd = {"run": run, "outputs": outputs}
        url, sha = await asyncio.to_thread(commit_study, made, f"study-{number}", odd=odd)
        status, body = await made.create(url, sha, "odd")
        assert (status, body["error"]) == (400, "Error creating jobs")
        assert body["details"].startswith(f"in 'odd: {run.split()[0]}' {reason}"), body


@pytest.mark.parametrize("machine", ["sandbox"], indirect=True)
async def test_a_host_that_refuses_the_agent_now_is_asked_again(made: Backend) -> None:
    """The controller can read the code; the agent, whose token was not renewed, cannot until it is."""
    await asyncio.to_thread(publish, made)
    url, sha = await asyncio.to_thread(commit_study, made)
    made.git.refused.add("jobrunner-test")
    status, body = await made.create(url, sha, "make")
    assert status == 201
    said = json.loads(await made.agent.wait_for("git fetch failed"))
    assert "Authentication failed" in said["said"]
    assert made.git.token not in said["said"]
    made.git.refused.clear()
    jobs = await made.finished(body["rap_id"])
    assert jobs["make"]["status_code"] == "succeeded"

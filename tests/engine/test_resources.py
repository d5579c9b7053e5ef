"""What a job may use: from the project file to the tasks of both kinds of agents, and back to whoever asks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from controller.core.errors import InvalidProject, Rejected
from controller.core.model import JobId
from controller.core.resources import JobLimits
from controller.core.weights import parse as parse_weights
from controller.engine.results import NothingToDo
from controller.sources.project_file import ProjectFiles
from tests.engine.conftest import Harness, Study, commit_project
from tests.factories import operator, principal

ORDINARY = JobLimits(cpu_count=2, memory_limit="4G", time_limit=3600)
Commit = Callable[..., Study]


@pytest.fixture
def commit(tmp_path: Path) -> Commit:
    """Makes commits of one study, whose action `big` asks for these resources."""
    path = tmp_path / "study"

    def make(**resources: Any) -> Study:
        action: dict[str, Any] = {"run": "python:v2 big.py", "outputs": {"highly_sensitive": {"a": "output/a.csv"}}}
        if resources:
            action["resources"] = resources
        plain = {"run": "python:v2 plain.py", "outputs": {"highly_sensitive": {"b": "output/b.csv"}}}
        return Study(path, commit_project(path, {"version": "4", "actions": {"big": action, "plain": plain}}))

    return make


@pytest.fixture
def asking(harness: Harness) -> Harness:
    """The harness, whose authors may ask for as much as every job gets."""
    sources = attrs.evolve(harness.context.sources, projects=ProjectFiles(harness.context.sources.git, may_ask=True))
    configure(harness, ordinary=ORDINARY)
    context = attrs.evolve(harness.context, sources=sources)
    return Harness(type(harness.engine)(context), context, harness.clock)


def configure(harness: Harness, *, ordinary: JobLimits, most: JobLimits | None = None) -> None:
    backend = harness.context.backends["test"]
    terms = attrs.evolve(backend.terms, ordinary=ordinary)
    harness.context.backends["test"] = attrs.evolve(backend, terms=terms, most=most or ordinary)


async def limits(harness: Harness, job_id: str | None) -> JobLimits | None:
    return (await harness.engine.job_detail(principal("test"), JobId(job_id or ""))).limits


async def test_what_an_action_asks_for_reaches_both_kinds_of_agents(asking: Harness, commit: Commit) -> None:
    created = await asking.create(commit(cpus=1, memory="1.5G", time="90s").request("run_all"))
    jobs = await asking.jobs(created.rap_id)
    assert await limits(asking, jobs["big"].id) == JobLimits(cpu_count=1, memory_limit="1536M", time_limit=90)
    assert await limits(asking, jobs["plain"].id) == ORDINARY
    await asking.settle()
    listed = {task.definition["action"]: task for task in await asking.engine.active_tasks("test")}
    big, plain = await asking.claim()
    assert (big.definition["cpu_count"], big.definition["memory_limit"], big.time_limit) == (1, "1536M", 90)
    assert (plain.definition["cpu_count"], plain.definition["memory_limit"], plain.time_limit) == (2, "4G", 3600)
    # Upstream's agents die of a key that they do not know.
    assert listed["big"].definition == big.definition
    assert big.definition.keys() == plain.definition.keys()
    assert "time_limit" not in big.definition


async def test_what_nothing_is_said_of_is_the_backends_at_the_attempt(asking: Harness, commit: Commit) -> None:
    await asking.create(commit(memory="1G").request("big"))
    await asking.settle()
    (first,) = await asking.claim()
    configure(asking, ordinary=JobLimits(cpu_count=3, memory_limit="8G"))
    # What an attempt was given is what is shown of it.
    assert await limits(asking, first.job_id) == JobLimits(cpu_count=2, memory_limit="1G", time_limit=3600)
    await asking.finish(first, error={"exception": "E", "message": "", "fatal": False})
    assert await asking.engine.retry(operator("test"), JobId(first.job_id or ""))
    await asking.settle()
    (second,) = await asking.claim()
    assert (second.attempt, second.definition["cpu_count"], second.time_limit) == (2, 3, None)
    assert await limits(asking, second.job_id) == JobLimits(cpu_count=3, memory_limit="1G")


async def test_too_much_is_refused_and_leaves_no_trace(asking: Harness, commit: Commit) -> None:
    study = commit(memory="5G")
    request = study.request("run_all")
    with pytest.raises(Rejected, match=r"^Action big asks for 5G \(`resources.memory`\), and the backend allows 4G"):
        await asking.create(request)
    assert await asking.jobs(request.rap_id) == {}
    # Other actions of the same project are as good as ever.
    assert (await asking.create(study.request("plain"))).count == 1
    configure(asking, ordinary=ORDINARY, most=attrs.evolve(ORDINARY, memory_limit="8G"))
    assert (await asking.create(request)).count == 1


async def test_an_operators_rule_needs_nobodys_asking(harness: Harness, commit: Commit) -> None:
    harness.engine.set_weights("test", parse_weights("[workspace.study]\n'big' = {memory = '64G', time = '2d'}\n"))
    await harness.create(commit().request("big"))
    await harness.settle()
    (task,) = await harness.claim()
    assert (task.definition["memory_limit"], task.time_limit) == ("64G", 2 * 86_400)


async def test_other_resources_make_no_other_job(asking: Harness, commit: Commit) -> None:
    await asking.create(commit(cpus=1).request("run_all"))
    await asking.run_all()
    answer = await asking.engine.create_rap(principal("test"), commit(cpus=2).request("run_all"))
    assert isinstance(answer, NothingToDo)


async def test_without_the_operators_leave_the_key_is_unexpected(harness: Harness, commit: Commit) -> None:
    with pytest.raises(InvalidProject, match=r"Unexpected parameters \(resources\) in action big"):
        await harness.create(commit(cpus=1).request("big"))

"""Releases on a real engine: asked for by a reviewer, answered by agents, stored as outputs of the job."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.protocol import (
    ClaimRequest,
    Declaration,
    Egress,
    Held,
    Named,
    Report,
    ReportsRequest,
    TaskOffer,
    Verdict,
)
from controller.core.errors import Conflict, Forbidden, NotFound
from controller.core.model import JobId, Verb
from controller.core.releases import Release, ReleaseState
from controller.engine.results import OutputView
from tests.engine.conftest import Harness, Study, listening
from tests.factories import NOW, principal

REVIEWER = principal("test", verbs=frozenset({Verb.READ, Verb.REVIEW}))
REVIEWED = Egress(outputs=Named.MODERATELY_SENSITIVE, reviewed=True)
TABLE = {"path": "output/table.csv", "level": "moderately_sensitive", "size": 3, "sha256": "ab"}
ABSENT = {"released": [], "unable": "absent"}
OTHER = {"path": "output/count.csv", "level": "moderately_sensitive", "size": 4, "sha256": "cd"}


async def declare(harness: Harness, agent: str = "agent-1", egress: Egress = REVIEWED) -> None:
    said = Declaration(version="1", executor="fake", slots=10, egress=egress)
    await harness.engine.declare_agent("test", agent, said)


@pytest.fixture
async def job(harness: Harness, study: Study) -> JobId:
    """A finished job of a backend whose agent lets outputs out after a review."""
    await declare(harness)
    created = await harness.create(study.request("analyse"))
    await harness.run_all()
    return (await harness.jobs(created.rap_id))["analyse"].id


async def ask(harness: Harness, job: JobId, *paths: str) -> Release:
    return (await harness.engine.release_outputs(REVIEWER, job, paths or None)).release


async def take(harness: Harness, agent: str = "agent-1") -> TaskOffer:
    (task,) = await harness.claim(slots=0, agent=agent)
    assert task.type == "release"
    return task


async def answer(harness: Harness, task: TaskOffer, *released: Any, agent: str = "agent-1", **said: Any) -> Verdict:
    results = {"released": list(released)} | said
    return await harness.report(task, "", complete=True, results=results, agent=agent)


async def outputs(harness: Harness, job: JobId) -> Sequence[OutputView]:
    return (await harness.engine.job_detail(REVIEWER, job)).outputs


async def releases(harness: Harness, job: JobId) -> Sequence[Release]:
    return await harness.engine.releases(REVIEWER, job)


class TestAsking:
    async def test_the_task_is_what_our_agents_expect(self, harness: Harness, job: JobId) -> None:
        release = await ask(harness, job, "b", "a", "a")
        assert (release.number, release.state, release.paths) == (1, ReleaseState.WAITING, ("a", "b"))
        task = await take(harness)
        assert (task.id, task.attempt, task.job_id) == (f"{job}-release-001", 1, job)
        assert task.definition == {
            "job_id": job,
            "created_at": int(NOW.timestamp()),
            "workspace": "study",
            "by": REVIEWER.name,
            "paths": ["a", "b"],
            "release": 1,
            "absent": [],
        }
        (waiting,) = await releases(harness, job)
        assert (waiting.state, waiting.agent) == (ReleaseState.WAITING, "agent-1")

    async def test_asking_again_before_the_answer_is_the_same_release(self, harness: Harness, job: JobId) -> None:
        first = await harness.engine.release_outputs(REVIEWER, job, ["a", "b"])
        again = await harness.engine.release_outputs(REVIEWER, job, ["b", "a"])
        other = await harness.engine.release_outputs(REVIEWER, job, None)
        assert [each.changed for each in (first, again, other)] == [True, False, True]
        assert [each.release.number for each in (first, again, other)] == [1, 1, 2]
        assert len(await harness.claim(slots=0)) == 2

    async def test_who_does_not_review_may_not(self, harness: Harness, job: JobId) -> None:
        operator = principal("test", verbs=frozenset({Verb.READ, Verb.RUN, Verb.MANAGE}))
        with pytest.raises(Forbidden, match="not release outputs"):
            await harness.engine.release_outputs(operator, job, None)
        stranger = principal("other", verbs=frozenset({Verb.READ, Verb.REVIEW}))
        with pytest.raises(NotFound):
            await harness.engine.release_outputs(stranger, job, None)
        with pytest.raises(NotFound):
            await harness.engine.releases(stranger, job)
        with pytest.raises(NotFound):
            await harness.engine.release_outputs(REVIEWER, JobId("a" * 16), None)
        assert await harness.claim(slots=0) == ()

    async def test_a_job_that_is_not_finished_has_nothing_to_release(self, harness: Harness, study: Study) -> None:
        await declare(harness)
        created = await harness.create(study.request("extract"))
        job = (await harness.jobs(created.rap_id))["extract"].id
        with pytest.raises(Conflict, match="is pending: outputs can be released once it is finished"):
            await ask(harness, job)

    @pytest.mark.parametrize("egress", [Egress(), Egress(outputs=Named.MODERATELY_SENSITIVE), Egress(reviewed=True)])
    async def test_without_a_policy_that_has_a_review_it_is_refused(
        self, harness: Harness, job: JobId, egress: Egress
    ) -> None:
        await declare(harness, egress=egress)
        with pytest.raises(Conflict, match="No agent of backend 'test' has a policy with a review"):
            await ask(harness, job)

    async def test_agents_of_the_task_api_never_see_it(self, harness: Harness, job: JobId) -> None:
        await ask(harness, job)
        assert await harness.engine.active_tasks("test") == []
        with pytest.raises(NotFound):
            await harness.engine.update_task(
                "test",
                task_id=f"{job}-release-001",
                stage="",
                results={"released": [TABLE]},
                complete=True,
                timestamp_ns=None,
            )
        assert await outputs(harness, job) == ()

    async def test_only_agents_whose_policy_has_a_review_get_it(self, harness: Harness, job: JobId) -> None:
        await declare(harness, "closed", Egress())
        await ask(harness, job)
        assert await harness.claim(slots=0, agent="closed") == ()
        assert await harness.claim(slots=0, agent="never-declared") == ()
        await take(harness)

    async def test_an_agent_has_so_many_at_once_that_an_answer_can_hold_them(
        self, harness: Harness, job: JobId
    ) -> None:
        """Each may name a megabyte of paths; an answer that is too large for the agent would be its last."""
        for number in range(20):
            await ask(harness, job, f"output/{number}.csv")
        held = await harness.claim(slots=0)
        assert [task.attempt for task in held] == list(range(1, 17))
        assert await harness.claim(slots=0, holding=held) == ()
        assert len(await harness.claim(slots=0)) == 16, "a restarted agent gets the same"
        async with listening(harness):
            waiting = asyncio.create_task(harness.claim(slots=0, holding=held[1:], wait=30))
            await harness.waiter_arrives()
            await answer(harness, held[0])
            assert [task.attempt for task in await waiting] == [17]

    async def test_it_wakes_an_agent_that_waits(self, harness: Harness, job: JobId) -> None:
        async with listening(harness):
            waiting = asyncio.create_task(harness.claim(slots=0, wait=30))
            await harness.waiter_arrives()
            await ask(harness, job)
            (task,) = await waiting
        assert task.type == "release"


class TestAnswering:
    async def test_what_is_released_becomes_an_output_with_who_and_when(self, harness: Harness, job: JobId) -> None:
        await ask(harness, job)
        task = await take(harness)
        harness.clock.advance(5)
        with capture_logs() as logged:
            assert await answer(harness, task, TABLE) is Verdict.APPLIED
        (output,) = await outputs(harness, job)
        assert (output.path, output.sha256, output.excluded) == ("output/table.csv", "ab", False)
        assert output.released_by == REVIEWER.name
        assert output.released_at == harness.clock.now()
        (release,) = await releases(harness, job)
        assert (release.state, release.message, release.agent) == (
            ReleaseState.DONE,
            "1 output is released.",
            "agent-1",
        )
        (line,) = [line for line in logged if line["event"] == "outputs_released"]
        assert (line["principal"], line["outputs"], line["job_id"]) == (REVIEWER.name, 1, job)
        assert "table.csv" not in str(logged)

    async def test_a_repeated_report_and_a_repeated_release_change_nothing(self, harness: Harness, job: JobId) -> None:
        await ask(harness, job)
        task = await take(harness)
        await answer(harness, task, TABLE)
        first = await outputs(harness, job)
        assert await answer(harness, task, OTHER) is Verdict.REPEATED
        await ask(harness, job)
        harness.clock.advance(60)
        await answer(harness, await take(harness), {**TABLE, "sha256": "changed"}, OTHER)
        assert [output for output in await outputs(harness, job) if output.path == "output/table.csv"] == list(first)
        assert len(await outputs(harness, job)) == 2
        assert [release.number for release in await releases(harness, job)] == [1, 2]

    async def test_only_what_was_named_is_stored_and_told(self, harness: Harness, job: JobId) -> None:
        await ask(harness, job, "output/table.csv", "output/x.csv")
        refused = [
            {"path": "output/x.csv", "reason": "not_permitted"},
            {"path": "output/secret.csv", "reason": "changed"},
        ]
        await answer(harness, await take(harness), TABLE, OTHER, refused=refused)
        assert [output.path for output in await outputs(harness, job)] == ["output/table.csv"]
        (release,) = await releases(harness, job)
        assert [each.path for each in release.released] == ["output/table.csv"]
        assert [each.path for each in release.refused] == ["output/x.csv"]

    @pytest.mark.parametrize(
        "results",
        [
            {},
            {"results": None, "error": {"type": "Unsupported", "message": "?"}},
            {"released": [{"path": "a"}]},
            {"released": [{**TABLE, "size": -1}]},
            {"released": [], "refused": [{"path": "a", "reason": "whatever"}]},
            {"released": [], "unable": "lazy"},
            {"released": [], "withheld": 2**64},
        ],
    )
    async def test_an_answer_that_makes_no_sense_ends_the_release(
        self, harness: Harness, job: JobId, results: dict[str, Any]
    ) -> None:
        await ask(harness, job)
        task = await take(harness)
        assert await harness.report(task, "", complete=True, results=results) is Verdict.INVALID
        (release,) = await releases(harness, job)
        assert release.state is ReleaseState.FAILED
        assert "could not be understood" in release.message
        assert await outputs(harness, job) == ()

    async def test_a_name_that_no_index_can_hold_is_left_out(self, harness: Harness, job: JobId) -> None:
        await ask(harness, job)
        long = {**OTHER, "path": "x" * 5000}
        assert await answer(harness, await take(harness), long, TABLE) is Verdict.APPLIED
        assert [output.path for output in await outputs(harness, job)] == ["output/table.csv"]


class TestOtherAgents:
    async def test_an_agent_without_the_files_is_followed_by_another(self, harness: Harness, job: JobId) -> None:
        await declare(harness, "agent-2")
        await ask(harness, job, "output/table.csv")
        task = await take(harness)
        assert await answer(harness, task, unable="absent") is Verdict.APPLIED
        assert (await releases(harness, job))[0].state is ReleaseState.WAITING
        assert await harness.claim(slots=0) == (), "it has said already that it lacks them"
        second = await take(harness, "agent-2")
        assert (second.attempt, second.definition["release"], second.definition["absent"]) == (2, 1, ["agent-1"])
        await answer(harness, second, TABLE, agent="agent-2")
        (release,) = await releases(harness, job)
        assert (release.number, release.state, release.agent) == (1, ReleaseState.DONE, "agent-2")

    async def test_several_of_a_job_may_be_answered_in_one_batch(self, harness: Harness, job: JobId) -> None:
        await declare(harness, "agent-2")
        for path in ("output/table.csv", "output/count.csv"):
            await ask(harness, job, path)
        held = await harness.claim(slots=0)
        said = tuple(
            Report(task_id=task.id, attempt=task.attempt, stage="", complete=True, results=ABSENT) for task in held
        )
        answers = (await harness.engine.report("test", ReportsRequest(agent="agent-1", reports=said))).answers
        assert [answer.verdict for answer in answers] == [Verdict.APPLIED, Verdict.APPLIED]
        asked = await harness.claim(slots=0, agent="agent-2")
        assert [(task.attempt, task.definition["release"], task.definition["paths"]) for task in asked] == [
            (3, 1, ["output/table.csv"]),
            (4, 2, ["output/count.csv"]),
        ]

    @pytest.mark.parametrize("unable", ["absent", "policy", "failed"])
    async def test_with_nobody_else_it_fails_clearly(self, harness: Harness, job: JobId, unable: str) -> None:
        await declare(harness, "closed", Egress())
        await declare(harness, "silent")
        harness.clock.advance(2 * harness.context.lease_seconds)
        await declare(harness)
        await ask(harness, job)
        await answer(harness, await take(harness), unable=unable)
        (release,) = await releases(harness, job)
        assert release.state is ReleaseState.FAILED
        assert release.message
        assert await harness.claim(slots=0) == ()

    async def test_a_silent_agents_release_goes_to_another(self, harness: Harness, job: JobId) -> None:
        await ask(harness, job)
        task = await take(harness)
        harness.clock.advance(harness.context.lease_seconds + 1)
        await declare(harness, "agent-2")
        assert await harness.claim(slots=0, agent="agent-2") == ()
        await harness.engine.take_over("test")
        other = await take(harness, "agent-2")
        assert other.id == task.id
        assert await answer(harness, task, TABLE) is Verdict.STALE
        assert await answer(harness, other, TABLE, agent="agent-2") is Verdict.APPLIED

    @pytest.mark.parametrize("leases", [1.1, -2], ids=["its lease is over", "the clock was set back"])
    async def test_a_forgotten_agents_release_goes_to_another(
        self, harness: Harness, job: JobId, leases: float
    ) -> None:
        operator = principal("test", verbs=frozenset({Verb.READ, Verb.MANAGE}))
        await ask(harness, job)
        task = await take(harness)
        harness.clock.advance(leases * harness.context.lease_seconds)
        forgotten = await harness.engine.forget_agent(operator, "test", "agent-1")
        assert forgotten.stops == 0
        await declare(harness, "agent-2")
        assert (await take(harness, "agent-2")).id == task.id

    async def test_a_restarted_agent_is_offered_what_it_held(self, harness: Harness, job: JobId) -> None:
        await ask(harness, job)
        task = await take(harness)
        assert (await take(harness)).id == task.id
        held = ClaimRequest(agent="agent-1", slots=0, holding=(Held(task_id=task.id, attempt=1),))
        claimed = await harness.engine.claim("test", held)
        assert (claimed.tasks, claimed.revoked) == ((), ())


async def test_agents_show_their_policy_in_words(harness: Harness) -> None:
    await declare(harness)
    await declare(harness, "open", Egress(metrics=True, logs=True, outputs=Named.ALL))
    async with harness.context.db.transaction() as tx:
        await tx.execute(
            "INSERT INTO agent (backend, id, version, executor, slots, egress, last_seen_at)"
            " VALUES ('test', 'strange', '1', 'fake', 1, '{\"outputs\": 5}', now())"
        )
    shown = {agent.id: agent.policy for agent in await harness.engine.agents(REVIEWER)}
    assert shown == {
        "agent-1": "status,+outputs:moderately_sensitive:reviewed",
        "open": "open",
        "strange": "unknown",
    }

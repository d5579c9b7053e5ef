"""Which jobs a request needs (reference sections 4.1, 4.4, 1.3): tables, then random graphs and histories."""

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import job_id
from controller.core.codes import JobState
from controller.core.commands import parse_command
from controller.core.errors import Rejected
from controller.core.model import JobId, RapId, RapRequest, ReusableAction
from controller.core.plan import (
    LatestJob,
    NothingToDo,
    Plan,
    ResolvedAction,
    ReusableUse,
    check_codelists,
    plan,
    with_reusable_actions,
)
from controller.core.project import Project, parse

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RAP = RapId("abcdefghijklmnop")
ALL_DONE = NothingToDo(details="All actions have already completed successfully")
ALL_SCHEDULED = NothingToDo(details="All requested actions were already scheduled to run")


def request(*actions: str, **changes: Any) -> RapRequest:
    made = RapRequest(
        rap_id=RAP,
        dialect="rap",
        backend="test",
        workspace="ws",
        repo_url="https://github.com/opensafely/study",
        branch="main",
        commit="c" * 40,
        database_name="default",
        requested_actions=actions,
        codelists_ok=True,
        force_run_dependencies=False,
        created_by="user",
        project="project",
        orgs=(),
    )
    return attrs.evolve(made, **changes)


def project(version: int = 4, runs: Mapping[str, str] | None = None, **needs: str) -> Project:
    """Actions by name, with their needs as one word; `runs` replaces an action's command."""
    return parse(
        {
            "version": version,
            "actions": {
                name: {
                    "run": (runs or {}).get(name, f"python:v2 {name}"),
                    "needs": wanted.split(),
                    "outputs": {"highly_sensitive": {"x": f"{name}.csv"}},
                }
                for name, wanted in needs.items()
            },
        }
    )


def decide(
    asked: RapRequest, made: Project, history: Mapping[str, str] | None = None, **more: Any
) -> Plan | NothingToDo:
    past = {name: LatestJob(id=JobId(f"old-{name}"), state=JobState(state)) for name, state in (history or {}).items()}
    counter = itertools.count()
    options = {"weight": lambda *_: 1.0} | more
    return plan(asked, made, past, now=NOW, new_traceparent=lambda: f"trace-{next(counter)}", **options)


def planned(
    asked: RapRequest, made: Project, history: Mapping[str, str] | None = None, **more: Any
) -> dict[str, list[str]]:
    """Action -> what it waits for (new jobs by action, old ones as `old-<action>`), in the order of the plan."""
    found = decide(asked, made, history, **more)
    assert isinstance(found, Plan)
    names = {job.spec.id: job.spec.action for job in found.jobs}
    assert [job.spec.position for job in found.jobs] == list(range(len(found.jobs)))
    return {job.spec.action: [names.get(w, w) for w in job.wait_for] for job in found.jobs}


CHAIN = project(a="", b="a", c="b")
DIAMOND = project(d="b c", b="a", c="a", a="")


@pytest.mark.parametrize(
    ("asked", "history", "jobs"),
    [
        (["c"], {}, {"a": [], "b": ["a"], "c": ["b"]}),
        (["c"], {"b": "succeeded"}, {"c": []}),
        (["c"], {"a": "succeeded", "b": "succeeded", "c": "succeeded"}, {"c": []}),
        (["c"], {"b": "failed"}, {"a": [], "b": ["a"], "c": ["b"]}),
        (["c"], {"a": "succeeded", "b": "failed"}, {"b": [], "c": ["b"]}),
        (["c"], {"b": "running"}, {"c": ["old-b"]}),
        (["c"], {"b": "pending"}, {"c": ["old-b"]}),
        (["c"], {"a": "running"}, {"b": ["old-a"], "c": ["b"]}),
        (["b", "c"], {"b": "succeeded"}, {"a": [], "b": ["a"], "c": ["b"]}),
        (["c", "b"], {"a": "succeeded", "b": "pending"}, {"c": ["old-b"]}),
        (["c", "c"], {"b": "succeeded"}, {"c": []}),
        (["c"], {"c": "failed", "b": "succeeded"}, {"c": []}),
        (["c"], {"b": "succeeded", "gone": "running"}, {"c": []}),
        (["run_all"], {}, {"a": [], "b": ["a"], "c": ["b"]}),
        (["run_all"], {"a": "succeeded", "b": "failed"}, {"b": [], "c": ["b"]}),
        (["run_all"], {"a": "succeeded", "b": "succeeded"}, {"c": []}),
        (["run_all", "nonsense"], {"a": "succeeded", "b": "running"}, {"c": ["old-b"]}),
        (["run_all", "b"], {"a": "succeeded", "b": "succeeded", "c": "succeeded"}, {"b": []}),
    ],
)
def test_what_runs_and_waits(asked: list[str], history: dict[str, str], jobs: dict[str, list[str]]) -> None:
    found = planned(request(*asked), CHAIN, history)
    assert found == jobs
    assert list(found) == list(jobs)


def test_force_reruns_dependencies_but_not_active_ones() -> None:
    asked = request("c", force_run_dependencies=True)
    done = dict.fromkeys("abc", "succeeded")
    assert planned(asked, CHAIN, done) == {"a": [], "b": ["a"], "c": ["b"]}
    assert planned(asked, CHAIN, done | {"a": "running"}) == {"b": ["old-a"], "c": ["b"]}


def test_dependencies_come_first_in_the_order_of_needs() -> None:
    assert list(planned(request("d"), DIAMOND)) == ["a", "b", "c", "d"]
    assert list(planned(request("run_all"), DIAMOND)) == ["a", "b", "c", "d"]
    assert planned(request("d"), DIAMOND)["d"] == ["b", "c"]


def test_repeated_needs_are_awaited_once() -> None:
    found = decide(request("b"), project(a="", b="a a"))
    assert isinstance(found, Plan)
    assert found.jobs[1].spec.needs == ("a",)
    assert found.jobs[1].wait_for == (found.jobs[0].spec.id,)


@pytest.mark.parametrize(
    ("asked", "history", "answer"),
    [
        (["run_all"], dict.fromkeys("abc", "succeeded"), ALL_DONE),
        (["run_all"], dict.fromkeys("abc", "pending"), ALL_DONE),
        (["run_all", "a"], dict.fromkeys("abc", "running"), ALL_DONE),
        (["a", "b"], dict.fromkeys("ab", "pending"), ALL_SCHEDULED),
        (["a"], {"a": "running"}, ALL_SCHEDULED),
    ],
)
def test_nothing_to_do(asked: list[str], history: dict[str, str], answer: NothingToDo) -> None:
    assert decide(request(*asked), CHAIN, history) == answer


def test_an_action_named_run_all_is_ignored_by_run_all_unless_needed() -> None:
    assert list(planned(request("run_all"), project(run_all="a", a=""))) == ["a"]
    assert list(planned(request("run_all"), project(run_all="a", a="", b="run_all"))) == ["a", "run_all", "b"]


def test_an_unknown_action() -> None:
    with pytest.raises(Rejected) as caught:
        decide(request("a", "x"), CHAIN)
    assert str(caught.value) == "Action 'x' not found in project.yaml"


def test_everything_a_job_is() -> None:
    made = project(runs={"a": "ehrql:v1 generate-dataset d.py --output a.csv", "b": "python:v2 b.py"}, a="", b="a")
    found = decide(
        request("b", analysis_scope={"dataset_permissions": ["z", "b"]}, project="echo"),
        made,
        weight=lambda workspace, action, run_command: len(workspace + action + run_command),
        event_level_projects=["echo"],
    )
    assert isinstance(found, Plan)
    a, b = (job.spec for job in found.jobs)
    assert (a.id, b.id) == (job_id(RAP, "a"), job_id(RAP, "b"))
    assert (a.requires_db, a.database_name) == (True, "default")
    assert a.analysis_scope == {"dataset_permissions": ("b", "z"), "component_access": ("event_level_data",)}
    assert (b.requires_db, b.database_name, b.analysis_scope) == (False, None, {})
    assert (a.traceparent, b.traceparent) == ("trace-0", "trace-1")
    assert (b.created_at, b.needs, b.repo_url) == (NOW, ("a",), "https://github.com/opensafely/study")
    assert (b.backend, b.workspace, b.commit, b.branch) == ("test", "ws", "c" * 40, "main")
    assert b.output_spec == {"highly_sensitive": {"x": "b.csv"}}
    assert (b.run_command, b.weight) == ("python:v2 b.py", len("wsb" + "python:v2 b.py"))


def test_stale_codelists_stop_new_database_jobs_only() -> None:
    made = project(runs={"db": "sqlrunner:v1 q.sql"}, a="", db="a", c="db")
    stale = request("c", codelists_ok=False)

    def check(asked: RapRequest, history: dict[str, str]) -> None:
        found = decide(asked, made, history)
        assert isinstance(found, Plan)
        check_codelists(found, asked)

    with pytest.raises(Rejected) as caught:
        check(stale, {})
    assert str(caught.value) == "Codelists are out of date (required by action db)"
    check(stale, {"db": "succeeded"})
    check(stale, {"db": "running"})
    check(request("a", codelists_ok=False), {})
    check(request("c"), {})


def test_reusable_actions_are_looked_up_once_and_replace_the_command() -> None:
    made = project(
        runs={"a": "report:v1 one 'two words'", "b": "report:v1 three", "c": "other:v2", "d": "python:v2 x"},
        a="", b="", c="", d="",
    )  # fmt: skip
    found = decide(request("run_all"), made, weight=lambda _w, _a, run_command: len(run_command))
    assert isinstance(found, Plan)
    assert found.reusable == (
        ReusableUse(action="a", image_name="report", image_version="v1"),
        ReusableUse(action="c", image_name="other", image_version="v2"),
    )
    source = ReusableAction(repo_url="https://github.com/opensafely-actions/report", commit="d" * 40)
    resolved = {
        use.image: ResolvedAction(source=source, command=parse_command("python:v3 python 'my action.py'"))
        for use in found.reusable
    }
    after = with_reusable_actions(found, resolved)
    assert [job.spec.run_command for job in after.jobs] == [
        "python:v3 python 'my action.py' one 'two words'",
        "python:v3 python 'my action.py' three",
        "python:v3 python 'my action.py'",
        "python:v2 x",
    ]
    assert [job.spec.reusable_action for job in after.jobs] == [source, source, source, None]
    assert [job.spec.weight for job in after.jobs] == [len(job.spec.run_command) for job in after.jobs]
    assert after.jobs[0].command.args == ("python", "my action.py", "one", "two words")
    assert after.reusable == ()
    assert with_reusable_actions(after, {}) == after


def test_a_chain_of_five_thousand() -> None:
    made = project(**{f"a{i}": f"a{i + 1}" for i in range(5000)}, a5000="")
    found = planned(request("a0"), made)
    assert next(iter(found)) == "a5000"
    assert len(found) == 5001


NAMES = [f"n{i}" for i in range(8)]
STATES = [None, *(state.value for state in JobState)]


@st.composite
def situations(draw: st.DrawFn) -> tuple[Project, dict[str, str], RapRequest]:
    """A project without cycles (needs point to earlier names, the file is shuffled), a past, a request."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    needs = {
        name: " ".join(draw(st.lists(st.sampled_from(names[:place]), max_size=3))) if place else ""
        for place, name in enumerate(names)
    }
    order = draw(st.permutations(names))
    history = {name: state for name in names if (state := draw(st.sampled_from(STATES))) is not None}
    asked = draw(st.lists(st.sampled_from([*names, "run_all"]), min_size=1, max_size=4))
    force = draw(st.booleans())
    return (
        project(**{name: needs[name] for name in order}),
        history,
        request(*asked, force_run_dependencies=force),
    )


@given(situations())
def test_invariants_of_every_plan(situation: tuple[Project, dict[str, str], RapRequest]) -> None:
    made, history, asked = situation
    found = decide(asked, made, history)
    assert found == decide(asked, made, history), "a plan is a function of its input"
    jobs = found.jobs if isinstance(found, Plan) else ()
    new = {job.spec.action: job for job in jobs}
    assert len(new) == len(jobs)
    for place, job in enumerate(jobs):
        spec = job.spec
        assert spec.id == job_id(RAP, spec.action)
        assert history.get(spec.action) not in ("pending", "running"), "never a second active job"
        expected = set()
        for need in made.actions[spec.action].needs:
            if need in new:
                assert new[need].spec.position < place
                expected.add(new[need].spec.id)
            elif history[need] in ("pending", "running"):
                expected.add(JobId(f"old-{need}"))
            else:
                assert history[need] == "succeeded"
        assert set(job.wait_for) == expected
    names = made.actions if "run_all" in asked.requested_actions else asked.requested_actions
    for name in names:
        active = history.get(name) in ("pending", "running")
        assert (name in new) == (not active and (name in asked.requested_actions
            or asked.force_run_dependencies or history.get(name) != "succeeded")), name  # fmt: skip
    if isinstance(found, NothingToDo):
        assert found == (ALL_DONE if "run_all" in asked.requested_actions else ALL_SCHEDULED)


@given(situations())
def test_repeating_a_request_whose_jobs_are_all_active_does_nothing(
    situation: tuple[Project, dict[str, str], RapRequest],
) -> None:
    made, history, asked = situation
    found = decide(asked, made, history)
    if isinstance(found, Plan):
        history = history | {job.spec.action: "pending" for job in found.jobs}
        assert isinstance(decide(asked, made, history), NothingToDo)


@given(situations())
def test_only_what_is_asked_for_or_needed_runs(situation: tuple[Project, dict[str, str], RapRequest]) -> None:
    made, history, asked = situation
    found = decide(asked, made, history)
    jobs = found.jobs if isinstance(found, Plan) else ()
    wanted = set(made.actions if "run_all" in asked.requested_actions else asked.requested_actions)
    for job in reversed(jobs):
        assert job.spec.action in wanted
        wanted |= set(job.spec.needs)

"""Releases: what the agents' answers come to, in states and sentences."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.releases import choose, compose_results, unable_results
from common.protocol import OPEN, Egress, Named, Unable
from controller.core.releases import (
    Asked,
    ReleaseState,
    SenselessAnswer,
    fault,
    may_ask_another,
    read_answer,
    released_of,
    summarise,
    wants_review,
    words,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
OUTPUT = {"path": "a.csv", "level": "moderately_sensitive", "size": 1, "sha256": "s"}


def asked(attempt: int = 1, **changes: Any) -> Asked:
    values: dict[str, Any] = {
        "task_id": f"j-release-{attempt:03}",
        "attempt": attempt,
        "release": attempt,
        "by": "token carol",
        "paths": None,
        "absent": (),
        "agent": "a",
        "active": False,
        "results": {"released": [OUTPUT]},
        "created_at": T0,
        "finished_at": T0,
    }
    return Asked(**values | changes)


@pytest.mark.parametrize(
    ("egress", "told", "review"),
    [
        ({}, "unknown", False),
        ({"metrics": False}, "status", False),
        ({"metrics": True}, "status,+metrics", False),
        ({"outputs": "moderately_sensitive", "reviewed": True}, "status,+outputs:moderately_sensitive:reviewed", True),
        ({"outputs": "minimally_sensitive"}, "status,+outputs:minimally_sensitive", False),
        ({"outputs": "none", "reviewed": True}, "status", False),
        ({"reviewed": True}, "status", False),
        ({"metrics": True, "logs": True, "outputs": "all"}, "open", False),
        ({"logs": True, "outputs": "all", "reviewed": True}, "status,+logs,+outputs:all:reviewed", True),
        ({"outputs": True}, "unknown", False),
    ],
)
def test_policies_as_their_operators_write_them(egress: dict[str, Any], told: str, review: bool) -> None:
    assert words(egress) == told
    assert wants_review(egress) is review


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ({"released": []}, "0 outputs are released."),
        ({"released": [OUTPUT]}, "1 output is released."),
        (
            {"released": [], "withheld": 2, "left_out": 3},
            "0 outputs are released. 2 more stay inside: not as the job left them (the agent's log names them)."
            " There are 3 more than one answer can hold: ask again.",
        ),
    ],
)
def test_what_an_agent_let_out_is_told_in_a_sentence(results: dict[str, Any], sentence: str) -> None:
    (release,) = summarise([asked(results=results)])
    assert (release.state, release.message) == (ReleaseState.DONE, sentence)


@pytest.mark.parametrize("count", [1, 2])
def test_refused_paths_are_told_if_they_were_named(count: int) -> None:
    paths = ("a.csv", "b.csv")[:count]
    refused = [{"path": path, "reason": "changed"} for path in paths]
    results = {"released": [], "refused": refused}
    (release,) = summarise([asked(paths=paths, results=results)])
    assert [each.path for each in release.refused] == list(paths)
    assert release.message.endswith(f"{count} {'was' if count == 1 else 'were'} refused.")
    (unnamed,) = summarise([asked(results=results)])
    assert unnamed.refused == ()


def test_a_release_is_as_far_as_its_last_question() -> None:
    first = asked(results={"released": [], "unable": "absent"})
    second = asked(2, release=1, agent=None, active=True, results={}, finished_at=None)
    assert [each.state for each in summarise([first])] == [ReleaseState.FAILED]
    (waiting,) = summarise([first, second])
    assert (waiting.number, waiting.state, waiting.message) == (
        1,
        ReleaseState.WAITING,
        "Waiting for an agent of the backend.",
    )
    (taken,) = summarise([first, asked(2, release=1, agent="b", active=True, results={})])
    assert taken.message == "Agent b looks at the files."
    done, other = summarise([first, asked(3), asked(4, release=1)])
    assert (done.number, done.state, other.number) == (1, ReleaseState.DONE, 3)


@pytest.mark.parametrize("unable", list(Unable))
def test_an_agent_that_cannot_look_is_followed_by_another_if_that_can_help(unable: Unable) -> None:
    answer = read_answer({"released": [], "unable": unable.value})
    assert may_ask_another(answer) is (unable is not Unable.FAILED)
    (release,) = summarise([asked(results={"released": [], "unable": unable.value})])
    assert release.state is ReleaseState.FAILED
    assert release.released == ()


@given(
    st.dictionaries(
        st.sampled_from(["released", "refused", "withheld", "left_out", "unable", "error"]),
        st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda each: st.lists(each, max_size=3)),
    )
)
def test_any_answer_is_understood_or_refused(results: dict[str, Any]) -> None:
    wrong = fault(results)
    (release,) = summarise([asked(results=results)])
    if wrong is None:
        assert (release.state is ReleaseState.DONE) is (read_answer(results).unable is None)
    else:
        assert release.state is ReleaseState.FAILED
        with pytest.raises(SenselessAnswer):
            read_answer(results)


@pytest.mark.parametrize("wrong", [{"withheld": -1}, {"left_out": 2**63}, {"released": [{**OUTPUT, "size": -1}]}])
def test_numbers_that_count_nothing_are_refused(wrong: dict[str, Any]) -> None:
    assert fault({"released": []} | wrong) == "the results of a release have a number that no size or count can be"


OUTPUTS = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.text(max_size=4),
            "level": st.sampled_from(["minimally_sensitive", "moderately_sensitive", "highly_sensitive"]),
            "size": st.integers(0, 2**62),
            "sha256": st.just("s"),
            "excluded": st.booleans(),
            "message": st.just("why"),
        }
    ),
    max_size=6,
)


@given(outputs=OUTPUTS, paths=st.none() | st.lists(st.text(max_size=4), min_size=1, max_size=6), data=st.data())
def test_what_our_agents_answer_is_what_the_controller_understands(
    outputs: list[dict[str, Any]], paths: list[str] | None, data: st.DataObject
) -> None:
    """And nothing leaves but what is permitted and asked for; of the rest only names that the task has named."""
    egress = Egress(outputs=data.draw(st.sampled_from([Named.MINIMALLY_SENSITIVE, Named.MODERATELY_SENSITIVE])))
    choice = choose(egress, outputs, paths)
    changed = [each for each in choice.outputs if data.draw(st.booleans())]
    released = [each for each in choice.outputs if each not in changed]
    answer = read_answer(compose_results(choice, released, changed, named=paths is not None))
    assert answer.unable is None
    assert answer.left_out == 0
    assert len(answer.released) == len(released)
    for output in answer.released:
        assert paths is None or output.path in paths
        assert output.level != "highly_sensitive"
        assert egress.outputs is Named.MODERATELY_SENSITIVE or output.level == "minimally_sensitive"
    assert {each.path for each in answer.refused} <= set(paths or ())
    assert (answer.withheld > 0) is (paths is None and bool(changed))
    told = asked(paths=None if paths is None else tuple(paths))
    assert released_of(told, answer) == answer.released


def test_an_excluded_output_is_never_chosen_and_an_open_policy_has_no_review() -> None:
    excluded = {**OUTPUT, "excluded": True, "message": "patient_id"}
    assert choose(Egress(outputs=Named.MODERATELY_SENSITIVE), [excluded], None).outputs == ()
    assert not OPEN.reviewed
    assert read_answer(unable_results(Unable.POLICY)).unable is Unable.POLICY

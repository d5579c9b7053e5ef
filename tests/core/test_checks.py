"""When a database is asked for its state: intervals, suppression, and checks that nobody works on (section 3.7)."""

from datetime import timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.checks import (
    INTERVALS,
    Decision,
    Round,
    Situation,
    answer,
    decide,
    definitions,
    fault,
)
from controller.core.model import TaskId, TaskType
from controller.core.modes import Modes
from tests.factories import NOW

STATUS, DATA = TaskType.DBSTATUS, TaskType.DBDATACHECK
ACTIVE = Round(active=TaskId("t"))


def situation(**changes: object) -> Situation:
    values: dict[str, object] = {"now": NOW, "enabled": frozenset(INTERVALS), "modes": Modes()}
    return Situation(**values | changes)  # type: ignore[arg-type]  # the test names fields


def ago(seconds: float) -> Round:
    return Round(finished_at=NOW - timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("kind", "round_", "issued", "next_in"),
    [
        (STATUS, Round(), True, None),
        (STATUS, ago(299), False, 1),
        (STATUS, ago(300), True, None),
        (STATUS, ACTIVE, False, None),
        (STATUS, attrs.evolve(ago(400), active=TaskId("t")), False, None),
        (DATA, Round(), True, None),
        (DATA, ago(24 * 3600 - 1), False, 1),
        (DATA, ago(24 * 3600), True, None),
        (DATA, ago(-5), False, 24 * 3600 + 5),
    ],
)
def test_intervals(kind: TaskType, round_: Round, issued: bool, next_in: float | None) -> None:
    decision = decide(situation(enabled={kind}, rounds={kind: round_}))
    assert decision.issue == ((kind,) if issued else ())
    assert decision.next_at == (None if next_in is None else NOW + timedelta(seconds=next_in))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {STATUS, DATA}),
        ({"modes": Modes(manual=True)}, {STATUS, DATA}),
        ({"modes": Modes(checks_disabled=True)}, {STATUS, DATA}),
        ({"modes": Modes(manual=True, checks_disabled=True)}, {DATA}),
        ({"modes": Modes(db_maintenance=True)}, {STATUS}),
        ({"modes": Modes(db_maintenance=True, manual=True)}, {STATUS}),
        ({"modes": Modes(db_maintenance=True, manual=True, checks_disabled=True)}, set()),
        ({"enabled": {DATA}}, {DATA}),
        ({"enabled": set()}, set()),
    ],
)
def test_suppression(changes: dict[str, object], wanted: set[TaskType]) -> None:
    assert set(decide(situation(**changes)).issue) == wanted
    active = {kind: Round(active=TaskId(kind.value)) for kind in INTERVALS}
    decision = decide(situation(**changes, rounds=active))
    assert decision.issue == ()
    assert set(decision.void) == {kind.value for kind in INTERVALS} - {kind.value for kind in wanted}


def test_a_check_whose_agent_fell_silent_is_anybodys() -> None:
    held = {STATUS: Round(active=TaskId("t"), held_until=NOW)}
    assert decide(situation(enabled={STATUS}, rounds=held)) == Decision(hand_over=(TaskId("t"),))
    later = {STATUS: Round(active=TaskId("t"), held_until=NOW + timedelta(seconds=1))}
    assert decide(situation(enabled={STATUS}, rounds=later)) == Decision(next_at=NOW + timedelta(seconds=1))


rounds = st.builds(
    Round,
    active=st.none() | st.just(TaskId("t")),
    held_until=st.none() | st.timedeltas(timedelta(-1), timedelta(1)).map(lambda delta: NOW + delta),
    finished_at=st.none() | st.timedeltas(timedelta(-3), timedelta(1)).map(lambda delta: NOW + delta),
)
situations = st.builds(
    Situation,
    now=st.just(NOW),
    enabled=st.frozensets(st.sampled_from(list(INTERVALS))),
    modes=st.builds(Modes, manual=st.booleans(), checks_disabled=st.booleans(), db_maintenance=st.booleans()),
    rounds=st.dictionaries(st.sampled_from(list(INTERVALS)), rounds),
)


def carried_out(before: Situation, decision: Decision) -> Situation:
    """The same moment after the decision."""
    after = dict(before.rounds)
    for kind, one in before.rounds.items():
        if one.active in decision.void and one.active is not None:
            assert kind not in decision.issue
            if not wanted(before, kind):
                after[kind] = Round(finished_at=before.now)
        if one.active in decision.hand_over and wanted(before, kind):
            after[kind] = attrs.evolve(one, held_until=None)
    for kind in decision.issue:
        after[kind] = attrs.evolve(after.get(kind, Round()), active=TaskId("new"), held_until=None)
    return attrs.evolve(before, rounds=after)


def wanted(one: Situation, kind: TaskType) -> bool:
    modes = one.modes
    suppressed = modes.db_maintenance if kind is DATA else modes.manual and modes.checks_disabled
    return kind in one.enabled and not suppressed


@given(situations)
def test_a_decision_holds(before: Situation) -> None:
    decision = decide(before)
    for kind in decision.issue:
        one = before.rounds.get(kind, Round())
        assert wanted(before, kind)
        assert one.active is None
        assert one.finished_at is None or one.finished_at + INTERVALS[kind] <= NOW
    assert decision.next_at is None or decision.next_at > NOW
    again = decide(carried_out(before, decision))
    assert (again.issue, again.void, again.hand_over) == ((), (), ())


@given(situations)
def test_nothing_changes_before_the_next_look(before: Situation) -> None:
    after = carried_out(before, decide(before))
    look = decide(after).next_at
    if look is None:
        later = attrs.evolve(after, now=NOW + timedelta(days=100))
        assert decide(later).issue == decide(later).hand_over == ()
        return
    just_before = decide(attrs.evolve(after, now=look - timedelta(microseconds=1)))
    assert just_before.issue == just_before.hand_over == ()
    then = decide(attrs.evolve(after, now=look))
    assert then.issue or then.hand_over


def test_definitions_are_key_for_key_those_of_upstream() -> None:
    image = {"image": "ghcr.io/opensafely-core/tpp-database-utils:latest", "image_sha": None}
    assert definitions("ghcr.io/opensafely-core", status=True, expected_month="202304") == {
        STATUS: {"database_name": "default", **image},
        DATA: {"hes_expected_activity_month": "202304", **image},
    }
    assert definitions("r", status=False, expected_month=None) == {}


@pytest.mark.parametrize(
    ("kind", "status", "believed"),
    [
        (STATUS, "", True),
        (STATUS, "db-maintenance", True),
        (STATUS, "db-maintenance;2", True),
        (STATUS, "none;0", True),
        (STATUS, "none;3", False),
        (STATUS, "OK", False),
        (DATA, "OK", True),
        (DATA, "FAILED", True),
        (DATA, "", False),
        (DATA, "secret-value", False),
        (TaskType.CANCELJOB, "anything", True),
    ],
)
def test_allowed_answers(kind: TaskType, status: str, believed: bool) -> None:
    said = fault(kind, {"results": {"status": status}, "error": None})
    assert (said is None) is believed
    assert said is None or not status or status not in said


@pytest.mark.parametrize("results", [{}, {"results": None}, {"results": []}, {"results": {"status": 5}}])
def test_no_answer_is_no_fault(results: dict[str, object]) -> None:
    assert answer(results) is None
    assert fault(STATUS, results) is None

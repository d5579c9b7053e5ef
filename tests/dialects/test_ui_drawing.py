"""Graph, timeline, turns and words of the dashboard: what they say of jobs, whatever they are called."""

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from controller.core.codes import JobState, StatusCode
from controller.core.model import Job, JobId
from controller.dialects.ui import graph, plot, raps, timeline, turns, words
from controller.engine.results import AgentView, BackendView, HistoryEntry, JobDetail
from tests.factories import NOW, job, later

BACKEND = BackendView(
    slug="test",
    last_seen=NOW,
    paused=False,
    paused_since=None,
    db_maintenance=False,
    db_maintenance_since=None,
    db_maintenance_type=None,
)


def agent(**changes: Any) -> AgentView:
    values = {"id": "node-1", "backend": "test", "version": "1", "executor": "fake", "slots": 2, "last_seen": NOW}
    return AgentView(**values | changes)


def around(*siblings: Job, **changes: Any) -> turns.Surroundings:
    values: dict[str, Any] = {
        "siblings": {each.spec.action: each for each in siblings},
        "backend": BACKEND,
        "agents": [agent()],
        "holder": None,
    }
    return turns.Surroundings(**values | changes)


def entry(code: StatusCode, seconds: float, attempt: int = 0) -> HistoryEntry:
    return HistoryEntry(at=later(seconds), attempt=attempt, state=code.state, code=code, message="")


@st.composite
def graphs(draw: Any) -> dict[str, list[str]]:
    names = [f"a{number}" for number in range(draw(st.integers(1, 12)))]
    return {
        name: draw(st.lists(st.sampled_from([*names[:place], "elsewhere"]), max_size=4, unique=True))
        for place, name in enumerate(names)
    }


@given(needs=graphs())
def test_every_action_has_a_place_of_its_own_and_dependants_stand_to_the_right(needs: dict[str, list[str]]) -> None:
    drawing = graph.draw(needs)
    assert drawing is not None
    boxes = {box.name: box for box in drawing.boxes}
    assert set(boxes) == set(needs)
    for box in drawing.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= drawing.width
        assert box.y + box.height <= drawing.height
    for name, needed in needs.items():
        assert all(boxes[need].x + boxes[need].width < boxes[name].x for need in needed if need in boxes)
    placed = list(boxes.values())
    for place, one in enumerate(placed):
        for other in placed[place + 1 :]:
            apart = abs(one.x - other.x) >= one.width or abs(one.y - other.y) >= one.height
            assert apart, (one, other)
    assert len(drawing.lines) == sum(need in needs for needed in needs.values() for need in needed)


def test_what_nobody_could_see_is_not_drawn() -> None:
    assert graph.draw({}) is None
    assert graph.draw({f"a{number}": [] for number in range(graph.MOST + 1)}) is None


def test_a_long_name_is_cut() -> None:
    drawing = graph.draw({"x" * 500: []})
    assert drawing is not None
    assert drawing.boxes[0].label.endswith("…")
    assert drawing.width < 400


@pytest.mark.parametrize("code", StatusCode)
def test_every_code_has_words_and_a_turn_unless_it_is_over(code: StatusCode) -> None:
    turn = turns.of_job(job(code), around())
    assert words.CODES[code]
    assert turn.sentence.endswith(".")
    if not code.state.is_terminal:
        assert turn.whose


@pytest.mark.parametrize(
    ("code", "changes", "said"),
    [
        (StatusCode.INITIATED, {"agents": []}, "No agent of the backend is there"),
        (StatusCode.INITIATED, {}, "waits for an agent"),
        (StatusCode.EXECUTING, {"holder": "node-1"}, "runs on agent node-1"),
        (StatusCode.EXECUTING, {"holder": "node-1", "agents": [agent(silent=True)]}, "has not been heard of"),
        (StatusCode.WAITING_DB_MAINTENANCE, {}, "is being maintained"),
        (StatusCode.WAITING_ON_DEPENDENCIES, {}, "starts it in a moment"),
    ],
)
def test_turns_look_around(code: StatusCode, changes: dict[str, Any], said: str) -> None:
    assert said in turns.of_job(job(code), around(**changes)).sentence


def test_a_waiting_job_names_what_it_waits_for() -> None:
    running = job(StatusCode.EXECUTING, action="extract")
    waiting = job(StatusCode.WAITING_ON_WORKERS, action="count")
    done = job(StatusCode.SUCCEEDED, action="clean")
    report = job(StatusCode.WAITING_ON_DEPENDENCIES, action="report", needs=("extract", "count", "clean"))
    sentence = turns.of_job(report, around(running, waiting, done, report)).sentence
    assert sentence == "It waits for extract to finish and for count, which waits as well."
    failed = job(StatusCode.NONZERO_EXIT, action="extract")
    doomed = job(StatusCode.DEPENDENCY_FAILED, action="report", needs=("extract",))
    assert turns.of_job(doomed, around(failed)).sentence == "It was not started, because extract failed."


def detail(value: Job, *history: HistoryEntry) -> JobDetail:
    return JobDetail(job=value, outputs=(), history=history)


def test_bars_show_when_a_job_waited_and_ran() -> None:
    done = job(StatusCode.SUCCEEDED)
    done = evolve(done, progress=evolve(done.progress, started_at=later(6), completed_at=later(10)))
    line = timeline.of_jobs(
        [
            detail(
                done,
                entry(StatusCode.CREATED, 0),
                entry(StatusCode.WAITING_ON_DEPENDENCIES, 0),
                entry(StatusCode.WAITING_ON_WORKERS, 4),
                entry(StatusCode.INITIATED, 6, 1),
                entry(StatusCode.EXECUTING, 7, 1),
                entry(StatusCode.SUCCEEDED, 10, 1),
            )
        ],
        later(100),
        dict(words.CODES),
    )
    assert line is not None
    assert line.seconds == 10
    (bar,) = line.bars
    assert [(piece.kind, piece.start, piece.length) for piece in bar.pieces] == [
        ("needs", 0, 400),
        ("wait", 400, 200),
        ("run", 600, 400),
    ]
    assert (bar.waited, bar.ran) == (6, 4)
    assert timeline.of_jobs([], NOW, dict(words.CODES)) is None


def test_clocks_that_disagree_make_no_bar_stick_out() -> None:
    value = job(StatusCode.EXECUTING)
    line = timeline.of_jobs(
        [detail(value, entry(StatusCode.CREATED, 50), entry(StatusCode.EXECUTING, -20, 1))], NOW, dict(words.CODES)
    )
    assert line is not None
    for piece in line.bars[0].pieces:
        assert piece.start >= 0
        assert piece.length >= 0
        assert piece.start + piece.length <= timeline.SCALE


COUNT = job(StatusCode.EXECUTING, action="count")


def line(code: StatusCode, action: str, **changes: Any) -> raps.JobLine:
    value = job(code, action=action, id=JobId(action.ljust(16, "a")), **changes)
    made = timeline.of_jobs([detail(value)], later(5), dict(words.CODES))
    assert made is not None
    return raps.JobLine(
        detail=detail(value), turn=turns.of_job(value, around(COUNT, holder="node-1")), bar=made.bars[0]
    )


def test_a_rap_says_why_it_is_not_done_and_whose_turn_it_is() -> None:
    lines = [
        line(StatusCode.SUCCEEDED, "extract"),
        line(StatusCode.EXECUTING, "count"),
        line(StatusCode.WAITING_PAUSED, "model"),
        line(StatusCode.NONZERO_EXIT, "check"),
        line(StatusCode.WAITING_ON_DEPENDENCIES, "report", needs=("count",)),
    ]
    answer = raps.answer(lines, later(5))
    assert answer.sentences == (
        "1 of 5 jobs succeeded.",
        "check failed.",
        "count is at work.",
        "model: backend test is paused; it starts once that is over.",
        "1 job needs what these make.",
    )
    assert answer.whose == ("Agent node-1", "An operator")


def test_a_rap_that_ended_says_how() -> None:
    good = raps.answer([line(StatusCode.SUCCEEDED, "a"), line(StatusCode.SUCCEEDED, "b")], later(90))
    assert good == raps.Answer(sentences=("It ended 1 min ago, and all 2 jobs succeeded.",))
    bad = raps.answer([line(StatusCode.NONZERO_EXIT, "a"), line(StatusCode.DEPENDENCY_FAILED, "b")], later(90))
    assert bad.sentences == ("It ended 1 min ago; 2 of 2 jobs did not succeed.", "a failed, and with it 1 job.")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42, "42 s"),
        (65, "1 min 05 s"),
        (3725, "1 h 02 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-9, "just now"), (30, "30 s ago"), (90, "1 min ago"), (7200, "2 h ago"), (200_000, "2 d ago")],
)
def test_ages(seconds: float, said: str) -> None:
    assert words.ago(NOW, NOW + timedelta(seconds=seconds)) == said


def test_names_are_told_up_to_a_point() -> None:
    assert words.names(["a"]) == "a"
    assert words.names(["a", "b"]) == "a and b"
    assert words.names(["a", "b", "c", "d", "e"]) == "a, b and 3 more"


def test_control_characters_are_spelt_out() -> None:
    assert words.plain("a\x1b[31m\u202eb\n") == "a\\x1b[31m\\u202eb\n"


def test_every_state_has_a_word() -> None:
    assert set(words.STATES) == set(JobState)


def test_a_plot_is_a_line_through_what_is_known() -> None:
    made = plot.draw([(later(0), 0.0), (later(5), None), (later(10), 50.0)], None)
    assert made is not None
    assert made.line == f"M0.0 80.0L600.0 {80 * (1 - 1 / 1.08):.1f}"
    assert (made.seconds, made.limit) == (10, None)
    near = plot.draw([(later(0), 60.0), (later(10), 60.0)], 100.0)
    assert near is not None
    assert near.top == pytest.approx(108)
    assert near.limit == pytest.approx(80 * (1 - 100 / 108))


@pytest.mark.parametrize(
    "values",
    [[], [(NOW, 1.0)], [(NOW, None)] * 5, [(NOW, 0.0), (later(5), 0.0)], [(later(5), 1.0), (NOW, 2.0)]],
)
def test_what_is_no_line_is_not_drawn(values: Any) -> None:
    assert plot.draw(values, None) is None

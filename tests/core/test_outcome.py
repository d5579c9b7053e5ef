"""What final reports mean: sections 2.5, 3.2 and 3.3, edge behaviours 15 and 16."""

import attrs
import pytest

from controller.core.codes import StatusCode
from controller.core.machine import Event, Failed, Faulted, Progressed, Succeeded
from controller.core.outcome import LONGEST_MESSAGE, SenselessReport, agent_time, conclusion, progress
from controller.core.retry import DEFAULT
from tests.factories import job

RUNNING = job(StatusCode.EXECUTING)
DATABASE = job(StatusCode.EXECUTING, requires_db=True)
OK = {"error": False, "exit_code": "0"}


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (OK, Succeeded()),
        (OK | {"exit_code": 0}, Succeeded()),
        (OK | {"error": None}, Succeeded()),
        (
            OK | {"has_level4_excluded_files": True},
            Succeeded(
                message="Completed successfully, but some file(s) marked as moderately_sensitive were excluded. "
                "See job log for details."
            ),
        ),
        (OK | {"has_unmatched_patterns": True}, Failed(code=StatusCode.UNMATCHED_PATTERNS)),
        (
            OK | {"exit_code": "1", "has_unmatched_patterns": True},
            Failed(code=StatusCode.NONZERO_EXIT, message="Job exited with an error"),
        ),
        (
            OK | {"exit_code": "137", "status_message": "Job ran out of memory"},
            Failed(code=StatusCode.NONZERO_EXIT, message="Job exited with an error: Job ran out of memory"),
        ),
        (OK | {"exit_code": "None"}, Failed(code=StatusCode.NONZERO_EXIT, message="Job exited with an error")),
        (OK | {"exit_code": None}, Failed(code=StatusCode.NONZERO_EXIT, message="Job exited with an error")),
        (OK | {"exit_code": True}, Failed(code=StatusCode.NONZERO_EXIT, message="Job exited with an error")),
    ],
)
def test_conclusions(results: dict[str, object], expected: Event) -> None:
    assert conclusion(RUNNING, results, None) == expected


def test_database_jobs_get_a_text_for_their_exit_code_unless_the_agent_gave_one() -> None:
    transient = conclusion(DATABASE, OK | {"exit_code": "3"}, None)
    assert isinstance(transient, Failed)
    assert transient.message.startswith("Job exited with an error: The database had a transient error")
    said = conclusion(DATABASE, OK | {"exit_code": "3", "status_message": "Told so"}, None)
    assert isinstance(said, Failed)
    assert said.message == "Job exited with an error: Told so"
    plain = conclusion(RUNNING, OK | {"exit_code": "3"}, None)
    assert isinstance(plain, Failed)
    assert plain.message == "Job exited with an error"


def test_an_agents_error_is_tried_again_until_the_attempts_are_used_up() -> None:
    results = {"error": {"exception": "OSError", "message": "No space left on device"}}
    first = attrs.evolve(RUNNING, progress=attrs.evolve(RUNNING.progress, attempt=7))
    last = attrs.evolve(RUNNING, progress=attrs.evolve(RUNNING.progress, faults=DEFAULT.limit - 1))
    again = Faulted(rest=DEFAULT.delay(1, 0.25), cause="No space left on device")
    assert conclusion(first, results, None, jitter=0.25) == again
    end = conclusion(last, results, None)
    assert isinstance(end, Failed)
    assert end.code is StatusCode.JOB_ERROR
    assert "tried 3 times" in end.message
    assert "No space left on device" in end.message


def test_a_fatal_error_ends_the_job_at_once_with_its_cause() -> None:
    end = conclusion(RUNNING, {"error": {"message": "Unknown image", "fatal": True}}, None)
    assert end == Failed(code=StatusCode.JOB_ERROR, message="This job returned a fatal error. Unknown image")


@pytest.mark.parametrize(("results", "lacks"), [({}, "error"), ({"error": False}, "exit_code")])
def test_senseless_reports(results: dict[str, object], lacks: str) -> None:
    with pytest.raises(SenselessReport, match=lacks):
        conclusion(RUNNING, results, None)


def test_stages() -> None:
    assert progress("executing", None) == Progressed(code=StatusCode.EXECUTING)
    assert progress("dancing", None) is None
    assert progress("succeeded", None) is None


@pytest.mark.parametrize("nonsense", [None, 0, 10**40, -(10**40)])
def test_times_that_no_clock_shows_are_none(nonsense: int | None) -> None:
    assert agent_time(nonsense) is None


@pytest.mark.parametrize(
    "results",
    [
        {"error": False, "exit_code": "1", "status_message": "x" * 1_000_000},
        {"error": {"fatal": True, "message": "x" * 1_000_000}},
    ],
    ids=["exit", "fatal"],
)
def test_an_agents_words_to_the_user_are_bounded(results: dict[str, object]) -> None:
    event = conclusion(job(StatusCode.EXECUTING), results, None)
    assert isinstance(event, Failed)
    assert event.message.endswith("x [...]")
    assert len(event.message) < LONGEST_MESSAGE + 100

"""What may leave: the pure part. The bytes that really leave are searched in test_lifecycle_faults.py."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.messages import CANCELLED, COMPLETED, ERRORED, KILLED, OUT_OF_MEMORY, describe_exit, suggest
from agent.core.redact import OUTPUTS_BYTES, REDACTED, redact_environment, redact_error, redact_metrics, redact_results
from agent.executors.base import Exit
from common.protocol import Egress

CLOSED = Egress(metrics=False)
OPEN = Egress(metrics=True, logs=True, outputs=True)

READ_BY_THE_CONTROLLER = {
    "error",
    "exit_code",
    "docker_image_id",
    "status_message",
    "hint",
    "timestamp_ns",
    "action_version",
    "action_revision",
    "action_created",
    "base_revision",
    "base_created",
    "has_unmatched_patterns",
    "has_level4_excluded_files",
}


def metadata(**changes: Any) -> dict[str, Any]:
    return {
        "outputs": {"canary/a.csv": "moderately_sensitive"},
        "outputs_detail": [
            {"path": "canary/a.csv", "level": "l", "size": 1, "sha256": "s", "excluded": True, "message": "canary"}
        ],
        "unmatched_patterns": [],
        "unmatched_outputs": [],
        "status_message": COMPLETED,
        "hint": None,
        "exit_code": "0",
        "level4_excluded_files": {"canary/a.csv": "canary"},
        "error": False,
        "container_metadata": {"canary": 1},
        "user": "canary",
        "job_metrics": {"cpu_mean": 1.0, "canary": 2.0, "mem_mb_peak": float("nan")},
    } | changes


def test_a_closed_backend_sends_what_the_controller_reads_and_no_more() -> None:
    results = redact_results(metadata(), CLOSED)
    assert set(results) == READ_BY_THE_CONTROLLER | {"cancelled", "job_metrics"}
    assert "canary" not in json.dumps(results)
    assert results["has_level4_excluded_files"] is True
    assert results["error"] is False


@given(
    metrics=st.booleans(),
    logs=st.booleans(),
    key=st.sampled_from(sorted(metadata())),
    value=st.sampled_from(["canary", {"canary": "canary"}, ["canary"]]),
)
def test_no_key_of_the_metadata_smuggles_names_out_without_outputs(
    metrics: bool, logs: bool, key: str, value: Any
) -> None:
    if key in ("exit_code", "error", "job_metrics", "level4_excluded_files"):
        return  # written by the agent, never by a job
    results = redact_results(metadata(**{key: value}), Egress(metrics=metrics, logs=logs, outputs=False))
    assert "canary" not in json.dumps(results)


@pytest.mark.parametrize("unmatched", ["unmatched_patterns", "unmatched_outputs"])
def test_texts_are_emptied_when_something_did_not_match(unmatched: str) -> None:
    results = redact_results(metadata(**{unmatched: ["canary"], "hint": "canary"}), CLOSED)
    assert (results["status_message"], results["hint"]) == ("", "")
    assert results["has_unmatched_patterns"] is (unmatched == "unmatched_patterns")


@pytest.mark.parametrize("message", [CANCELLED, KILLED, ERRORED, f"{OUT_OF_MEMORY} (limit was 4.00GB)"])
def test_why_a_job_was_killed_is_told_even_when_outputs_are_missing(message: str) -> None:
    results = redact_results(metadata(status_message=message, unmatched_patterns=["canary"]), CLOSED)
    assert results["status_message"] == message


def test_an_open_backend_names_its_outputs() -> None:
    results = redact_results(metadata(hint="look at b.csv", unmatched_patterns=["*.x"]), OPEN)
    assert results["outputs"][0]["path"] == "canary/a.csv"
    assert results["hint"] == "look at b.csv"
    assert results["job_metrics"] == {"cpu_mean": 1.0}
    assert "container_metadata" not in results


def test_names_that_are_no_text_are_sent_as_text() -> None:
    detail = [{"path": "a\udcff.csv", "level": "l", "size": 1, "sha256": "s", "excluded": False, "message": "\x00"}]
    output = redact_results(metadata(outputs_detail=detail), OPEN)["outputs"][0]
    assert output["path"] == "a?.csv"
    assert output["message"] == "?"


@pytest.mark.parametrize(("logs", "outputs"), list(itertools.product((False, True), repeat=2)))
def test_errors_carry_details_only_where_logs_may_leave(logs: bool, outputs: bool) -> None:
    error = {"exception": "MissingInput", "message": "canary", "public": "safe", "traceback": "canary", "fatal": True}
    sent = redact_error(error, Egress(logs=logs, outputs=outputs))
    assert ("canary" in json.dumps(sent)) is logs
    assert sent["fatal"] is True
    assert sent["message"] == ("canary" if logs else "safe")


def test_metrics_are_the_four_known_numbers_or_none() -> None:
    sample = {"cpu_mean": 1, "cpu_peak": True, "container_id": 5.0, "mem_mb_mean": float("inf")}
    assert redact_metrics(sample, Egress(metrics=True)) == {"cpu_mean": 1.0}
    assert redact_metrics(sample, CLOSED) == {}


def test_an_engines_environment_is_struck_out_wherever_it_is() -> None:
    inspected = {"Config": {"Env": ["PATH=/bin", "SECRET=canary=x"]}, "Other": [{"env": {"A": "canary", "TZ": "UTC"}}]}
    stored = redact_environment(inspected)
    assert stored["Config"]["Env"] == ["PATH=/bin", f"SECRET={REDACTED}"]
    assert stored["Other"][0]["env"] == {"A": REDACTED, "TZ": "UTC"}


@pytest.mark.parametrize(
    ("code", "more", "unmatched", "message"),
    [
        (0, {}, [], COMPLETED),
        (0, {}, ["a/*.csv"], "No outputs found matching patterns:\n - a/*.csv"),
        (1, {}, [], None),
        (1, {}, ["a"], None),
        (137, {"oom_killed": True}, [], "Job ran out of memory (limit was 4.00GB)"),
        (137, {}, [], KILLED),
        (137, {"timed_out": True}, [], "Job ran longer than its time limit (limit was 60 s)"),
    ],
)
def test_status_messages(code: int, more: dict[str, bool], unmatched: list[str], message: str | None) -> None:
    exit = Exit(code=code, started_at_ns=1, finished_at_ns=2, **more)
    assert describe_exit(exit, unmatched_patterns=unmatched, memory_bytes=4 * 1024**3, seconds=60) == message


def test_the_hint_lists_what_the_job_wrote_instead() -> None:
    assert suggest([], ["x"]) is None
    assert "x.csv" in (suggest(["y.csv"], ["x.csv"]) or "")
    assert "5 more" in (suggest(["y"], [f"{n}" for n in range(25)]) or "")


def test_a_report_says_as_much_about_outputs_as_it_can_hold() -> None:
    output = metadata()["outputs_detail"][0]
    many = [output | {"path": "\x1b" * 1000 + f"{number}.csv"} for number in range(1000)]
    results = redact_results(metadata(outputs_detail=many, status_message="m" * 10**6), OPEN)
    assert len(json.dumps(results)) < OUTPUTS_BYTES * 1.2
    assert 100 < len(results["outputs"]) == 1000 - results["outputs_left_out"]
    assert "outputs_left_out" not in redact_results(metadata(), OPEN)

"""What may leave: the pure part. The bytes that really leave are searched in test_lifecycle_faults.py."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.definition import JobDefinition
from agent.core.messages import CANCELLED, COMPLETED, ERRORED, KILLED, OUT_OF_MEMORY, OVER_DISK, describe_exit, suggest
from agent.core.redact import (
    OUTPUTS_BYTES,
    REDACTED,
    permits,
    redact_environment,
    redact_error,
    redact_metrics,
    redact_results,
)
from agent.executors.base import Exit
from agent.outputs.metadata import Ending, compose
from common.protocol import OPEN, Egress, Named

CLOSED = Egress()
POLICIES = st.builds(
    Egress, metrics=st.booleans(), logs=st.booleans(), outputs=st.sampled_from(Named), reviewed=st.booleans()
)

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
    results = redact_results(metadata(**{key: value}), Egress(metrics=metrics, logs=logs))
    assert "canary" not in json.dumps(results)


@pytest.mark.parametrize("unmatched", ["unmatched_patterns", "unmatched_outputs"])
def test_texts_are_emptied_when_something_did_not_match(unmatched: str) -> None:
    results = redact_results(metadata(**{unmatched: ["canary"], "hint": "canary"}), CLOSED)
    assert (results["status_message"], results["hint"]) == ("", "")
    assert results["has_unmatched_patterns"] is (unmatched == "unmatched_patterns")


@pytest.mark.parametrize(
    "message",
    [CANCELLED, KILLED, ERRORED, f"{OUT_OF_MEMORY} (limit was 4.00GB)", f"{OVER_DISK} (limit was 10.00GB)", OVER_DISK],
)
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


@pytest.mark.parametrize(("logs", "outputs"), list(itertools.product((False, True), Named)))
def test_errors_carry_details_only_where_logs_and_all_names_may_leave(logs: bool, outputs: Named) -> None:
    error = {"exception": "MissingInput", "message": "canary", "public": "safe", "traceback": "canary", "fatal": True}
    sent = redact_error(error, Egress(logs=logs, outputs=outputs))
    whole = logs and outputs is Named.ALL
    assert ("canary" in json.dumps(sent)) is whole
    assert sent["fatal"] is True
    assert sent["message"] == ("canary" if whole else "safe")


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


@pytest.mark.parametrize(("code", "timed_out"), [(137, False), (1, False), (153, False), (137, True)])
def test_the_message_of_a_run_that_wrote_too_much(code: int, timed_out: bool) -> None:
    exit = Exit(code=code, started_at_ns=1, finished_at_ns=2, timed_out=timed_out, terminated=not timed_out)
    message = describe_exit(
        exit, unmatched_patterns=["a"], memory_bytes=1024**3, seconds=60, disk_bytes=3 * 512 * 1024**2
    )
    expected = "Job ran longer than its time limit (limit was 60 s)"
    assert message == (expected if timed_out else "Job used more disk space than its limit (limit was 1.50GB)")


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


# Byte by byte: under which policies each value of a job's metadata leaves. A key that is not here fails the test.

ALWAYS, METRICS, OPEN_ONLY, WHOLE, LEVELS, NEVER = "always", "+metrics", "open", "open and logs", "+outputs", "never"
KEYS = {
    "outputs": NEVER,
    "outputs_detail": LEVELS,
    "unmatched_patterns": NEVER,  # but for whether there are any
    "unmatched_outputs": NEVER,
    "status_message": OPEN_ONLY,
    "hint": OPEN_ONLY,
    "timestamp_ns": ALWAYS,
    "job_definition_id": NEVER,
    "job_definition_rap_id": NEVER,
    "workspace": NEVER,
    "task_id": NEVER,
    "created_at": NEVER,
    "user": NEVER,
    "completed_at": NEVER,
    "docker_image_id": ALWAYS,
    "expected_image_id": NEVER,
    "exit_code": ALWAYS,
    "oom_killed": NEVER,
    "container_metadata": NEVER,
    "commit": NEVER,
    "database_name": NEVER,
    "action_version": OPEN_ONLY,  # but where they look as they should
    "action_revision": OPEN_ONLY,
    "action_created": OPEN_ONLY,
    "base_revision": OPEN_ONLY,
    "base_created": OPEN_ONLY,
    "level4_excluded_files": NEVER,  # but for whether there are any
    "cancelled": NEVER,  # but for whether it is true
    "error": WHOLE,
    "job_metrics": METRICS,
}
LEVEL_NAMES = ("minimally_sensitive", "moderately_sensitive", "highly_sensitive")


def composed() -> dict[str, Any]:
    """What the agent really writes, of a job that has everything."""
    definition = JobDefinition(
        id="job", repo_url="r", commit="c" * 40, workspace="ws", action="a", created_at=1, image="i"
    )
    return compose(definition, "job-001", Ending(), None, 1)


def entry(level: str, excluded: bool) -> dict[str, Any]:
    name = f"canary-{level}-{'excluded' if excluded else 'kept'}"
    reason = f"{name}-reason" if excluded else ""
    return {
        "path": f"{name}.csv",
        "level": level,
        "size": 1,
        "sha256": f"{name}-sha",
        "excluded": excluded,
        "message": reason,
        "new_key": f"{name}-new",
    }


ENTRIES = [entry(level, excluded) for level in LEVEL_NAMES for excluded in (False, True)]
SAFE_ERROR = {"exception": "MissingInput", "public": "A fixed sentence.", "fatal": True}


def planted() -> dict[str, Any]:
    """Metadata with a canary in every value, named after its key."""
    values = {key: f"canary-{key}" for key in KEYS}
    return values | {
        "outputs": {"canary-outputs": "canary-outputs"},
        "outputs_detail": ENTRIES,
        "unmatched_patterns": ["canary-unmatched_patterns"],
        "unmatched_outputs": ["canary-unmatched_outputs"],
        "container_metadata": {"canary-container_metadata": ["canary-container_metadata"]},
        "level4_excluded_files": {"canary-level4_excluded_files": "canary-level4_excluded_files"},
        "error": {"message": "canary-error", "traceback": "canary-error", "new_key": "canary-new", **SAFE_ERROR},
        "job_metrics": {"cpu_mean": 1.5, "cpu_canary": 2.5, "mem_mb_mean": "canary-job_metrics"},
    }


def test_the_table_has_every_key_that_the_agent_records() -> None:
    assert set(composed()) == set(KEYS)


def permitted(policy: Egress, level: str, excluded: bool) -> bool:
    """Whether an output may be named: said here once more, and in other words."""
    if policy.reviewed or policy.outputs is Named.NONE:
        return False
    if policy.outputs is Named.ALL:
        return True
    most = LEVEL_NAMES.index(policy.outputs.value)
    return not excluded and LEVEL_NAMES.index(level) <= most


@given(policy=POLICIES)
def test_only_what_the_policy_names_leaves(policy: Egress) -> None:
    results = redact_results(planted(), policy)
    sent = json.dumps(results)
    leaves = {
        ALWAYS: True,
        METRICS: policy.metrics,
        WHOLE: policy.logs and policy.outputs is Named.ALL,
        OPEN_ONLY: policy.outputs is Named.ALL,
        NEVER: False,
    }
    for key, when in KEYS.items():
        if key not in ("outputs_detail", "job_metrics"):
            assert (f"canary-{key}" in sent) is leaves[when], key
    assert results["job_metrics"] == ({"cpu_mean": 1.5} if policy.metrics else {})
    for output in ENTRIES:
        may = permitted(policy, output["level"], output["excluded"])
        assert (f'"{output["path"]}"' in sent) is may
        assert (f'"{output["sha256"]}"' in sent) is may
        assert (bool(output["message"]) and f'"{output["message"]}"' in sent) is (may and output["excluded"])
    assert "-new" not in sent
    assert ("outputs" in results) is (policy.outputs is not Named.NONE and not policy.reviewed)


@given(policy=POLICIES, count=st.integers(0, 5))
def test_how_many_outputs_are_not_named_is_not_told(policy: Egress, count: int) -> None:
    """Two jobs that differ only in what the policy forbids are told in the same bytes."""
    named = [each for each in ENTRIES if permitted(policy, each["level"], each["excluded"])]
    forbidden = [each for each in ENTRIES if each not in named] * count
    assert redact_results(metadata(outputs_detail=named), policy) == redact_results(
        metadata(outputs_detail=named + forbidden), policy
    )


@given(policy=POLICIES)
def test_an_output_of_a_level_that_nobody_knows_stays(policy: Egress) -> None:
    for level in ("", "none", "all", "Moderately_sensitive", None):
        if policy.outputs is not Named.ALL:
            assert not permits(policy, {"level": level, "excluded": False})


@pytest.mark.parametrize(
    ("key", "value", "sent"),
    [
        ("action_version", "v1.31.0", "v1.31.0"),
        ("action_version", "2.0-rc1+build.5", "2.0-rc1+build.5"),
        ("action_version", "patient-4711", "unknown"),
        ("action_version", "1 patient", "unknown"),
        ("action_revision", "0123abc", "0123abc"),
        ("action_revision", "not-a-commit", "unknown"),
        ("action_created", "2026-11-21T10:00:00.123456Z", "2026-11-21T10:00:00.123456Z"),
        ("base_created", "2026-11-21 10:00:00+01:00", "2026-11-21 10:00:00+01:00"),
        ("base_created", "2026-11-21T10:00:00Z\npatient", "unknown"),
        ("base_revision", None, None),
    ],
)
def test_labels_leave_only_if_they_look_as_they_should(key: str, value: str | None, sent: str | None) -> None:
    recorded = metadata(**{key: value})
    assert redact_results(recorded, CLOSED)[key] == sent
    assert redact_results(recorded, OPEN)[key] == value

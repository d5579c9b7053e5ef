"""What of a finished job's outputs leaves once a person has released it: pure decisions.

The controller only passes on that somebody has looked. Whether an output may leave at all is decided here, by the
agent's own policy and records, so that no controller can widen either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from agent.core.definition import check_created_at, check_id, check_workspace
from agent.core.errors import BadDefinition
from agent.core.redact import permits, shown, take_fitting
from common.convert import Malformed, structure
from common.protocol import (
    Egress,
    Named,
    Refusal,
    RefusedOutput,
    ReleaseDefinition,
    ReleasedOutput,
    ReleaseResults,
    Unable,
)

Output = Mapping[str, Any]
"""An entry of `outputs_detail` in a job's `metadata.json`."""


@frozen(kw_only=True)
class Choice:
    """What a task asks for, as far as the policy lets it out."""

    outputs: tuple[Output, ...]
    refused: tuple[RefusedOutput, ...]


def parse_release(data: Mapping[str, Any]) -> ReleaseDefinition:
    """The definition of a `release` task. Its paths are names to look up, and never become part of a path here.

    :raises BadDefinition: naming the field that is missing or wrong.
    """
    try:
        definition = structure(dict(data), ReleaseDefinition)
    except Malformed as error:
        raise BadDefinition(f"definition: {error}") from error
    check_id(definition.job_id, "job_id")
    check_workspace(definition.workspace)
    check_created_at(definition.created_at)
    return definition


def find_obstacle(egress: Egress, recorded: Mapping[str, Any] | None) -> Unable | None:
    """Why this agent cannot release anything of a job; None if it can look.

    :param recorded: the job's `metadata.json`; None if it is not in this agent's storage.
    """
    if not egress.reviewed or egress.outputs is Named.NONE:
        return Unable.POLICY
    return Unable.ABSENT if recorded is None else None


def choose(egress: Egress, outputs: Sequence[Output], paths: Sequence[str] | None) -> Choice:
    """The outputs that a task asks for (`paths` None: all) and that the policy lets out.

    Of a path that is none of these it is not told whether there is such an output.
    """
    permitted = {str(shown(each["path"])): each for each in outputs if permits(egress, each)}
    if paths is None:
        return Choice(outputs=tuple(permitted.values()), refused=())
    named = dict.fromkeys(paths)
    return Choice(
        outputs=tuple(permitted[path] for path in named if path in permitted),
        refused=tuple(
            RefusedOutput(path=path, reason=Refusal.NOT_PERMITTED) for path in named if path not in permitted
        ),
    )


def order(outputs: Sequence[Output], records: Mapping[str, Mapping[str, Any]], task_id: str) -> list[Output]:
    """The order in which outputs are released, should a report not have room for all of them.

    Those that this task has released before come first (its report was lost), then those that never were.

    :param records: what was released so far: path -> `{task_id, ...}`.
    """

    def rank(output: Output) -> int:
        record = records.get(output["path"])
        if record is None:
            return 1
        return 0 if record.get("task_id") == task_id else 2

    return sorted(outputs, key=rank)


def fit(outputs: Sequence[Output]) -> int:
    """How many of these, from the first on, one report can hold."""
    return len(take_fitting(_entry(output) for output in outputs))


def compose_results(choice: Choice, released: Sequence[Output], changed: Sequence[Output], *, named: bool) -> Any:
    """The results to report: plain data, with names of what was released or named by the task only.

    :param released: those of `choice.outputs` that are recorded as released.
    :param changed: those whose file is not the one that the job left.
    :param named: whether the task has named its paths.
    """
    told = tuple(RefusedOutput(path=str(shown(each["path"])), reason=Refusal.CHANGED) for each in changed)
    return _plain(
        ReleaseResults(
            released=tuple(ReleasedOutput(**_entry(output)) for output in released),
            refused=choice.refused + (told if named else ()),
            withheld=0 if named else len(changed),
            left_out=len(choice.outputs) - len(released) - len(changed),
        )
    )


def unable_results(why: Unable) -> dict[str, Any]:
    """The results of a release that this agent could not carry out."""
    return _plain(ReleaseResults(released=(), unable=why))


def _entry(output: Output) -> dict[str, Any]:
    return {key: shown(output[key]) for key in ("path", "level", "size", "sha256")}


def _plain(results: ReleaseResults) -> dict[str, Any]:
    return {
        "released": [{"path": o.path, "level": o.level, "size": o.size, "sha256": o.sha256} for o in results.released],
        "refused": [{"path": refused.path, "reason": refused.reason.value} for refused in results.refused],
        "withheld": results.withheld,
        "left_out": results.left_out,
        "unable": None if results.unable is None else results.unable.value,
    }

"""One `release` task: a person has looked at a finished job's outputs and lets them out.

The agent checks everything itself: its own policy, the job's own records, and that each file is still the one that the
job left. What it lets out is on disk before it is reported, and carrying a task out twice gives the same answer.
"""

import threading
from typing import Any

import structlog

from agent.core.redact import shown
from agent.core.releases import Output, choose, compose_results, find_obstacle, fit, order, unable_results
from agent.faults import blame
from agent.outputs import metadata, releases
from agent.tools import Tools
from agent.waits import in_thread
from common.protocol import ReleaseDefinition, TaskOffer, Unable

_log = structlog.get_logger()


class Release:
    """A release, from its offer to the results."""

    def __init__(self, tools: Tools, offer: TaskOffer, definition: ReleaseDefinition) -> None:
        self.offer = offer
        self._tools = tools
        self._definition = definition

    async def carry_out(self) -> dict[str, Any]:
        """The results. Cancelled, it leaves what it has recorded: the next start does it again."""
        try:
            results = await in_thread(self._let_out)
        except Exception as error:
            _log.exception("release failed", task_id=self.offer.id, exc_info=blame(error))
            return unable_results(Unable.FAILED)
        _log.info(
            "release carried out",
            task_id=self.offer.id,
            job_id=self._definition.job_id,
            by=self._definition.by,
            released=len(results["released"]),
            refused=len(results["refused"]),
            withheld=results["withheld"],
            unable=results["unable"],
        )
        return results

    def _let_out(self, stop: threading.Event) -> dict[str, Any]:
        """Check, record, and say what was recorded (blocking)."""
        egress, wanted = self._tools.settings.egress, self._definition
        folder = self._tools.places.log_dir(wanted.job_id, wanted.created_at)
        recorded = metadata.read(folder)
        if recorded is not None and recorded.get("workspace", wanted.workspace) != wanted.workspace:
            recorded = None  # else the answer would tell which files of another workspace are the same as this job's
        obstacle = find_obstacle(egress, recorded)
        if obstacle is not None or recorded is None:
            return unable_results(obstacle or Unable.ABSENT)
        choice = choose(egress, recorded.get("outputs_detail") or (), wanted.paths)
        with releases.updating(folder, stop) as records:
            ordered = order(choice.outputs, records, self.offer.id)
            ordered = ordered[: fit(ordered)]
            released: list[Output] = []
            changed: list[Output] = []
            for output in ordered:
                unchanged = releases.is_as_recorded(self._tools.places, wanted.workspace, output, stop)
                (released if unchanged else changed).append(output)
            for output in released:
                if records.get(output["path"], {}).get("sha256") != output["sha256"]:
                    records[output["path"]] = self._record(output)
        for output in changed:
            _log.warning("not released: not as the job left it", task_id=self.offer.id, path=shown(output["path"]))
        return dict(compose_results(choice, released, changed, named=wanted.paths is not None))

    def _record(self, output: Output) -> dict[str, Any]:
        """Who has released an output, and which: one that stands here already, with that hash, keeps its record."""
        return {
            "workspace": self._definition.workspace,
            "level": output["level"],
            "size": output["size"],
            "sha256": output["sha256"],
            "by": self._definition.by,
            "at": self._tools.clock.now().isoformat(),
            "task_id": self.offer.id,
        }

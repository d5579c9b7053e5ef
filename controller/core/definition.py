"""What a task tells the agent: definitions and attributes, key for key as upstream's agents expect them.

An extra key breaks an upstream agent, which builds a dataclass from these (reference sections 2.3, 2.4); what our
own agents need beyond it travels beside the definition (common/protocol.py).
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from controller.core.model import Job, JobId, TaskId
from controller.core.permissions import ehrql_permissions
from controller.core.resources import JobLimits


@frozen(kw_only=True)
class Terms:
    """What a backend's settings add to every definition."""

    docker_registry: str
    ordinary: JobLimits
    """What a job may use of which nothing is said."""
    level4_max_csv_rows: int
    level4_max_filesize: int
    level4_file_types: tuple[str, ...]
    stata_license: str | None
    ehrql_max_join_count: Mapping[str, int]


@frozen(kw_only=True)
class Owner:
    """Who asked for the RAP that a job belongs to."""

    user: str
    project: str
    orgs: tuple[str, ...]


def run_definition(
    job: Job, task_id: TaskId, owner: Owner, input_job_ids: Sequence[JobId], terms: Terms
) -> dict[str, Any]:
    """The JobDefinition of a RUNJOB task."""
    spec = job.spec
    image, *args = shlex.split(spec.run_command)
    code = spec.reusable_action or spec
    limits = terms.ordinary.adapted(spec.resources)
    return {
        "id": spec.id,
        "rap_id": spec.rap_id,
        "task_id": task_id,
        "repo_url": code.repo_url,
        "commit": code.commit,
        "study": {"git_repo_url": spec.repo_url, "commit": spec.commit, "branch": spec.branch},
        "workspace": spec.workspace,
        "action": spec.action,
        "created_at": int(spec.created_at.timestamp()),
        "image": f"{terms.docker_registry}/{image}",
        "image_sha": spec.image_sha,
        "args": args,
        "env": _environment(job, image, terms),
        "inputs": [],
        "input_job_ids": list(input_job_ids),
        "output_spec": {glob: level for level, patterns in spec.output_spec.items() for glob in patterns.values()},
        "allow_database_access": spec.requires_db,
        "database_name": spec.database_name if spec.requires_db else None,
        "level4_max_csv_rows": terms.level4_max_csv_rows,
        "level4_max_filesize": terms.level4_max_filesize,
        "level4_file_types": list(terms.level4_file_types),
        "user": owner.user,
        "cpu_count": float(limits.cpu_count),
        "memory_limit": limits.memory_limit,
    }


def cancel_definition(run: Mapping[str, Any]) -> dict[str, Any]:
    """The definition of the CANCELJOB task for the RUNJOB task that had the definition `run`."""
    return {**run, "image_sha": None}


def attributes(owner: Owner) -> dict[str, str]:
    """For the agent's spans: never empty strings."""
    return {
        "user": owner.user or "unknown",
        "project": owner.project or "unknown",
        "orgs": ",".join(owner.orgs) or "unknown",
    }


def _environment(job: Job, image: str, terms: Terms) -> dict[str, str]:
    spec = job.spec
    env = {"OPENSAFELY_BACKEND": spec.backend}
    if spec.requires_db:
        env["EHRQL_PERMISSIONS"] = ehrql_permissions(spec.analysis_scope)
    if image.partition(":")[0] == "stata-mp" and terms.stata_license:
        env["STATA_LICENSE"] = terms.stata_license
    if (joins := terms.ehrql_max_join_count.get(spec.workspace)) is not None:
        env["EHRQL_MAX_JOIN_COUNT"] = str(joins)
    return env

"""What every task works with: the agent's parts, joined; and from a task's definition to what an executor is told."""

from collections.abc import Callable

from attrs import frozen

from agent.checkout import Checkouts
from agent.client import Client
from agent.core.definition import JobDefinition, time_limit
from agent.disk import Disk
from agent.executors.base import HOME, Executor, Limits, Run
from agent.outputs.workspaces import Places
from agent.reports import Reports
from agent.settings import Settings
from common.clock import Clock
from common.protocol import TaskOffer


@frozen(kw_only=True)
class Tools:
    """What every job, check and release works with."""

    settings: Settings
    executor: Executor
    clock: Clock
    places: Places
    checkouts: Checkouts
    client: Client
    reports: Reports
    disk: Disk
    on_idle: Callable[[], None] = lambda: None
    """Called when a job needs its slot no longer."""


def build_run(tools: Tools, task_id: str, definition: JobDefinition, offer: TaskOffer | None) -> Run:
    """What the executor needs to know. Database secrets go to jobs that may use the database, and to no others.

    :param offer: the task, RUNJOB's if it is there.
    """
    environment = HOME | dict(definition.env)
    if offer and offer.traceparent:
        environment["TRACEPARENT"] = offer.traceparent
    if definition.allow_database_access:
        environment |= tools.settings.db_env
    return Run(
        task_id=task_id,
        job_id=definition.id,
        workspace=definition.workspace,
        action=definition.action,
        image=definition.image,
        image_sha=definition.image_sha,
        args=definition.args,
        env=environment,
        volume=tools.places.volume(task_id),
        state_dir=tools.places.notes(task_id) / "run",
        limits=Limits(
            cpu_count=definition.cpu_count,
            memory_bytes=definition.memory_bytes,
            seconds=time_limit(offer.time_limit if offer else None, tools.settings.job_time_limit),
            disk_bytes=tools.settings.job_disk_limit,
        ),
        network=definition.allow_database_access,
    )

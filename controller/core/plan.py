"""From a request, its project and the workspace's history to the jobs that are needed.

Rules: reference/opensafely.md section 4.4; order of the decisions: section 4.1 (plan, nothing to do, reusable
actions, stale codelists). All of it is cheap and repeatable: the engine plans again when history moves on.
"""

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Final

import attrs
from attrs import field, frozen

from common.ids import job_id
from controller.core import resources
from controller.core.codes import JobState
from controller.core.commands import Command
from controller.core.errors import Rejected
from controller.core.model import RUN_ALL, JobId, JobSpec, RapRequest, ReusableAction
from controller.core.permissions import analysis_scope
from controller.core.project import Action, Project
from controller.core.request_checks import shown
from controller.core.resources import NOTHING, Grant, JobLimits, Resources, grant_nothing
from controller.core.schedule import Limits, heaviest

Weigh = Callable[[str, str, str], float]
"""(workspace, action, run command) -> share of the backend that the job takes (section 3.5)."""

ALL_SUCCEEDED: Final = "All actions have already completed successfully"
ALL_SCHEDULED: Final = "All requested actions were already scheduled to run"


@frozen(kw_only=True)
class LatestJob:
    """The newest job of an action in a (backend, workspace) that nobody cancelled."""

    id: JobId
    state: JobState


@frozen(kw_only=True)
class ReusableUse:
    """An image that is no image of ours, and the first action that runs it."""

    action: str
    image_name: str
    image_version: str

    @property
    def image(self) -> str:
        """`name:version`."""
        return f"{self.image_name}:{self.image_version}"


@frozen(kw_only=True)
class ResolvedAction:
    """What stands behind the image of a reusable action (section 4.7)."""

    source: ReusableAction
    command: Command
    """The `run` of its `action.yaml`."""


@frozen(kw_only=True)
class PlannedJob:
    """A job to be created."""

    spec: JobSpec
    command: Command
    asked: Resources = NOTHING
    """By the author of the project."""
    wait_for: tuple[JobId, ...]
    """Jobs of this plan, or active ones of other RAPs, that have to succeed first."""


@frozen(kw_only=True)
class Plan:
    """The jobs that a request needs, dependencies before dependants."""

    jobs: tuple[PlannedJob, ...]
    reusable: tuple[ReusableUse, ...]
    """The images to look up, each once, in the order of the jobs."""
    weigh: Weigh = field(repr=False, eq=False)
    grant: Grant = field(repr=False, eq=False, default=grant_nothing)


@frozen(kw_only=True)
class NothingToDo:
    """The request is served already; `details` is the sentence for the user (section 1.3)."""

    details: str


def plan(
    request: RapRequest,
    project: Project,
    history: Mapping[str, LatestJob],
    *,
    now: datetime,
    new_traceparent: Callable[[], str],
    weight: Weigh,
    grant: Grant = grant_nothing,
    event_level_projects: Collection[str] = (),
) -> Plan | NothingToDo:
    """Decide which actions run, in which order, and what each waits for.

    :param history: per action name, what the workspace remembers; actions that the project no longer has are
        ignored.
    :param new_traceparent: called once per job.
    :raises Rejected: a requested action is not in the project.
    """
    names = list(_walk(_roots(request, project), request, project, history))
    if not names:
        run_all = RUN_ALL in request.requested_actions
        return NothingToDo(details=ALL_SUCCEEDED if run_all else ALL_SCHEDULED)
    new = {name: JobId(job_id(request.rap_id, name)) for name in names}
    jobs = []
    for position, name in enumerate(names):
        action = project.actions[name]
        spec = JobSpec(
            id=new[name],
            rap_id=request.rap_id,
            position=position,
            backend=request.backend,
            workspace=request.workspace,
            action=name,
            run_command=action.run.run_command,
            requires_db=action.requires_db,
            needs=tuple(dict.fromkeys(action.needs)),
            output_spec=action.outputs,
            repo_url=request.repo_url,
            commit=request.commit,
            branch=request.branch,
            database_name=request.database_name if action.requires_db else None,
            analysis_scope=analysis_scope(
                request.analysis_scope,
                project=request.project,
                requires_db=action.requires_db,
                event_level_projects=event_level_projects,
            ),
            weight=weight(request.workspace, name, action.run.run_command),
            resources=action.resources.over(grant(request.workspace, name, action.run.run_command)),
            traceparent=new_traceparent(),
            created_at=now,
        )
        wait_for = tuple(_awaited(action, new, history))
        jobs.append(PlannedJob(spec=spec, command=action.run, asked=action.resources, wait_for=wait_for))
    return Plan(jobs=tuple(jobs), reusable=_reusable(jobs), weigh=weight, grant=grant)


def with_reusable_actions(plan: Plan, resolved: Mapping[str, ResolvedAction]) -> Plan:
    """The plan with the commands that really run: the reusable action's, then the author's arguments.

    :param resolved: by image (`name:version`), one for each of `plan.reusable`.
    """
    jobs = []
    for job in plan.jobs:
        if not job.command.is_reusable_action:
            jobs.append(job)
            continue
        found = resolved[job.command.image]
        words = [found.command.image, *found.command.args, *job.command.args]
        run_command = shlex.join(words)
        command = attrs.evolve(found.command, args=tuple(words[1:]), run_command=run_command)
        spec = attrs.evolve(
            job.spec,
            run_command=run_command,
            reusable_action=found.source,
            weight=plan.weigh(job.spec.workspace, job.spec.action, run_command),
            resources=job.asked.over(plan.grant(job.spec.workspace, job.spec.action, run_command)),
        )
        jobs.append(attrs.evolve(job, spec=spec, command=command))
    return attrs.evolve(plan, jobs=tuple(jobs), reusable=())


def check_codelists(plan: Plan, request: RapRequest) -> None:
    """Stale codelists stop a request as soon as one new job would read the database.

    :raises Rejected: naming the first such action.
    """
    if request.codelists_ok:
        return
    for job in plan.jobs:
        if job.spec.requires_db:
            action = job.spec.action
            raise Rejected(f"Codelists are out of date (required by action {action})", action=action)


def check_weights(plan: Plan, limits: Limits, *, configured: Limits | None = None) -> None:
    """A job that is heavier than its whole pool could never start; upstream lets it wait for ever.

    :param limits: those that hold now.
    :param configured: those of the settings, if an operator may have set others.
    :raises Rejected: naming the first such action, and the limit that it meets.
    """
    for job in plan.jobs:
        name, pool = ("db_workers", "database workers") if job.spec.requires_db else ("workers", "workers")
        limit: float = getattr(limits, name)
        by_hand = configured is not None and getattr(configured, name) != limit
        if job.spec.weight > heaviest(limit):
            raise Rejected(
                f"Action {job.spec.action} needs {job.spec.weight:g} {pool}, and the backend has {limit:g}"
                f"{' for now, as an operator has set it' if by_hand else ''}",
                action=job.spec.action,
                limit=name,
            )


def check_resources(plan: Plan, *, ordinary: JobLimits, most: JobLimits) -> None:
    """An author may ask for what the backend allows one job, and no more.

    :param ordinary: what it gives to every job.
    :param most: its ceilings.
    :raises Rejected: naming the first action that asks for more, and the field.
    """
    for job in plan.jobs:
        if job.asked != NOTHING:
            granted = plan.grant(job.spec.workspace, job.spec.action, job.spec.run_command)
            resources.check(job.spec.action, job.asked, granted, ordinary=ordinary, most=most)


def _roots(request: RapRequest, project: Project) -> list[str]:
    """The actions that were asked for. Beside `run_all`, other names are not even checked (section 4.3)."""
    if RUN_ALL in request.requested_actions:
        return [name for name in project.actions if name != RUN_ALL]
    for name in request.requested_actions:
        if name not in project.actions:
            raise Rejected(f"Action '{shown(name)}' not found in project.yaml", action=name)
    return list(request.requested_actions)


def _walk(roots: list[str], request: RapRequest, project: Project, history: Mapping[str, LatestJob]) -> Iterator[str]:
    """The actions to run, each after those it needs. The stack is our own: a chain of needs may be long."""
    explicit = frozenset(request.requested_actions)

    def is_wanted(name: str) -> bool:
        latest = history.get(name)
        if latest is None:
            return True
        if not latest.state.is_terminal:
            return False
        rerun = name in explicit or request.force_run_dependencies
        return rerun or latest.state is JobState.FAILED

    seen: set[str] = set()
    for root in roots:
        stack: list[tuple[str, Iterator[str]]] = []
        if root not in seen and is_wanted(root):
            seen.add(root)
            stack.append((root, iter(project.actions[root].needs)))
        while stack:
            name, needs = stack[-1]
            need = next((need for need in needs if need not in seen and is_wanted(need)), None)
            if need is None:
                stack.pop()
                yield name
            else:
                seen.add(need)
                stack.append((need, iter(project.actions[need].needs)))


def _awaited(action: Action, new: Mapping[str, JobId], history: Mapping[str, LatestJob]) -> Iterator[JobId]:
    """The jobs that have to succeed before `action` starts; needs that have done so are not among them."""
    for need in dict.fromkeys(action.needs):
        if need in new:
            yield new[need]
        elif not history[need].state.is_terminal:
            yield history[need].id


def _reusable(jobs: list[PlannedJob]) -> tuple[ReusableUse, ...]:
    first: dict[str, ReusableUse] = {}
    for job in jobs:
        if job.command.is_reusable_action:
            use = ReusableUse(
                action=job.spec.action,
                image_name=job.command.image_name,
                image_version=job.command.image_version,
            )
            first.setdefault(use.image, use)
    return tuple(first.values())

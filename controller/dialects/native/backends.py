"""`GET backends`, `GET agents`, `POST backends/{backend}/agents/{agent}/forget`: backends and who works on them."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from attrs import frozen

from controller.dialects.native import query, times
from controller.engine import abandoning, results
from controller.web import json_api
from controller.web.keys import ENGINE


@frozen(kw_only=True)
class Agent:
    """An agent, by what it said of itself and when it was last heard of."""

    id: str
    backend: str
    version: str
    executor: str
    slots: int
    last_seen: str | None
    egress: Mapping[str, Any]
    policy: str
    on_loss: str
    load: int
    silent: bool


@frozen(kw_only=True)
class Agents:
    """Answer to `GET agents`."""

    agents: tuple[Agent, ...]


@frozen(kw_only=True)
class Check:
    """How the last check of a backend's database ended; `answer` is null if it could not be carried out."""

    kind: str
    finished_at: str
    answer: str | None


@frozen(kw_only=True)
class Backend:
    """A backend and the operator's switches on it."""

    slug: str
    last_seen: str | None
    paused: bool
    paused_since: str | None
    db_maintenance: bool
    db_maintenance_since: str | None
    db_maintenance_type: str | None
    checks: tuple[Check, ...]


@frozen(kw_only=True)
class Backends:
    """Answer to `GET backends`: those that the caller's token opens, in the configured order."""

    backends: tuple[Backend, ...]


@frozen(kw_only=True)
class Forgotten:
    """Answer to `POST backends/{backend}/agents/{agent}/forget`."""

    backend: str
    agent: str
    jobs: tuple[str, ...]
    """Jobs that it held: back in the queue, or failed if they may not run twice."""
    stops: int
    """Stops and checks that it can no longer confirm."""


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/agents", list_agents)
    app.router.add_get("/backends", list_backends)
    app.router.add_post("/backends/{backend}/agents/{agent}/forget", forget_agent)


async def list_agents(request: web.Request) -> web.Response:
    """The agents of the caller's backends."""
    principal = await query.caller(request)
    return json_api.send(agents(await request.config_dict[ENGINE].agents(principal)))


async def list_backends(request: web.Request) -> web.Response:
    """The caller's backends."""
    principal = await query.caller(request)
    return json_api.send(backends(await request.config_dict[ENGINE].backends(principal)))


async def forget_agent(request: web.Request) -> web.Response:
    """Take all work from an agent that is gone for good."""
    principal, backend = await query.caller(request), request.match_info["backend"]
    agent = query.agent_name(request.match_info["agent"])
    return json_api.send(forgotten(await request.config_dict[ENGINE].forget_agent(principal, backend, agent)))


def agents(values: Sequence[results.AgentView]) -> Agents:
    """Every agent that the caller may see."""
    return Agents(
        agents=tuple(
            Agent(
                id=each.id,
                backend=each.backend,
                version=each.version,
                executor=each.executor,
                slots=each.slots,
                last_seen=times.maybe(each.last_seen),
                egress=dict(each.egress),
                policy=each.policy,
                on_loss=each.on_loss,
                load=each.load,
                silent=each.silent,
            )
            for each in values
        )
    )


def backends(values: Sequence[results.BackendView]) -> Backends:
    """Every backend that the caller may see."""
    return Backends(
        backends=tuple(
            Backend(
                slug=each.slug,
                last_seen=times.maybe(each.last_seen),
                paused=each.paused,
                paused_since=times.maybe(each.paused_since),
                db_maintenance=each.db_maintenance,
                db_maintenance_since=times.maybe(each.db_maintenance_since),
                db_maintenance_type=each.db_maintenance_type,
                checks=tuple(
                    Check(kind=check.kind.value, finished_at=times.timestamp(check.finished_at), answer=check.answer)
                    for check in each.checks
                ),
            )
            for each in values
        )
    )


def forgotten(value: abandoning.Forgotten) -> Forgotten:
    """What became of the agent's work."""
    return Forgotten(backend=value.backend, agent=value.agent, jobs=value.jobs, stops=value.stops)

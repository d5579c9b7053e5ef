"""`/ui/`: the caller's backends, what waits for what there, and their agents."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.core.codes import JobState
from controller.core.model import Verb
from controller.dialects.ui import asking, live, session
from controller.engine.capacity import CapacityView
from controller.engine.queues import QueueView
from controller.engine.results import AgentView, BackendView
from controller.web.keys import ENGINE

_NEWEST: Final = 8
"""RAPs that the overview names."""


@frozen(kw_only=True)
class BackendCard:
    """Everything about one backend."""

    backend: BackendView
    agents: Sequence[AgentView]
    waiting: Sequence[QueueView]
    running: Sequence[QueueView]
    capacity: CapacityView | None
    """None: the caller does not manage it."""
    managed: bool

    @property
    def alive(self) -> int:
        """Agents that were heard of within a lease."""
        return sum(not agent.silent for agent in self.agents)

    @property
    def waiting_jobs(self) -> int:
        return sum(each.jobs for each in self.waiting)

    @property
    def running_jobs(self) -> int:
        return sum(each.jobs for each in self.running)


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/", show)


async def show(request: web.Request) -> web.Response:
    """The overview."""
    visitor = await session.visitor(request)
    principal, engine = visitor.principal, request.config_dict[ENGINE]
    watch = await live.source(engine, principal)  # before what it is about is read
    managed = principal.backends_for(Verb.MANAGE)
    backends, agents = await engine.backends(principal), await engine.agents(principal)
    queue = await engine.queue(principal)
    capacities = {each.backend: each for each in (await engine.limits(principal) if managed else ())}

    def card(view: BackendView) -> BackendCard:
        mine = [each for each in queue if each.backend == view.slug]
        return BackendCard(
            backend=view,
            agents=[agent for agent in agents if agent.backend == view.slug],
            waiting=[each for each in mine if each.code.state is JobState.PENDING],
            running=[each for each in mine if each.code.state is JobState.RUNNING],
            capacity=capacities.get(view.slug),
            managed=view.slug in managed,
        )

    newest = await engine.list_raps(principal, backend=None, workspace=None, state=None, limit=_NEWEST, cursor=None)
    values = {"newest": newest.raps, "cards": [card(view) for view in backends], "section": "overview", "watch": watch}
    return asking.render(request, visitor, "overview.html", values)

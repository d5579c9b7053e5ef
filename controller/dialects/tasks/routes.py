"""The Task API's endpoints. They live at the root, beside everything else: `add_to(root)`.

A backend's agent lists what is active and says how each task goes on; there is no claim, lease or receipt.
Unknown backends are told before tokens are looked at, and a wrong method only after (reference section 2.1).
"""

from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from controller.dialects.tasks import mapping, wire
from controller.dialects.tasks.errors import ANSWERS
from controller.web import auth, routing
from controller.web.errors import answering
from controller.web.keys import ENGINE


async def health(request: web.Request) -> web.Response:
    """`/`, any method: the controller answers."""
    return wire.send({"method": request.method})


async def tasks(request: web.Request) -> web.Response:
    """`GET {backend}/tasks/`: what the backend's agent should be working on. HEAD counts as seen, too."""
    (backend,) = (await auth.agent(request)).backends
    return mapping.listing(await request.config_dict[ENGINE].active_tasks(backend))


async def update(request: web.Request) -> web.Response:
    """`POST {backend}/task/update/`: what became of a task of this backend."""
    (backend,) = (await auth.agent(request)).backends
    said = await wire.receive_update(request)
    await request.config_dict[ENGINE].update_task(
        backend,
        task_id=said.task_id,
        stage=said.stage,
        results=said.results,
        complete=said.complete,
        timestamp_ns=said.timestamp_ns,
    )
    return wire.send({"response": "Update successful"})


async def only_post(request: web.Request) -> web.Response:
    """405, but only for who may be here at all."""
    await auth.agent(request)
    raise web.HTTPMethodNotAllowed(request.method, ["POST"])


def add_to(root: web.Application) -> None:
    """Serve the Task API from `root`, which holds ENGINE and TOKENS."""
    listing = web.get("/{backend}/tasks/", _answered(tasks))
    updating = web.post("/{backend}/task/update/", _answered(update))
    root.add_routes([web.route("*", "/", health), listing, updating])
    root.add_routes([web.route("*", updating.path, _answered(only_post))])
    root.add_routes(routing.forbid_writes([listing]))
    root.add_routes(routing.add_slashes([listing, updating]))


_ANSWERS: Final = answering(ANSWERS)


def _answered(handler: Handler) -> Handler:
    """`handler` with this dialect's error bodies. The root is shared, so it cannot be a middleware."""
    return partial(_ANSWERS, handler=handler)

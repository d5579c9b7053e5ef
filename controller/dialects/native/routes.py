"""The native API, mounted at `/api`: lists, details, history and logs for the CLI and the dashboard, and operators'
commands; one module per capability, with its shapes, its handlers and what lies between.

RAPs are made and cancelled through the RAP API. Tokens are the same clients' tokens; what an operator's may do besides
is the engine's to decide. Contract: schemas/native/openapi.yaml. Of all shapes here, the order of fields is that of
keys in the JSON, and times are ISO 8601 in UTC with microseconds. A later version may add a field but never removes or
renames one: readers must ignore keys that they do not know.
"""

from typing import Final

from aiohttp import web

from controller.dialects.native import (
    backends,
    capacity,
    diagnosis,
    events,
    interventions,
    jobs,
    logs,
    metrics,
    modes,
    raps,
    reboot,
    releases,
    retention,
    tokens,
    traces,
)
from controller.web import json_api

CAPABILITIES: Final = (
    raps,
    jobs,
    traces,
    logs,
    metrics,
    events,
    releases,
    backends,
    modes,
    reboot,
    interventions,
    capacity,
    diagnosis,
    retention,
    tokens,
)


def make_app() -> web.Application:
    """The sub-application; the root application holds the engine and the tokens."""
    app = web.Application(middlewares=json_api.MIDDLEWARES)
    for capability in CAPABILITIES:
        capability.add_to(app)
    return app

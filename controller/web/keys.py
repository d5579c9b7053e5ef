"""The handles that the composition root puts into the root application, and handlers take out of it.

Inside a sub-application `request.app[KEY]` misses the parent's keys: use `request.config_dict[KEY]`.
"""

from typing import TYPE_CHECKING, Final

from aiohttp import web
from opentelemetry.trace import Tracer

from common.clock import Clock
from controller.core.observer import Observer

if TYPE_CHECKING:
    from controller.engine.facade import Engine
    from controller.web.auth import Tokens

ENGINE: Final[web.AppKey["Engine"]] = web.AppKey("engine")
TOKENS: Final[web.AppKey["Tokens"]] = web.AppKey("tokens")
CLOCK: Final[web.AppKey[Clock]] = web.AppKey("clock")
OBSERVER: Final[web.AppKey[Observer]] = web.AppKey("observer")
"""May be missing: then nobody measures."""
TRACER: Final[web.AppKey[Tracer]] = web.AppKey("tracer")
"""May be missing: then it is the process's, which by default does nothing."""

"""`/metrics`: who may read it, and the text.

Numbers of all backends are nobody's business but the operators'. On the controller's own address a request needs the
metrics token, or the token of somebody who operates every backend; portals' and agents' tokens do not open it, and
there is no way without one. A second address, for the operators' network, serves nothing but this page; it asks for the
metrics token if there is one, and must be a loopback address if there is none (`controller/settings.py`).
"""

import asyncio
import hmac
from collections.abc import Iterable, Sequence
from typing import Final

import structlog
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from common import tokens
from common.clock import Clock
from controller.core.errors import Unavailable
from controller.core.model import Principal, Verb
from controller.telemetry.metrics_collector import MomentCollector
from controller.telemetry.metrics_moments import Moments
from controller.web import errors, middleware
from controller.web.auth import Tokens
from controller.web.keys import CLOCK, TOKENS

PATH: Final = "/metrics"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_CHALLENGE: Final = {str(hdrs.WWW_AUTHENTICATE): "Bearer"}


class _WithoutCreated(Collector):
    """The registry, less the library's series of when each counter began: twice the text, and nobody asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class MetricsPage:
    """The page.

    :param token: what a scraper shows; None: there is none.
    :param backends: all that the numbers are about.
    """

    def __init__(
        self, registry: CollectorRegistry, moments: Moments, *, token: str | None, backends: Sequence[str]
    ) -> None:
        self._collector = MomentCollector()
        registry.register(self._collector)
        self._registry = _WithoutCreated(registry)
        self._moments = moments
        self._digest = tokens.digest(token) if token else None
        self._backends = backends

    def add_to(self, app: web.Application) -> None:
        """Serve it on the controller's own address, to whoever has the right token."""
        app.router.add_get(PATH, self._guarded, allow_head=False)

    def make_app(self, clock: Clock) -> web.Application:
        """The application of the second address."""
        app = web.Application()
        app[CLOCK] = clock
        middleware.install(app)
        app.router.add_get(PATH, self._on_its_own, allow_head=False)
        return app

    async def render(self) -> bytes:
        """The text, as of now; thousands of lines, so not on the event loop."""
        self._collector.moment = await self._moments.take()
        return await asyncio.to_thread(generate_latest, self._registry)

    async def _answer(self) -> web.Response:
        return web.Response(body=await self.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    async def _on_its_own(self, request: web.Request) -> web.Response:
        if self._digest is not None and not self._is_scraper(request):
            return errors.page(401, headers=_CHALLENGE)
        return await self._answer()

    async def _guarded(self, request: web.Request) -> web.Response:
        if self._is_scraper(request):
            return await self._answer()
        known: Tokens = request.config_dict[TOKENS]
        try:
            principal = await known.find_client(request.headers.get(hdrs.AUTHORIZATION))
        except Unavailable as error:
            return errors.unavailable(error)
        if principal is None:
            return errors.page(401, headers=_CHALLENGE)
        structlog.contextvars.bind_contextvars(principal=principal.name)
        return await self._answer() if self._operates_all(principal) else errors.page(403)

    def _is_scraper(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if self._digest is None or scheme.lower() != "bearer" or not token.strip():
            return False
        return hmac.compare_digest(tokens.digest(token.strip()), self._digest)

    def _operates_all(self, principal: Principal) -> bool:
        return all(principal.may(Verb.MANAGE, backend) for backend in self._backends)

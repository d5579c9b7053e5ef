"""The composition root: settings in, a web application out. Everything is made here and handed on.

Order of start: database, schema check, backends' rows, listener, schedulers; then the socket opens. Order of stop is
the reverse, and long-polls are answered first.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import aiohttp
from aiohttp import web
from attrs import frozen
from opentelemetry.trace import Tracer

from common.clock import Clock
from common.loop_lag import LoopLag
from controller.broadcaster import Broadcaster
from controller.core.checks import definitions
from controller.core.definition import Terms
from controller.core.model import Principal, Verb
from controller.core.observer import UNOBSERVED, Observer
from controller.core.schedule import Limits
from controller.dialects.agents import routes as agents
from controller.dialects.native import routes as native
from controller.dialects.rap import routes as rap
from controller.dialects.tasks import routes as tasks
from controller.dialects.ui import routes as ui
from controller.engine.context import BackendTerms, Context, Sources
from controller.engine.facade import Engine
from controller.loops import Loop, Pruner, Scheduler, Services
from controller.settings import BackendSettings, Settings
from controller.sources.git import Git
from controller.sources.images import ImageDigests
from controller.sources.project_file import ProjectFiles
from controller.sources.reusable import ReusableActions
from controller.store import backends, events, queries, tokens
from controller.store.db import Database
from controller.store.listen import Listener, Wakeups
from controller.telemetry.counts import TelemetryCounts
from controller.telemetry.metrics import Metrics
from controller.telemetry.metrics_moments import Moments
from controller.telemetry.metrics_moments import Sources as Measured
from controller.telemetry.metrics_page import MetricsPage
from controller.telemetry.tracing import tracing
from controller.web import health, middleware
from controller.web.auth import Tokens
from controller.web.keys import CLOCK, ENGINE, OBSERVER, TOKENS, TRACER

_DRAIN_SECONDS = 10.0
"""How long requests under way get to finish at shutdown; long-polls are answered at once."""

_MOST_HEADER = 32 * 1024
"""Bytes of one header. Proxies on the way to us may add to `tracestate`, which nobody's request should fail for."""

_USES = frozenset({Verb.READ, Verb.RUN})
_OPERATES = _USES | {Verb.MANAGE}


@frozen(kw_only=True)
class Controller:
    """A controller that is ready to serve: the engine works and the loops run."""

    app: web.Application
    engine: Engine
    metrics: web.Application
    """What `RAP_METRICS_LISTEN` serves, if it is set."""


@asynccontextmanager
async def controller(
    settings: Settings,
    clock: Clock,
    environ: Mapping[str, str],
    *,
    remote_for: Callable[[str], str] | None = None,
) -> AsyncIterator[Controller]:
    """A running controller without its socket.

    :param environ: what child processes (git) may see of the process's environment: PATH, proxies, certificates.
    :param remote_for: where a repository URL is really read from; for tests.
    :raises Unavailable: the database does not answer.
    :raises SchemaError: it has not the schema that this program knows.
    """
    wakeups = Wakeups()
    metrics = _metrics(settings)
    db = Database(settings.database_url, pool_size=settings.pool_size, observer=metrics)
    await db.open()
    try:
        async with aiohttp.ClientSession() as session:
            sources = _sources(settings, clock, environ, session, remote_for)
            engine = Engine(_context(settings, clock, db, wakeups, sources, metrics))
            await engine.check()
            async with db.connection() as tx:
                await backends.ensure.run(tx, slugs=[b.slug for b in settings.backends], now=clock.now())
            listener = _listener(settings, clock, engine, wakeups)
            counts = TelemetryCounts()
            traced = tracing(settings.traces, version=settings.version, engine=engine, clock=clock, counts=counts)
            await traced.begin()
            page = _metrics_page(settings, clock, metrics, engine, db, wakeups, listener, counts)
            lag = LoopLag(clock, lambda seconds: metrics.lagged(seconds=seconds))
            loops = [*_loops(settings, clock, engine, wakeups, traced.tracer), *traced.exporters]
            services = Services([listener, lag, *loops])
            services.start()
            try:
                app = make_app(settings, clock, engine, metrics)
                app[TRACER] = traced.tracer
                page.add_to(app)
                yield Controller(app=app, engine=engine, metrics=page.make_app(clock))
            finally:
                engine.close()
                await services.stop()
                await sources.close()
    finally:
        await db.close()


def make_app(settings: Settings, clock: Clock, engine: Engine, observer: Observer = UNOBSERVED) -> web.Application:
    """Every dialect over one engine."""
    app = web.Application(client_max_size=settings.max_body)
    app[OBSERVER] = observer
    app[ENGINE] = engine
    app[TOKENS] = _tokens(settings, engine)
    app[CLOCK] = clock
    middleware.install(app)
    health.add_to(app, {"database": engine.check})
    app.add_subapp("/controller/v1", rap.make_app())
    app.add_subapp("/agent/v1", agents.make_app())
    app.add_subapp("/api", native.make_app())
    ui.add_to(app)
    tasks.add_to(app)

    async def release_waiters(_: web.Application) -> None:
        engine.close()

    app.on_shutdown.append(release_waiters)
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """What serves `app` on sockets.

    A client that goes away takes its request along: the handler is cancelled and its transaction rolled back. So no
    long-poll claims a task for an agent that is gone, and no RAP is made for a portal that has given up on it.
    """
    return web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=_DRAIN_SECONDS,
        handler_cancellation=True,
        max_field_size=_MOST_HEADER,
    )


def _sources(
    settings: Settings,
    clock: Clock,
    environ: Mapping[str, str],
    session: aiohttp.ClientSession,
    remote_for: Callable[[str], str] | None,
) -> Sources:
    git = Git(
        settings.workdir,
        allowed_orgs=settings.allowed_orgs,
        allow_local=settings.allow_local_git_repos,
        proxy_domain=settings.github_proxy_domain or None,
        token=settings.private_repo_access_token or None,
        timeout=settings.git_timeout,
        environ=environ,
        remote_for=remote_for,
        clock=clock,
    )
    pinned = settings.image_digests == "registry"
    return Sources(
        git=git,
        projects=ProjectFiles(git, may_ask=settings.job_resources),
        reusable=ReusableActions(git),
        digests=ImageDigests(settings.docker_registry, session, clock=clock) if pinned else None,
    )


def _metrics(settings: Settings) -> Metrics:
    return Metrics(
        backends=[backend.slug for backend in settings.backends],
        queries={query.sql: query.full_name for query in queries.ALL},
        version=settings.version,
    )


def _metrics_page(
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    engine: Engine,
    db: Database,
    wakeups: Wakeups,
    listener: Listener,
    counts: TelemetryCounts,
) -> MetricsPage:
    sources = Measured(
        gauge=engine.gauge,
        pool=lambda: db.pool,
        wakeups=wakeups,
        tasks_channel=backends.TASKS_CHANNEL,
        listening=lambda: listener.connected,
        counts=counts,
    )
    return MetricsPage(
        metrics.registry,
        Moments(sources, clock),
        token=settings.metrics_token,
        backends=[backend.slug for backend in settings.backends],
    )


def _context(
    settings: Settings, clock: Clock, db: Database, wakeups: Wakeups, sources: Sources, observer: Observer
) -> Context:
    return Context(
        db=db,
        clock=clock,
        wakeups=wakeups,
        sources=sources,
        backends={backend.slug: _terms(settings, backend) for backend in settings.backends},
        event_level_projects=frozenset(settings.event_level_projects),
        retry=settings.retry,
        lease_seconds=settings.lease_seconds,
        poll_seconds=settings.poll_seconds,
        log_bytes=settings.log_bytes,
        closing=asyncio.Event(),
        observer=observer,
    )


def _terms(settings: Settings, backend: BackendSettings) -> BackendTerms:
    return BackendTerms(
        limits=Limits(workers=backend.max_workers, db_workers=backend.max_db_workers),
        weights=backend.weights,
        most=backend.job_most,
        checks=definitions(
            settings.docker_registry,
            status=backend.slug in settings.checks.status,
            expected_month=settings.checks.expected_month if backend.slug in settings.checks.data else None,
        ),
        terms=Terms(
            docker_registry=settings.docker_registry,
            ordinary=backend.job_limits,
            level4_max_csv_rows=settings.level4_max_csv_rows,
            level4_max_filesize=settings.level4_max_filesize,
            level4_file_types=settings.level4_file_types,
            stata_license=settings.stata_license,
            ehrql_max_join_count=settings.ehrql_max_join_count,
        ),
    )


def _tokens(settings: Settings, engine: Engine) -> Tokens:
    """The environment's tokens: one may open several backends, in their configured order; the engine knows others."""
    opened: dict[str, dict[str, frozenset[Verb]]] = {}
    for backend in settings.backends:
        for token in dict.fromkeys((*backend.client_tokens, *backend.operator_tokens)):
            verbs = _OPERATES if token in backend.operator_tokens else _USES
            opened.setdefault(token, {})[backend.slug] = verbs
    return Tokens(
        clients={token: _principal(grants) for token, grants in opened.items()},
        agents={backend.slug: [backend.agent_token] if backend.agent_token else [] for backend in settings.backends},
        recognise=engine.recognise,
    )


def _principal(grants: Mapping[str, frozenset[Verb]]) -> Principal:
    """Who holds a token with these grants."""
    operated = [slug for slug, verbs in grants.items() if Verb.MANAGE in verbs]
    used = [slug for slug in grants if slug not in operated]
    parts = [f"{role} of {', '.join(slugs)}" for role, slugs in (("operator", operated), ("client", used)) if slugs]
    return Principal(name=", ".join(parts), grants=grants)


def _listener(settings: Settings, clock: Clock, engine: Engine, wakeups: Wakeups) -> Listener:
    def heard(channel: str, payload: str) -> None:
        if channel == tokens.TOKENS_CHANNEL:
            engine.forget_tokens()
        else:
            wakeups.wake(channel, payload)

    return Listener(
        settings.database_url,
        (backends.TASKS_CHANNEL, backends.SCHEDULE_CHANNEL, events.EVENTS_CHANNEL, tokens.TOKENS_CHANNEL),
        clock,
        heard=heard,
        reconnected=engine.forget_tokens,  # it wakes everybody, too
    )


def _loops(settings: Settings, clock: Clock, engine: Engine, wakeups: Wakeups, tracer: Tracer) -> list[Loop]:
    schedulers = [
        Scheduler(
            engine,
            wakeups,
            backend.slug,
            clock=clock,
            safety_seconds=settings.safety_seconds,
            lease_seconds=settings.lease_seconds,
            tracer=tracer,
        )
        for backend in settings.backends
    ]
    return [*schedulers, Broadcaster(engine, wakeups, clock=clock), *_pruners(settings, clock, engine)]


def _pruners(settings: Settings, clock: Clock, engine: Engine) -> list[Loop]:
    """One, if the setting wants anything to be forgotten."""
    if not settings.retention_days:
        return []
    older_than = timedelta(days=settings.retention_days)
    return [Pruner(engine, [backend.slug for backend in settings.backends], clock=clock, older_than=older_than)]

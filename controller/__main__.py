"""`rap controller`: environment -> settings -> application -> a listening socket until SIGTERM or SIGINT.

The only place of the controller that reads the environment. Exit codes: 0 after a graceful stop, 2 for a
configuration or a database that it cannot start with; each is one clear line.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping

import structlog
from aiohttp import web

from common import logs
from common.clock import SystemClock
from common.environ import ConfigurationError
from controller.app import controller, make_runner
from controller.core.errors import Unavailable
from controller.engine.facade import Engine
from controller.settings import Settings, from_environ, read_weights
from controller.store.schema import SchemaError

log = structlog.get_logger(__name__)


def main(environ: Mapping[str, str] | None = None) -> int:
    """Run until told to stop; the process's exit code."""
    environ = dict(os.environ) if environ is None else environ
    try:
        settings = from_environ(environ)
    except ConfigurationError as error:
        print(error, file=sys.stderr)  # noqa: T201  before there is a logger
        return 2
    logs.configure(settings.log_level, settings.log_format, secrets=settings.secrets)
    try:
        asyncio.run(_serve(settings, environ))
    except (SchemaError, Unavailable, OSError) as error:
        print(f"rap controller: {error}", file=sys.stderr)  # noqa: T201  the one line for who started it
        return 2
    return 0


async def _serve(settings: Settings, environ: Mapping[str, str]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with controller(settings, SystemClock(), environ) as made:
        reloads: set[asyncio.Task[None]] = set()

        def reload() -> None:
            reloads.add(task := loop.create_task(reload_weights(settings, made.engine)))
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, reload)
        runner, metrics = make_runner(made.app), make_runner(made.metrics)
        await runner.setup()
        try:
            if settings.metrics_listen is not None:
                await metrics.setup()
                await web.TCPSite(metrics, *settings.metrics_listen, reuse_address=True).start()
            site = web.TCPSite(runner, settings.listen_host, settings.listen_port, reuse_address=True)
            await site.start()
            log.info(
                "controller_ready",
                listen=[f"{host}:{port}" for host, port, *_ in runner.addresses],
                metrics=[f"{host}:{port}" for host, port, *_ in metrics.addresses],
                backends=[backend.slug for backend in settings.backends],
                version=settings.version,
            )
            await stop.wait()
            log.info("controller_stopping")
        finally:
            await runner.cleanup()
            await metrics.cleanup()


async def reload_weights(settings: Settings, engine: Engine) -> None:
    """Read the weights files again; where one has mistakes, the old weights stay."""
    for backend in settings.backends:
        if backend.weights_file is None:
            continue
        try:
            engine.set_weights(backend.slug, await asyncio.to_thread(read_weights, backend.weights_file))
        except ValueError as error:
            log.error("weights_refused", backend=backend.slug, file=str(backend.weights_file), error=str(error))
        else:
            log.info("weights_read", backend=backend.slug, file=str(backend.weights_file))


if __name__ == "__main__":
    sys.exit(main())

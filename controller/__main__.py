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
from controller.settings import Settings, from_environ
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
        runner = make_runner(made.app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, settings.listen_host, settings.listen_port, reuse_address=True)
            await site.start()
            log.info(
                "controller_ready",
                listen=[f"{host}:{port}" for host, port, *_ in runner.addresses],
                backends=[backend.slug for backend in settings.backends],
                version=settings.version,
            )
            await stop.wait()
            log.info("controller_stopping")
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())

"""A git host for tests: real git behind real HTTPS, with a certificate of its own, in the place of GitHub's proxy.

`git http-backend` does the work; the handler around it checks tokens, and sends those on who ask for what has moved.
"""

import asyncio
import os
import ssl
import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from attrs import define, field

from tests.sources.repositories import ENVIRONMENT, Repository


@define
class GitServer:
    """The host, and who has asked it for what."""

    base: Path
    """Bare repositories, `<organisation>/<name>`."""
    certificate: Path
    """Who trusts this file trusts the host."""
    domain: str = ""
    """`host:port`, as GITHUB_PROXY_DOMAIN takes it."""
    token: str = ""
    """What must be known to read anything; empty for nothing."""
    refused: set[str] = field(factory=set)
    """Users whose token is not taken."""
    moved: dict[str, str] = field(factory=dict)
    """Path of a repository -> address that it is redirected to."""
    asked: list[tuple[str, str]] = field(factory=list)
    """Path, and the Authorization header in clear (`user:token`), of every request."""

    def repository(self, name: str) -> Repository:
        """A new repository."""
        return Repository(self.base, name)

    def users(self) -> set[str]:
        """Who has shown credentials."""
        return {said.partition(":")[0] for _, said in self.asked if said}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request of a git client."""
        said = b64decode(request.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        self.asked.append((request.path, said))
        for path, target in self.moved.items():
            if request.path.startswith(path):
                raise web.HTTPMovedPermanently(target + request.path_qs.removeprefix(path))
        user, _, token = said.partition(":")
        if (self.token and token != self.token) or user in self.refused:
            # As a careless proxy does, it repeats what it was told: nobody may write that down.
            header = {"WWW-Authenticate": 'Basic realm="git"'}
            raise web.HTTPUnauthorized(text=f"no: {request.headers.get('Authorization')} {said}\n", headers=header)
        return await self._ask_git(request)

    async def _ask_git(self, request: web.Request) -> web.Response:
        body = await request.read()
        process = await asyncio.create_subprocess_exec(
            "git",
            "http-backend",
            env=ENVIRONMENT
            | {
                "GIT_PROJECT_ROOT": str(self.base),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
                "REQUEST_METHOD": request.method,
                "PATH_INFO": request.path,
                "QUERY_STRING": request.query_string,
                "CONTENT_TYPE": request.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "REMOTE_ADDR": request.remote or "",
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate(body)
        head, _, content = said.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        return web.Response(status=status, headers=headers, body=content)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that vouches for itself, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", *words.split(), *names, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    return certificate, key


@asynccontextmanager
async def serving(folder: Path, *, token: str = "") -> AsyncIterator[GitServer]:
    """A host without repositories, in the loop of the test."""
    await asyncio.to_thread(os.makedirs, folder)
    certificate, key = await asyncio.to_thread(make_certificate, folder)
    server = GitServer(base=folder / "repositories", certificate=certificate, token=token)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        server.domain = f"localhost:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()

"""Running `git`: the same everywhere, never asking anybody anything, never telling a secret.

The machine's own git configuration is not read; ours is a file in the work folder. Secrets go by environment, never
on a command line, and are masked in everything that comes back.
"""

import asyncio
import base64
import os
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from common import certificates
from common.clock import Clock
from controller.core.errors import Unavailable
from controller.sources import child

log = structlog.get_logger(__name__)

USERNAME: Final = "jobrunner-ctrl"
"""What upstream's git proxy knows the controller by (reference section 4.2); GitHub takes any name with a token."""

_INHERITED: Final = (
    "PATH",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
"""What of the process's environment concerns git."""

# A redirect would lead past the allowed organisations, and git sends our token along, whatever host it leads to.
_CONFIG: Final = """\
# Written by the controller, read by nothing else.
[safe]
    directory = *
[core]
    hooksPath = /dev/null
    fsmonitor = false
[credential]
    helper =
[gc]
    autoDetach = false
[http]
    followRedirects = false
    lowSpeedLimit = 1
    lowSpeedTime = {seconds}
"""


class GitCommand:
    """How to call git.

    :param workdir: a folder of ours; made if it is missing.
    :param environ: the process's environment, of which only what concerns git is passed on.
    :param secret_for: URL prefix and token that opens what is below it.
    :param timeout: seconds that one call may take.
    :param concurrency: calls at the same time.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        environ: Mapping[str, str],
        secret_for: tuple[str, str] | None,
        timeout: float,
        clock: Clock,
        concurrency: int,
        binary: str,
    ) -> None:
        self.workdir = workdir
        self.timeout = timeout
        self.clock = clock
        self._binary = binary
        self._slots = asyncio.Semaphore(concurrency)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="git")
        self._ready = asyncio.Lock()
        self._is_ready = False
        self._env = {name: environ[name] for name in _INHERITED if name in environ}
        self._env.setdefault("PATH", os.defpath)
        self._env |= certificates.for_git(environ)
        self._env |= {
            "HOME": str(workdir),
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "false",
            "SSH_ASKPASS": "false",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(workdir / "gitconfig"),
            "GIT_CEILING_DIRECTORIES": str(workdir.parent),
            "GIT_OPTIONAL_LOCKS": "0",
        }
        self._secrets: tuple[str, ...] = ()
        if secret_for is not None:
            self._add_secret(*secret_for)

    def _add_secret(self, prefix: str, token: str) -> None:
        basic = base64.b64encode(f"{USERNAME}:{token}".encode()).decode()
        self._secrets = (basic, token, urllib.parse.quote(token, safe=""))
        self._env |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{prefix}.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
        }

    def mask(self, text: str) -> str:
        """`text` without our secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def run(
        self,
        *args: str,
        protocol: str = "",
        stdin: bytes = b"",
        max_output: int = 1 << 20,
        keep_open: Sequence[int] = (),
        ceiling: Path | None = None,
    ) -> child.Finished:
        """One call of git; its standard error comes back masked.

        :param protocol: the only transport that git may use; none if empty.
        :param ceiling: folder above which git looks for no repository, if not the work folder's parent.
        :raises child.TimedOut, child.TooMuchOutput: it was killed.
        :raises Unavailable: git, or its work folder, is not usable here.
        """
        await self._prepare()
        env = self._env | {"GIT_ALLOW_PROTOCOL": protocol}
        if ceiling is not None:
            env["GIT_CEILING_DIRECTORIES"] = str(ceiling)
        async with self._slots:
            try:
                done = await child.run(
                    [self._binary, *args],
                    env=env,
                    clock=self.clock,
                    pool=self._pool,
                    seconds=self.timeout,
                    max_output=max_output,
                    stdin=stdin,
                    keep_open=keep_open,
                )
            except FileNotFoundError as error:
                raise Unavailable("git is not installed on the controller", retry_after=60) from error
        if done.code:
            stderr = self.mask(done.stderr).strip()
            log.info("git failed", command=args[:3], code=done.code, stderr=stderr[-1000:])
            return child.Finished(code=done.code, stdout=done.stdout, stderr=stderr)
        return done

    async def _prepare(self) -> None:
        async with self._ready:
            if self._is_ready:
                return
            try:
                await asyncio.to_thread(self._write_config)
            except OSError as error:
                text = f"The folder for git repositories cannot be used: {error}"
                raise Unavailable(text, retry_after=60) from error
            self._is_ready = True

    def _write_config(self) -> None:
        self.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Renamed into place: another controller may be reading it.
        fd, fresh = tempfile.mkstemp(prefix="gitconfig.", dir=self.workdir)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(_CONFIG.format(seconds=max(1, round(self.timeout))))
        Path(fresh).replace(self.workdir / "gitconfig")

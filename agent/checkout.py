"""Puts the files of a commit into a job's volume: reference sections 4.2 and 5.2.

One bare cache per repository keeps every commit that was ever needed here. Files are written from the cache
through an index of their own, so no `.git` ends up in the volume, no hook runs, no filter is applied, submodules
stay empty folders and symlinks stay symlinks. Git is a child process with a time limit, its own configuration
and an environment without the agent's secrets; faults are told apart by exit codes, never by git's words.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from attrs import frozen

from agent.core.errors import BadSource, JobError, SourceUnavailable
from agent.core.redact import redact_text
from agent.outputs.workspaces import replacing
from agent.waits import bounded
from common import certificates
from common.clock import Clock

_log = structlog.get_logger()

_PASSED: Final = re.compile(r"PATH|LD_LIBRARY_PATH|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)|TMPDIR", re.IGNORECASE)
# A redirect would lead past the allowed organisations, and git sends our token along, whatever host it leads to.
_CONFIG: Final = """\
# Written by the agent at every start.
[safe]
\tdirectory = *
[gc]
\tauto = 0
[maintenance]
\tauto = false
[protocol "ext"]
\tallow = never
[protocol]
\tversion = 2
[credential]
\thelper =
[core]
\thooksPath = /dev/null
[fetch]
\trecurseSubmodules = false
[http]
\tfollowRedirects = false
"""


@frozen(kw_only=True)
class Rules:
    """Which repositories may be used."""

    allow_local: bool
    """Whether a URL that begins with `/` is a folder on this machine."""
    allowed_orgs: tuple[str, ...]
    proxy_domain: str = ""
    """Host that stands in for github.com; empty to go there directly."""

    def check(self, url: str) -> None:
        """Pass if the repository may be used here.

        :raises BadSource: it may not; the text is section 4.2's.
        """
        if self.allow_local and url.startswith("/"):
            return
        parts = urlsplit(url)
        if parts.scheme != "https" or parts.netloc != "github.com":
            # The netloc is compared whole: a user name or password in a URL would end up on git's command line.
            raise BadSource("Repository URL does not start with https://github.com")
        names = parts.path.strip("/").split("/")
        if names[0] not in self.allowed_orgs:
            allowed = " ".join(self.allowed_orgs)
            raise BadSource(f"Repository {url} does not belong to one of the following Github organisations: {allowed}")
        if len(names) != 2 or not re.fullmatch(r"[A-Za-z0-9._-]+", names[1]) or parts.query or parts.fragment:
            raise BadSource(
                f"Repository {url} was not of the expected format: https://github.com/[organisation]/[project-name]"
            )

    def route(self, url: str) -> str:
        """Where to fetch an allowed repository from."""
        if not self.proxy_domain or url.startswith("/"):
            return url
        return f"https://{self.proxy_domain}{urlsplit(url).path}"

    def authorise(self, user: str, token: str) -> dict[str, str]:
        """Environment that makes git send `token` to the repositories' host: never on a command line or in a file."""
        if not token:
            return {}
        credentials = base64.b64encode(f"{user}:{token}".encode()).decode()
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.https://{self.proxy_domain or 'github.com'}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {credentials}",
        }


@frozen(kw_only=True)
class _Ended:
    code: int
    stdout: bytes
    words: str
    """The end of what git said, for people inside the backend; without the credentials, which a server may repeat."""


class Checkouts:
    """Checks out commits, many at once; fetches into one repository's cache take turns."""

    def __init__(
        self, *, cache: Path, rules: Rules, clock: Clock, time_limit: float, user: str = "", token: str = "",
        git: str = "git", environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """:param time_limit: seconds that one git command may take.
        :param token: reads private repositories, together with `user`; empty for none.
        """
        self._cache = cache
        self._rules = rules
        self._clock = clock
        self._time_limit = time_limit
        self._git_command = git
        self._locks: dict[str, asyncio.Lock] = {}
        self._ready: set[Path] = set()
        source = os.environ if environ is None else environ
        passed = {key: value for key, value in source.items() if _PASSED.fullmatch(key)}
        self._environ = (
            passed
            | certificates.for_git(source)
            | {
                "HOME": str(cache),
                "LANG": "C.UTF-8",
                "GIT_CONFIG_GLOBAL": str(cache / "gitconfig"),
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_TERMINAL_PROMPT": "0",
                "GIT_ASKPASS": "true",
                "GIT_ALLOW_PROTOCOL": "https:file",
                "GIT_LFS_SKIP_SMUDGE": "1",
            }
        )
        self._credentials = rules.authorise(user, token)
        basic = base64.b64encode(f"{user}:{token}".encode()).decode()
        self._secrets = (basic, token) if token else ()

    async def check_out(self, url: str, commit: str, volume: Path) -> None:
        """Write the files of `commit` into the empty folder `volume`.

        :raises BadSource: the repository or commit does not exist, or is not allowed here.
        :raises SourceUnavailable: it could not be reached now.
        """
        bare = await self._have(url, commit)
        index = self._cache / f"index-{uuid4().hex}"
        try:
            for arguments in (
                ("read-tree", commit),
                ("checkout-index", "--all", "--force", "--quiet"),
            ):
                ended = await self._git("--git-dir", str(bare), "--work-tree", str(volume), *arguments, index=index)
                if ended.code != 0:
                    raise OSError(f"git {arguments[0]} ended with {ended.code}: {ended.words}")
        finally:
            await asyncio.to_thread(index.unlink, missing_ok=True)

    async def read_file(self, url: str, commit: str, path: str, limit: int) -> bytes:
        """The contents of one file of a commit.

        :param limit: bytes; a larger file is refused.
        :raises BadSource: no such repository, commit or file, or it is too large.
        :raises SourceUnavailable: the repository could not be reached now.
        """
        bare = await self._have(url, commit)
        name = f"{commit}:{path}"
        size = await self._git("--git-dir", str(bare), "cat-file", "-s", name)
        if size.code != 0 or int(size.stdout) > limit:
            raise BadSource(f"{path} in commit {commit} is missing or larger than {limit} bytes")
        return (await self._git("--git-dir", str(bare), "cat-file", "blob", name)).stdout

    async def _have(self, url: str, commit: str) -> Path:
        """The bare cache of the repository, with the commit in it."""
        self._rules.check(url)
        url = url.rstrip("/") or url
        key = hashlib.sha256(url.encode()).hexdigest()[:24]
        bare = self._cache / f"{key}.git"
        async with self._locks.setdefault(key, asyncio.Lock()):
            if bare not in self._ready:
                await asyncio.to_thread(self._configure)
                ended = await self._git("init", "--quiet", "--bare", str(bare))
                if ended.code != 0:
                    raise OSError(f"git init ended with {ended.code}: {ended.words}")
                self._ready.add(bare)
            if not await self._has_commit(bare, commit):
                await asyncio.to_thread(self._unlock, bare)
                await self._fetch(bare, url, commit)
        return bare

    def _configure(self) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with replacing(self._cache / "gitconfig") as file:
            file.write(_CONFIG.encode())

    def _unlock(self, bare: Path) -> None:
        """Remove locks of a git that was killed with an earlier agent; ours is the only one here, under our lock."""
        for lock in (*bare.glob("*.lock"), *bare.glob("refs/fetched/*.lock")):
            lock.unlink(missing_ok=True)

    async def _has_commit(self, repository: Path, commit: str) -> bool:
        ended = await self._git("--git-dir", str(repository), "cat-file", "-e", f"{commit}^{{commit}}")
        return ended.code == 0

    async def _fetch(self, bare: Path, url: str, commit: str) -> None:
        """Fetch one commit, without history. The ref keeps it; it is only written when the fetch is complete.

        A commit is only said to be missing after a second look, at a repository that has just answered: otherwise a
        host that was away for a moment would be taken for an author's mistake.
        """
        arguments = ("--git-dir", str(bare), "fetch", "--quiet", "--no-tags", "--depth=1", self._rules.route(url))
        for _ in range(2):
            ended = await self._git(*arguments, f"{commit}:refs/fetched/{commit}", remote=True)
            if ended.code == 0 and await self._has_commit(bare, commit):
                return
            _log.warning("git fetch failed", repo_url=url, commit=commit, exit_code=ended.code, said=ended.words)
            if fault := await self._reach(url):
                raise fault
        raise BadSource(f"Error fetching commit {commit} from {url}")

    async def _reach(self, url: str) -> JobError | None:
        """Why the repository does not answer; None if it does."""
        asked = await self._git("ls-remote", "--quiet", "--heads", self._rules.route(url), remote=True)
        if asked.code == 0:
            return None
        if url.startswith("/"):
            return BadSource(f"Could not read from {url}")
        settings = "GITHUB_PROXY_DOMAIN and PRIVATE_REPO_ACCESS_TOKEN say where and how it is read"
        return SourceUnavailable(f"Could not read from {url}: {asked.words} ({settings})")

    async def _git(self, *arguments: str, index: Path | None = None, remote: bool = False) -> _Ended:
        """Run git to its end; with the credentials if it talks to a remote.

        :raises SourceUnavailable: it took longer than the time limit.
        """
        environ = self._environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
        if remote:
            environ |= self._credentials
        process = await asyncio.create_subprocess_exec(
            self._git_command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
        try:
            stdout, stderr = await bounded(self._clock, self._time_limit, process.communicate())
        except TimeoutError as error:
            raise SourceUnavailable(f"git took longer than {self._time_limit:g} s") from error
        finally:
            if process.returncode is None:
                # The whole group: git leaves the network to children of its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        words = redact_text(stderr.decode(errors="replace"), self._secrets).strip()[-500:]
        return _Ended(code=process.returncode or 0, stdout=stdout, words=words)

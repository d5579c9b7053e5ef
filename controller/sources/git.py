"""Repositories: does the branch exist, is the commit on it, what is in a file (reference section 4.2).

Nothing here trusts a URL, branch, commit or path to be harmless, and nothing waits for ever: every call of git has a
time limit. Local repositories are read in place, the others through a bare clone per URL.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

import structlog
from attrs import frozen

from common.clock import Clock, SystemClock
from controller.core.errors import SourceError
from controller.core.request_checks import GITHUB, check_branch, check_repo_url, is_local, shown
from controller.sources import child
from controller.sources.git_command import GitCommand
from controller.sources.mirror import SHALLOW_DEPTH, Mirror, protocol_of

log = structlog.get_logger(__name__)

FETCH_TRIES: Final = 5
FIRST_BACKOFF: Final = 4.0
"""Seconds before the second try, doubled for each further one."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REF: Final = re.compile(r"[^\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]+")
_LOCAL: Final = re.compile(r"/[^\x00\ud800-\udfff]*")
"""What the operating system takes as a path."""
_FLAKE: Final = re.compile(
    r"gnutls_handshake|GnuTLS recv error|TLS connection was non-properly terminated|SSL_ERROR_SYSCALL"
    r"|unexpected eof while reading"
)
"""What git says when a TLS connection breaks for no reason of ours; git has no other way to tell."""


class NoAnswer(SourceError):
    """The repository did not answer within the time limit."""


class FileTooLarge(SourceError):
    """The file exists, and is larger than it may be."""


@frozen(kw_only=True)
class _Entry:
    """A file in a commit."""

    object_id: str
    size: int


class Git:
    """Reads repositories.

    :param workdir: folder for bare clones and git's configuration.
    :param allowed_orgs: organisations at GitHub whose repositories may be used.
    :param allow_local: whether a `repo_url` may be a path on this machine.
    :param proxy_domain: host that stands in for github.com.
    :param token: opens private repositories at that host.
    :param timeout: seconds that one call of git may take.
    :param environ: the process's environment; only what concerns git (PATH, proxies, certificates) is used.
    :param remote_for: where a repository's URL is fetched from, if not from GitHub or its proxy: an https address or
        an absolute path.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        allowed_orgs: Sequence[str],
        allow_local: bool = False,
        proxy_domain: str | None = None,
        token: str | None = None,
        timeout: float = 60.0,
        environ: Mapping[str, str] | None = None,
        remote_for: Callable[[str], str] | None = None,
        clock: Clock | None = None,
        concurrency: int = 8,
        binary: str = "git",
    ) -> None:
        self._allowed_orgs = tuple(allowed_orgs)
        self._allow_local = allow_local
        self._base = f"https://{proxy_domain}" if proxy_domain else GITHUB
        self._remote_for = remote_for or (lambda url: self._base + url.removeprefix(GITHUB))
        self._clock = clock or SystemClock()
        self._git = GitCommand(
            workdir.absolute(),
            environ=environ or {},
            secret_for=(f"{self._base}/", token) if token else None,
            timeout=timeout,
            clock=self._clock,
            concurrency=concurrency,
            binary=binary,
        )
        self._mirrors: dict[str, Mirror] = {}

    async def check(self, repo_url: str, branch: str, commit: str) -> None:
        """Whether a request may run this commit: URL and organisation, branch, commit on the branch.

        Of a local repository nothing is asked here; `read_file` says what is missing.

        :raises SourceError: with the text for the user.
        :raises Unavailable: git does not work on this machine.
        """
        check_repo_url(repo_url, allowed_orgs=self._allowed_orgs, allow_local=self._allow_local)
        check_branch(repo_url, branch, allow_local=self._allow_local)
        if is_local(repo_url):
            return
        head = (await self.refs(repo_url, f"refs/heads/{branch}")).get(f"refs/heads/{branch}")
        if head is None:
            raise SourceError(f"Could not find branch '{shown(branch)}'", field="branch")
        if not _COMMIT.fullmatch(commit) or not await self.is_ancestor(repo_url, commit, head):
            name = f"'{shown(branch)}': {shown(commit)}"
            raise SourceError(f"Could not find commit on branch {name}", field="commit")

    async def refs(self, repo_url: str, *names: str) -> dict[str, str]:
        """Full ref name -> object id, of those `names` that the remote has; a tag's commit is at `<name>^{}`.

        :raises SourceError: the repository cannot be read.
        """
        names = tuple(name for name in names if _REF.fullmatch(name.removesuffix("^{}")))
        if not names:
            return {}
        remote = self._remote_for(_normal(repo_url))
        try:
            done = await self._git.run(
                "-C", str(self._git.workdir), "ls-remote", "--quiet", "--", remote, *names,
                protocol=protocol_of(remote),
            )  # fmt: skip
        except child.TimedOut:
            self._time_out(f"Could not read from {shown(repo_url)}")
        except child.TooMuchOutput as error:
            raise SourceError(f"Could not read from {shown(repo_url)}: too many branches match") from error
        if done.code:
            raise SourceError(f"Could not read from {shown(repo_url)}", field="repo_url")
        pairs = (line.split("\t", 1) for line in done.stdout.decode(errors="replace").splitlines())
        # git matches names by their ends and as patterns: only exact ones count.
        return {name: object_id for object_id, name in pairs if name in names}

    async def is_ancestor(self, repo_url: str, commit: str, head: str) -> bool:
        """Whether the history of `head` contains `commit`: ten commits are fetched, all only if that is not enough.

        :raises SourceError: the history cannot be fetched.
        """
        if commit == head:
            return True
        mirror = self._mirror(repo_url)
        if await mirror.is_ancestor(commit, head):
            return True
        try:
            async with mirror.locked():
                for depth in (SHALLOW_DEPTH, None):
                    await self._fetch(mirror, repo_url, head, depth=depth)
                    if await mirror.is_ancestor(commit, head):
                        return True
        except child.TimedOut:
            self._time_out(f"Error fetching commit {commit} from {shown(repo_url)}")
        return False

    async def read_file(self, repo_url: str, commit: str, path: str, max_bytes: int) -> bytes | None:
        """The content of a file at a commit; None if the commit has no such file.

        :raises SourceError: no such repository or commit, or the file is larger than `max_bytes`.
        :raises Unavailable: git does not work on this machine.
        """
        check_repo_url(repo_url, allowed_orgs=self._allowed_orgs, allow_local=self._allow_local)
        failed = f"Error fetching commit {shown(commit)} from {shown(repo_url)}"
        if not _COMMIT.fullmatch(commit):
            raise SourceError(failed, field="commit")
        try:
            where, ceiling = await self._locate(repo_url, commit)
            entry = await self._find(where, ceiling, repo_url, commit, path)
            if entry is None:
                return None
            if entry.size > max_bytes:
                raise FileTooLarge(
                    f"{path} in {shown(repo_url)} has {entry.size} bytes, more than the limit of {max_bytes}",
                    limit=max_bytes,
                )
            done = await self._git.run(
                *where, "cat-file", "blob", entry.object_id, max_output=max_bytes, ceiling=ceiling
            )
        except child.TimedOut:
            self._time_out(failed)
        if done.code:
            raise SourceError(failed, field="commit")
        return done.stdout

    async def _locate(self, repo_url: str, commit: str) -> tuple[tuple[str, ...], Path | None]:
        """Arguments that make git work on a repository that has the commit, and where not to look for another."""
        if is_local(repo_url):
            if not _LOCAL.fullmatch(repo_url):
                raise SourceError(f"Could not read from {shown(repo_url)}", field="repo_url")
            return ("-C", repo_url), Path(repo_url).parent
        mirror = self._mirror(repo_url)
        if not await mirror.has_commit(commit):
            async with mirror.locked():
                # Somebody else may have fetched it while we waited.
                if not await mirror.has_commit(commit):
                    await self._fetch(mirror, repo_url, commit, depth=1)
        return mirror.arguments, None

    async def _find(
        self, where: tuple[str, ...], ceiling: Path | None, repo_url: str, commit: str, path: str
    ) -> _Entry | None:
        """A file's object, without reading it."""
        asked = f"{commit}^{{commit}}\n{commit}:{path}\n".encode()
        done = await self._git.run(*where, "cat-file", "--batch-check", stdin=asked, ceiling=ceiling)
        if done.code:
            raise SourceError(f"Could not read from {shown(repo_url)}", field="repo_url")
        about_commit, about_file = (line.rsplit(" ", 2) for line in done.stdout.decode().splitlines())
        if about_commit[0] != commit:
            text = f"Error fetching commit {commit} from {shown(repo_url)}"
            raise SourceError(text, field="commit")
        if len(about_file) != 3 or about_file[1] != "blob":
            return None
        return _Entry(object_id=about_file[0], size=int(about_file[2]))

    async def _fetch(self, mirror: Mirror, repo_url: str, commit: str, *, depth: int | None) -> None:
        """Fetch, again and again only if the connection broke.

        :raises SourceError: it failed.
        """
        name = f"{commit} from {shown(repo_url)}"
        for attempt in range(FETCH_TRIES):
            if attempt:
                await self._clock.sleep(FIRST_BACKOFF * 2 ** (attempt - 1))
            done = await mirror.fetch(commit, depth=depth)
            if done.code == 0:
                return
            if not _FLAKE.search(done.stderr):
                raise SourceError(f"Error fetching commit {name}", field="commit")
        raise SourceError(
            f"Network error when fetching commit {name}\n"
            "(This may work if you try again later)",
            field="commit",
        )  # fmt: skip

    def _mirror(self, repo_url: str) -> Mirror:
        url = _normal(repo_url)
        if url not in self._mirrors:
            key = hashlib.sha256(url.encode()).hexdigest()[:32]
            path = self._git.workdir / "repos" / f"{key}.git"
            self._mirrors[url] = Mirror(path, self._remote_for(url), self._git)
        return self._mirrors[url]

    def _time_out(self, text: str) -> NoReturn:
        """
        :raises NoAnswer: `text`, and how long we waited.
        """
        raise NoAnswer(f"{text}: no answer within {self._git.timeout:g} seconds", field="repo_url") from None


def _normal(repo_url: str) -> str:
    """One spelling per repository."""
    return repo_url.rstrip("/")

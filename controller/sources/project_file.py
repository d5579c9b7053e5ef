"""`project.yaml` at a commit, read, parsed and checked; what a commit says never changes, so it is remembered."""

import asyncio
from typing import Final

from controller.core.errors import SourceError
from controller.core.project import Project, invalid, parse
from controller.core.request_checks import shown
from controller.sources import yaml_document
from controller.sources.cache import Cache
from controller.sources.git import Git

FILE_NAME: Final = "project.yaml"
DEFAULT_MAX_BYTES: Final = 1 << 20


class ProjectFiles:
    """Loads project files.

    :param max_bytes: the largest file that is read.
    :param remembered: how many projects are kept in memory.
    :param may_ask: whether actions may ask for resources (`controller.core.project.parse`).
    """

    def __init__(
        self, git: Git, *, max_bytes: int = DEFAULT_MAX_BYTES, remembered: int = 128, may_ask: bool = False
    ) -> None:
        self._git = git
        self._max_bytes = max_bytes
        self._may_ask = may_ask
        self._cache: Cache[tuple[str, str], Project] = Cache(remembered)

    async def load(self, repo_url: str, commit: str) -> Project:
        """The project at a commit. Callers that ask for the same one at the same time share one read.

        :raises SourceError: no such repository, commit or file, or the file is too large.
        :raises InvalidProject: the file is not YAML, or breaks a rule.
        :raises Unavailable: git does not work on this machine.
        """
        return await self._cache.get((repo_url, commit), lambda: self._read(repo_url, commit))

    async def close(self) -> None:
        """Give up reads that are under way."""
        await self._cache.close()

    async def _read(self, repo_url: str, commit: str) -> Project:
        body = await self._git.read_file(repo_url, commit, FILE_NAME, self._max_bytes)
        if body is None:
            raise SourceError(f"No {FILE_NAME} file found in {shown(repo_url)}", field="repo_url")
        # A large file takes a good part of a second: not on the event loop's thread.
        return await asyncio.to_thread(parse_file, body, may_ask=self._may_ask)


def parse_file(body: bytes, *, may_ask: bool = False) -> Project:
    """A project from the bytes of its file.

    :raises InvalidProject: with the whole text for the user.
    """
    try:
        data = yaml_document.load(body)
    except yaml_document.MalformedYaml as error:
        raise invalid(str(error)) from error
    return parse(data, may_ask=may_ask)

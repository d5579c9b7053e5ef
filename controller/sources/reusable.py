"""Reusable actions: from an image that is no image of ours to the approved code behind it (reference section 4.7)."""

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from controller.core.commands import Command, parse_command
from controller.core.errors import Rejected, SourceError
from controller.core.model import ReusableAction
from controller.core.plan import ResolvedAction, ReusableUse
from controller.core.request_checks import GITHUB, shown
from controller.core.shapes import Fault, check_mapping
from controller.sources import yaml_document
from controller.sources.git import FileTooLarge, Git, NoAnswer

FILE_NAME: Final = "action.yaml"
DEFAULT_MAX_BYTES: Final = 1 << 16

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")


class ReusableActions:
    """Looks actions up.

    :param base_url: the organisation that holds the actions' repositories.
    :param max_bytes: the largest `action.yaml` that is read.
    """

    def __init__(
        self, git: Git, *, base_url: str = f"{GITHUB}/opensafely-actions", max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self._git = git
        self._base_url = base_url
        self._max_bytes = max_bytes

    async def resolve(self, uses: Iterable[ReusableUse]) -> dict[str, ResolvedAction]:
        """What each image stands for, by image; all are looked up at the same time, and again for every request
        because tags can be moved.

        :raises SourceError: the first action in the order of `uses` that is not usable, and why.
        :raises Unavailable: git does not work on this machine.
        """
        uses = tuple(uses)
        answers = await asyncio.gather(*map(self._resolve, uses), return_exceptions=True)
        resolved = {}
        for use, answer in zip(uses, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            resolved[use.image] = answer
        return resolved

    async def _resolve(self, use: ReusableUse) -> ResolvedAction:
        try:
            return await self._look_up(use)
        except Rejected as error:
            text = f"in '{shown(use.action)}: {shown(use.image)}' {error.message}"
            raise SourceError(text, action=use.action, image=use.image) from error

    async def _look_up(self, use: ReusableUse) -> ResolvedAction:
        name, tag = use.image_name, use.image_version
        if not _NAME.fullmatch(name):
            raise SourceError(f"'{shown(name)}' contains invalid characters")
        repo_url = f"{self._base_url}/{name}"
        commit = await self._approved_commit(repo_url, tag)
        try:
            body = await self._git.read_file(repo_url, commit, FILE_NAME, self._max_bytes)
            if body is None:
                raise Fault(f"no {FILE_NAME} file found")
            command = await asyncio.to_thread(parse_action_file, body)
        except (Fault, yaml_document.MalformedYaml, FileTooLarge) as error:
            raise SourceError(
                f"invalid action, please open an issue on {repo_url}/issues: {error}",
            ) from error
        return ResolvedAction(source=ReusableAction(repo_url=repo_url, commit=commit), command=command)

    async def _approved_commit(self, repo_url: str, tag: str) -> str:
        """The commit of a tag, if it is on `main`."""
        ref, main = f"refs/tags/{tag}", "refs/heads/main"
        try:
            refs = await self._git.refs(repo_url, ref, f"{ref}^{{}}", main)
        except NoAnswer:
            raise
        except SourceError as error:
            raise SourceError(f"could not find a repo at {repo_url}") from error
        # An annotated tag is an object of its own; `^{}` is the commit that it names.
        commit = refs.get(f"{ref}^{{}}") or refs.get(ref)
        if commit is None:
            raise SourceError(f"'{tag}' is not a tag listed in {repo_url}/tags")
        if main not in refs or not await self._git.is_ancestor(repo_url, commit, refs[main]):
            raise SourceError(
                f"tag '{tag}' has not yet been approved for use (not merged into main branch)",
            )
        return commit


def parse_action_file(body: bytes) -> Command:
    """The `run` of an `action.yaml`.

    :raises yaml_document.MalformedYaml: not YAML.
    :raises Fault: no `run`, or one that may not stand behind an action.
    """
    data = check_mapping(yaml_document.load(body), FILE_NAME)
    if "run" not in data:
        raise Fault(f"{FILE_NAME} has no `run`")
    command = parse_command(data["run"])
    if command.is_reusable_action:
        raise Fault(f"`run` of {FILE_NAME} must use an image of the platform, not {command.image_name}")
    if command.requires_db:
        raise Fault(f"`run` of {FILE_NAME} may not access the database")
    return command

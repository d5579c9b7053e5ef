"""What a request must look like before anything is looked up (reference/opensafely.md section 4.2)."""

import re
from collections.abc import Sequence
from typing import Final

from controller.core.errors import Rejected, SourceError

GITHUB: Final = "https://github.com"

LONGEST_WORKSPACE: Final = 255
"""Characters; it is the name of a folder in every backend."""

_WORKSPACE: Final = re.compile(r"[a-zA-Z0-9_-]+")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_USER_INFO: Final = re.compile(r"(?<=://)\S*@")


def check_workspace(name: str) -> None:
    """
    :raises Rejected: characters that a folder of that name should not have.
    """
    if not _WORKSPACE.fullmatch(name):
        raise Rejected("Invalid workspace name (allowed are alphanumeric, dash and underscore)", field="workspace")
    if len(name) > LONGEST_WORKSPACE:
        raise Rejected(
            f"Invalid workspace name (it has {len(name)} characters, at most {LONGEST_WORKSPACE} are allowed)",
            field="workspace",
        )


def is_local(repo_url: str) -> bool:
    """Whether the URL is a path on this machine rather than an address."""
    return repo_url.startswith("/")


def check_repo_url(repo_url: str, *, allowed_orgs: Sequence[str], allow_local: bool) -> None:
    """A repository of an allowed organisation at GitHub, or a local path where those are allowed.

    :raises SourceError: anything else.
    """
    if allow_local and is_local(repo_url):
        return
    name = shown(repo_url)
    base, rest = repo_url[: len(GITHUB)], repo_url[len(GITHUB) :]
    if base != GITHUB or not (rest == "" or rest.startswith("/")):
        raise SourceError(f"Repository URL {name} does not start with {GITHUB}", field="repo_url")
    organisation, _, repository = rest.lstrip("/").partition("/")
    if organisation not in allowed_orgs:
        raise SourceError(
            f"Repository {name} does not belong to one of the following Github organisations: {' '.join(allowed_orgs)}",
            field="repo_url",
        )
    repository = repository.rstrip("/")
    # `.` and `..` would be another place once a server, or a folder of mirrors, resolves them.
    if rest[:2] == "//" or not _NAME.fullmatch(repository) or repository in (".", ".."):
        raise SourceError(
            f"Repository {name} was not of the expected format: {GITHUB}/[organisation]/[project-name]",
            field="repo_url",
        )


def check_branch(repo_url: str, branch: str, *, allow_local: bool) -> None:
    """
    :raises SourceError: no branch, where one is needed.
    """
    if not branch and not (allow_local and is_local(repo_url)):
        raise SourceError("A branch name must be supplied", field="branch")


def shown(text: str) -> str:
    """`text` from outside, fit for a sentence: no password, no control characters, of a sane length."""
    masked = _USER_INFO.sub("***@", text)[:300]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in masked)

"""What REPO on the command line stands for: a repository's address, branch and commit, found out with git."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import frozen
from yarl import URL

from cli.errors import Problem

_TIMEOUT: Final = 60
"""Seconds that git may take to talk to a server."""
_FULL_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:")


@frozen(kw_only=True)
class Source:
    """One commit of one repository."""

    repo_url: str
    """An address, or the absolute path of a local repository."""
    branch: str
    commit: str
    name: str
    """The repository's name in the characters of a workspace: its default workspace."""
    warnings: tuple[str, ...] = ()


def resolve(repo: str, branch: str | None, commit: str | None) -> Source:
    """Find out what to run.

    :param repo: a local path or an address.
    :param branch: default: the current branch (of an address: the one that its HEAD names).
    :param commit: default: the newest of `branch`. In a local repository any name that git understands.
    :raises Problem: there is no such repository, branch or commit.
    """
    if _ADDRESS.match(repo):
        return _remote(repo, branch, commit)
    path = Path(repo).expanduser()
    if not path.exists():
        raise Problem(f"REPO: there is no repository at {repo}")
    return _local(path.resolve(), branch, commit)


def workspace_name(repo: str) -> str:
    """The last part of an address or path, without `.git`, in the characters `a-zA-Z0-9_-`."""
    last = re.split(r"[/:]", repo.rstrip("/"))[-1].removesuffix(".git")
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", last).strip("-") or "workspace"


def _local(path: Path, branch: str | None, commit: str | None) -> Source:
    directory = path if path.is_dir() else path.parent
    bare = _git("-C", str(directory), "rev-parse", "--is-bare-repository", where=str(path)) == "true"
    root = _git(
        "-C",
        str(directory),
        "rev-parse",
        "--absolute-git-dir" if bare else "--show-toplevel",
        where=str(path),
    )
    if branch is None:
        branch = _ask("-C", root, "symbolic-ref", "--short", "--quiet", "HEAD")
        if not branch:
            raise Problem(f"{root} is not on a branch: name one that holds the commit with --branch")
        wanted = commit or "HEAD"
    else:
        wanted = commit or f"refs/heads/{branch}"
    found = _ask("-C", root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}")
    if not found:
        raise Problem(_nothing_at(root, branch, commit))
    changed = [] if bare else _git("-C", root, "status", "--porcelain", where=root).splitlines()
    warnings: tuple[str, ...] = ()
    if changed:
        files = "1 file has" if len(changed) == 1 else f"{len(changed)} files have"
        warnings = (f"{files} changes in {root} that are not committed; what runs is commit {found[:10]}",)
    return Source(repo_url=root, branch=branch, commit=found, name=workspace_name(root), warnings=warnings)


def _nothing_at(root: str, branch: str, commit: str | None) -> str:
    if commit is not None:
        return f"--commit: {root} has no commit {commit}"
    if _ask("-C", root, "rev-parse", "--verify", "--quiet", "HEAD"):
        return f"--branch: {root} has no branch {branch}"
    return f"{root} has no commit yet"


def _remote(address: str, branch: str | None, commit: str | None) -> Source:
    if _has_password(address):
        raise Problem("REPO must not hold a user name or password: the controller would store it")
    if commit is not None and not _FULL_COMMIT.fullmatch(commit):
        raise Problem("--commit must be the full 40 characters (a-f, 0-9) for a repository that is not local")
    if branch is None:
        listing = _git("ls-remote", "--symref", "--", address, "HEAD", where=address)
        symbolic = re.search(r"^ref: refs/heads/(\S+)\tHEAD$", listing, re.MULTILINE)
        if symbolic is None:
            raise Problem(f"{address} does not say which branch is its main one: name one with --branch")
        branch = symbolic[1]
    else:
        listing = "" if commit else _git("ls-remote", "--", address, f"refs/heads/{branch}", where=address)
    newest = re.search(r"^([0-9a-f]{40})\t", listing, re.MULTILINE)
    if commit is None and newest is None:
        raise Problem(f"--branch: {address} has no branch {branch}")
    return Source(
        repo_url=address,
        branch=branch,
        commit=commit or (newest[1] if newest else ""),
        name=workspace_name(address),
    )


def _has_password(address: str) -> bool:
    """Whether an http(s) address carries credentials; in ssh addresses the user is part of the name."""
    try:
        url = URL(address)
    except ValueError:
        return False
    return url.password is not None or (url.scheme in ("http", "https") and url.user is not None)


def _git(*arguments: str, where: str) -> str:
    """What git answers.

    :raises Problem: git is missing, too slow, or says no.
    """
    done = _run(arguments, where)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["git gave no reason"])[0]
        raise Problem(f"REPO: {where} cannot be used: {said.removeprefix('fatal: ')}")
    return done.stdout.strip()


def _ask(*arguments: str) -> str:
    """What git answers; empty if it says no."""
    done = _run(arguments, "the repository")
    return "" if done.returncode else done.stdout.strip()


def _run(arguments: tuple[str, ...], where: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", *arguments],
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise Problem("git is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Problem(f"git had no answer about {where} within {_TIMEOUT} s") from error


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """git must not ask for a password, run helpers that an address names, or look elsewhere than we say."""
    kept = {
        name: value for name, value in environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    }
    return {
        **kept,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
        "GIT_SSH_COMMAND": environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"),
        "LC_ALL": "C.UTF-8",
    }

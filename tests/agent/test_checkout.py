"""Checkouts from real repositories: what lands in a volume, and whose fault it is if nothing does."""

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.checkout import Checkouts, Rules
from agent.core.errors import BadSource, SourceUnavailable
from tests.agent.hand_clock import HandClock
from tests.agent.stage import git, make_repo

RULES = Rules(allow_local=True, allowed_orgs=("opensafely",))


def make(folder: Path, clock: HandClock | None = None, **more: Any) -> Checkouts:
    return Checkouts(cache=folder / "cache", rules=RULES, clock=clock or HandClock(), time_limit=60, **more)


async def check_out(checkouts: Checkouts, url: str, commit: str, volume: Path) -> list[str]:
    await asyncio.to_thread(volume.mkdir)
    await checkouts.check_out(url, commit, volume)

    def listing() -> list[str]:
        return sorted(str(path.relative_to(volume)) for path in volume.rglob("*") if not path.is_dir())

    return await asyncio.to_thread(listing)


def make_history(folder: Path) -> tuple[str, str, str]:
    repo, first = make_repo(folder, {"a.py": "1", "dir/b.py": "2"})
    (folder / "c.py").write_text("3")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / ".gitattributes").write_text("a.py export-ignore\n*.py filter=evil\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=more")
    second = git(folder, "rev-parse", "HEAD")
    git(folder, "checkout", "--quiet", "--orphan", "fresh")
    git(folder, "commit", "--quiet", "--message=rewritten")
    git(folder, "branch", "--quiet", "-D", "main")
    return repo, first, second


async def test_any_commit_lands_whole_without_git(tmp_path: Path) -> None:
    repo, first, second = await asyncio.to_thread(make_history, tmp_path / "study")
    checkouts = make(tmp_path)
    assert await check_out(checkouts, repo, first, tmp_path / "one") == ["a.py", "dir/b.py"]
    assert await check_out(checkouts, repo, second, tmp_path / "two") == [
        ".gitattributes",
        "a.py",
        "c.py",
        "dir/b.py",
        "link",
    ]
    assert await asyncio.to_thread(os.readlink, tmp_path / "two/link") == "/etc/passwd"
    assert await checkouts.read_file(repo, second, "c.py", 10) == b"3"
    with pytest.raises(BadSource, match=r"c\.py"):
        await checkouts.read_file(repo, first, "c.py", 10)
    with pytest.raises(BadSource, match="larger"):
        await checkouts.read_file(repo, second, ".gitattributes", 10)


async def test_many_checkouts_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    repo, first, second = await asyncio.to_thread(make_history, tmp_path / "study")
    checkouts = make(tmp_path)
    listings = await asyncio.gather(
        *(check_out(checkouts, repo, (first, second)[n % 2], tmp_path / f"v{n}") for n in range(8))
    )
    assert [len(listing) for listing in listings] == [2, 5] * 4


async def test_a_commit_that_was_fetched_once_needs_the_repository_no_more(tmp_path: Path) -> None:
    repo, first, _ = await asyncio.to_thread(make_history, tmp_path / "study")
    await check_out(make(tmp_path), repo, first, tmp_path / "one")
    await asyncio.to_thread((tmp_path / "study").rename, tmp_path / "moved")
    await check_out(make(tmp_path), repo, first, tmp_path / "two")


async def test_locks_of_a_killed_git_are_no_obstacle(tmp_path: Path) -> None:
    repo, first, second = await asyncio.to_thread(make_history, tmp_path / "study")
    await check_out(make(tmp_path), repo, first, tmp_path / "one")
    bare = await asyncio.to_thread(lambda: next((tmp_path / "cache").glob("*.git")))
    await asyncio.to_thread((bare / "shallow.lock").touch)
    await check_out(make(tmp_path), repo, second, tmp_path / "two")


async def test_submodules_stay_empty(tmp_path: Path) -> None:
    def build() -> tuple[str, str]:
        repo, inner = make_repo(tmp_path / "study", {"a.py": "1"})
        git(tmp_path / "study", "update-index", "--add", "--cacheinfo", f"160000,{inner},sub")
        git(tmp_path / "study", "commit", "--quiet", "--message=sub")
        return repo, git(tmp_path / "study", "rev-parse", "HEAD")

    repo, commit = await asyncio.to_thread(build)
    assert await check_out(make(tmp_path), repo, commit, tmp_path / "volume") == ["a.py"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to somebody else")
async def test_a_repository_of_another_user_can_be_read(tmp_path: Path) -> None:
    repo, first, _ = await asyncio.to_thread(make_history, tmp_path / "study")
    await asyncio.to_thread(subprocess.run, ["chown", "-R", "12345", repo], check=True)
    assert await check_out(make(tmp_path), repo, first, tmp_path / "one") == ["a.py", "dir/b.py"]


async def test_what_is_not_there_is_the_users_fault(tmp_path: Path) -> None:
    repo, _, _ = await asyncio.to_thread(make_history, tmp_path / "study")
    checkouts = make(tmp_path)
    with pytest.raises(BadSource, match="Error fetching commit"):
        await check_out(checkouts, repo, "0" * 40, tmp_path / "one")
    with pytest.raises(BadSource, match="Could not read from"):
        await check_out(checkouts, str(tmp_path / "nowhere"), "0" * 40, tmp_path / "two")


async def test_a_git_that_hangs_is_ended(tmp_path: Path) -> None:
    def write() -> str:
        script = tmp_path / "git"
        script.write_text("#!/bin/sh\nsleep 1000 & wait\n")
        script.chmod(0o755)
        return str(script)

    clock = HandClock()
    checkouts = make(tmp_path, clock, git=await asyncio.to_thread(write))
    work = asyncio.create_task(checkouts.read_file("/somewhere", "0" * 40, "a", 10))
    await clock.until_sleeper(60)
    clock.advance(60)
    with pytest.raises(SourceUnavailable, match="60 s"):
        await work


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://github.com/opensafely/x", "does not start with"),
        ("https://evil.example.org/opensafely/x", "does not start with"),
        ("https://user:password@github.com/opensafely/x", "does not start with"),
        ("ext::sh -c evil", "does not start with"),
        ("--upload-pack=evil", "does not start with"),
        ("https://github.com/strangers/x", "organisations"),
        ("https://github.com/opensafely", "expected format"),
        ("https://github.com/opensafely/x/y", "expected format"),
        ("https://github.com/opensafely/x?y", "expected format"),
    ],
)
def test_repositories_that_are_not_allowed(url: str, fault: str) -> None:
    with pytest.raises(BadSource, match=fault) as raised:
        RULES.check(url)
    assert "password" not in str(raised.value)


def test_a_local_path_is_refused_unless_allowed() -> None:
    with pytest.raises(BadSource):
        Rules(allow_local=False, allowed_orgs=()).check("/some/repo")
    RULES.check("/some/repo")
    RULES.check("https://github.com/opensafely/study/")


def test_the_proxy_and_the_token_are_for_the_repositories_host_only() -> None:
    rules = Rules(allow_local=True, allowed_orgs=("opensafely",), proxy_domain="proxy.example.org")
    assert rules.route("https://github.com/opensafely/x") == "https://proxy.example.org/opensafely/x"
    assert rules.route("/local") == "/local"
    environ = rules.authorise("jobrunner-test", "token")
    assert environ["GIT_CONFIG_KEY_0"] == "http.https://proxy.example.org/.extraHeader"
    assert rules.authorise("x", "") == {}

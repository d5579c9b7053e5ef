"""Branches, reachability and files, asked of real repositories (reference section 4.2)."""

import asyncio
import fcntl
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from controller.core.errors import SourceError, Unavailable
from controller.sources.git import FileTooLarge, Git, NoAnswer
from tests.fakes.clock import ManualClock
from tests.sources.repositories import Repository, source

FILES = {"project.yaml": b"version: 4\n", "other.txt": b"x" * 100}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "github"


@pytest.fixture
def repository(base: Path) -> Repository:
    return Repository(base)


@pytest.fixture
def git(base: Path, tmp_path: Path) -> Git:
    return source(base, tmp_path / "work")


async def fault(git: Git, *args: str) -> str:
    with pytest.raises(SourceError) as caught:
        await git.check(*args)
    return str(caught.value)


async def test_the_head_and_its_ancestors_pass_however_old(git: Git, repository: Repository) -> None:
    commits = repository.history(50, FILES)
    for commit in (commits[-1], commits[-3], commits[0], commits[20]):
        await git.check(repository.url, "main", commit)
        assert await git.read_file(repository.url, commit, "project.yaml", 1000) == b"version: 4\n"


async def test_a_later_push_is_seen(git: Git, repository: Repository) -> None:
    first = repository.commit(FILES)
    await git.check(repository.url, "main", first)
    second = repository.commit({"project.yaml": b"new"})
    await git.check(repository.url, "main", second)
    await git.check(repository.url, "main", first)
    assert await git.read_file(repository.url, second, "project.yaml", 10) == b"new"


async def test_a_commit_that_was_forced_away_is_no_longer_on_the_branch(git: Git, repository: Repository) -> None:
    first = repository.commit(FILES)
    second = repository.commit({"project.yaml": b"second"})
    await git.check(repository.url, "main", second)
    assert await git.read_file(repository.url, second, "project.yaml", 10) == b"second"
    repository.commit({"project.yaml": b"third"}, parent=first)
    text = await fault(git, repository.url, "main", second)
    assert text == f"Could not find commit on branch 'main': {second}"


async def test_commits_elsewhere_do_not_count(git: Git, repository: Repository) -> None:
    repository.history(30, FILES)
    other = repository.commit({"x": b"y"}, branch="other", parent="main")
    loose = repository.commit({"x": b"z"}, branch=None)
    for commit in (other, loose, "0" * 40, "main", "--help", "", "a" * 39, "A" * 40):
        text = await fault(git, repository.url, "main", commit)
        assert text == f"Could not find commit on branch 'main': {commit}"
    await git.check(repository.url, "other", other)


@pytest.mark.parametrize(
    "branch",
    ["mai", "ain", "MAIN", "refs/heads/main", "heads/main", "m*", "ma?n", "tag", "--upload-pack=x", "-x", "a b", "x\n"],
)
async def test_only_branches_of_exactly_that_name_count(git: Git, repository: Repository, branch: str) -> None:
    commit = repository.commit(FILES)
    repository.git("tag", "tag", commit)
    repository.git("update-ref", "refs/pull/1/head", commit)
    assert (await fault(git, repository.url, branch, commit)).startswith("Could not find branch '")


async def test_branches_may_have_odd_names(git: Git, repository: Repository) -> None:
    for branch in ("feature/a", "-dash", "ünï", "main.x"):
        await git.check(repository.url, branch, repository.commit(FILES, branch=branch))
    repository.git("update-ref", "-d", "refs/heads/feature/a")
    await git.check(repository.url, "feature", repository.commit(FILES, branch="feature"))


async def test_a_branch_is_needed(git: Git, repository: Repository) -> None:
    assert await fault(git, repository.url, "", "0" * 40) == "A branch name must be supplied"


async def test_urls_are_checked_first(git: Git) -> None:
    assert "does not start with" in await fault(git, "/etc", "main", "0" * 40)
    with pytest.raises(SourceError, match="does not belong to"):
        await git.read_file("https://github.com/other/x", "0" * 40, "project.yaml", 10)


async def test_a_repository_that_does_not_exist(git: Git) -> None:
    url = "https://github.com/opensafely/nothing"
    assert await fault(git, url, "main", "0" * 40) == f"Could not read from {url}"
    with pytest.raises(SourceError, match=f"^Error fetching commit {'0' * 40} from {url}$"):
        await git.read_file(url, "0" * 40, "project.yaml", 10)


async def test_files_that_are_missing_too_large_or_no_files(git: Git, repository: Repository) -> None:
    commit = repository.commit(FILES)
    assert await git.read_file(repository.url, commit, "none.yaml", 10) is None
    assert await git.read_file(repository.url, commit, "", 10) is None
    assert await git.read_file(repository.url, commit, "other.txt", 100) == b"x" * 100
    with pytest.raises(FileTooLarge, match=r"other\.txt in .* has 100 bytes, more than the limit of 99"):
        await git.read_file(repository.url, commit, "other.txt", 99)


async def test_trailing_slashes_are_the_same_repository(git: Git, repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit(FILES)
    for url in (repository.url, f"{repository.url}/", f"{repository.url}//"):
        await git.check(url, "main", commit)
        assert await git.read_file(url, commit, "project.yaml", 100)
    assert len(list((tmp_path / "work" / "repos").glob("*.git"))) == 1


async def test_repositories_of_one_name_are_kept_apart(git: Git, base: Path) -> None:
    one, two = Repository(base), Repository(base, "opensafely-actions/study")
    first, second = one.commit({"f": b"1"}), two.commit({"f": b"2"})
    await git.check(one.url, "main", first)
    await git.check(two.url, "main", second)
    assert await fault(git, two.url, "main", first) == f"Could not find commit on branch 'main': {first}"


async def test_simultaneous_checks_of_one_repository(
    git: Git, base: Path, tmp_path: Path, repository: Repository
) -> None:
    """Through two clones' worth of locks: one process's, and another controller's on the same folder."""
    commits = repository.history(40, FILES)
    other = source(base, tmp_path / "work")
    await asyncio.gather(
        *(
            step
            for commit in commits[::5]
            for step in (
                git.check(repository.url, "main", commit),
                other.check(repository.url, "main", commit),
                git.read_file(repository.url, commit, "project.yaml", 100),
                other.read_file(repository.url, commit, "project.yaml", 100),
            )
        )
    )


async def test_what_a_killed_git_left_behind_is_no_obstacle(git: Git, repository: Repository, tmp_path: Path) -> None:
    commits = repository.history(30, FILES)
    await git.check(repository.url, "main", commits[-1])
    await git.read_file(repository.url, commits[-1], "project.yaml", 100)
    (mirror,) = (tmp_path / "work" / "repos").glob("*.git")
    for name in ("shallow.lock", "config.lock", "packed-refs.lock", f"refs/rap/{commits[-1]}.lock"):
        (mirror / name).touch()
    (mirror / "objects" / "pack" / "tmp_pack_x").touch()
    await git.check(repository.url, "main", commits[0])
    assert not list(mirror.glob("*.lock"))
    assert not list(mirror.glob("objects/pack/tmp_*"))


async def test_another_process_holding_the_clone_is_waited_for_until_the_limit(
    base: Path, tmp_path: Path, repository: Repository
) -> None:
    git = source(base, tmp_path / "work", timeout=0.2)
    commits = repository.history(3, FILES)
    await git.refs(repository.url, "refs/heads/main")
    assert await git.is_ancestor(repository.url, commits[0], commits[1])
    (lock,) = (tmp_path / "work" / "repos").glob("*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fresh = repository.commit({"f": b"new"})
        with pytest.raises(NoAnswer, match=r"no answer within 0\.2 seconds"):
            await git.read_file(repository.url, fresh, "f", 10)
    assert await git.read_file(repository.url, fresh, "f", 10) == b"new"


class TestLocal:
    """A `repo_url` that is a path."""

    @pytest.fixture
    def git(self, base: Path, tmp_path: Path) -> Git:
        return source(base, tmp_path / "work", allow_local=True)

    async def test_nothing_is_asked_of_the_branch(self, git: Git, repository: Repository) -> None:
        commit = repository.commit(FILES, branch=None)
        await git.check(str(repository.path), "", commit)
        assert await git.read_file(str(repository.path), commit, "project.yaml", 100) == b"version: 4\n"
        assert await git.read_file(str(repository.path), commit, "none", 100) is None

    async def test_what_is_missing_is_named(self, git: Git, repository: Repository, tmp_path: Path) -> None:
        repository.commit(FILES)
        path = str(repository.path)
        with pytest.raises(SourceError, match=f"^Error fetching commit {'0' * 40} from {path}$"):
            await git.read_file(path, "0" * 40, "project.yaml", 100)
        with pytest.raises(SourceError, match=r"^Error fetching commit --help from "):
            await git.read_file(path, "--help", "project.yaml", 100)
        for missing in (str(tmp_path / "nothing"), str(tmp_path), "/\0", "/\ud800"):
            with pytest.raises(SourceError, match=r"^Could not read from /"):
                await git.read_file(missing, "0" * 40, "project.yaml", 100)

    async def test_a_folder_inside_a_repository_is_not_one(self, git: Git, repository: Repository) -> None:
        commit = repository.commit(FILES)
        inside = repository.path / "inside"
        inside.mkdir()
        with pytest.raises(SourceError, match="Could not read from"):
            await git.read_file(str(inside), commit, "project.yaml", 100)

    async def test_a_tag_is_no_commit(self, git: Git, repository: Repository) -> None:
        commit = repository.commit(FILES)
        repository.git("tag", "-a", "-m", "x", "v1", commit)
        tag = repository.git("rev-parse", "v1")
        with pytest.raises(SourceError, match="Error fetching commit"):
            await git.read_file(str(repository.path), tag, "project.yaml", 100)


@pytest.fixture
async def silence() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An address that accepts connections and never says a word; and the signal that somebody has come."""
    reached = asyncio.Event()
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"https://{host}:{port}", reached
    gone.set()
    server.close()
    await server.wait_closed()


def git_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("git")]


async def test_a_remote_that_hangs_is_given_up(tmp_path: Path, silence: tuple[str, asyncio.Event]) -> None:
    address, reached = silence
    clock = ManualClock()
    git = source(tmp_path, tmp_path / "work", timeout=60, clock=clock, remote_for=lambda url: address + "/o/r")
    url = "https://github.com/opensafely/study"
    checking = asyncio.create_task(git.check(url, "main", "0" * 40))
    await reached.wait()
    assert git_processes()
    clock.advance(59)
    assert not checking.done()
    clock.advance(1)
    with pytest.raises(NoAnswer, match=f"^Could not read from {url}: no answer within 60 seconds$"):
        await checking
    assert git_processes() == []


async def test_a_fetch_that_hangs_is_given_up_and_frees_the_clone(
    tmp_path: Path, silence: tuple[str, asyncio.Event], repository: Repository, base: Path
) -> None:
    address, reached = silence
    clock = ManualClock()
    remotes = iter([f"{address}/o/r"])
    git = source(base, tmp_path / "work", timeout=60, clock=clock, remote_for=lambda url: next(remotes))
    commit = repository.commit(FILES)
    reading = asyncio.create_task(git.read_file(repository.url, commit, "project.yaml", 100))
    await reached.wait()
    clock.advance(60)
    with pytest.raises(NoAnswer, match=r"^Error fetching commit .* no answer within 60 seconds$"):
        await reading
    assert git_processes() == []
    other = source(base, tmp_path / "work")
    assert await other.read_file(repository.url, commit, "project.yaml", 100)


async def test_a_caller_that_gives_up_takes_git_along(tmp_path: Path, silence: tuple[str, asyncio.Event]) -> None:
    address, reached = silence
    git = source(tmp_path, tmp_path / "work", remote_for=lambda url: address + "/o/r")
    checking = asyncio.create_task(git.check("https://github.com/opensafely/study", "main", "0" * 40))
    await reached.wait()
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert git_processes() == []


async def test_cancelling_at_any_moment_leaves_nothing_locked(
    base: Path, tmp_path: Path, repository: Repository
) -> None:
    commits = repository.history(12, FILES)
    for steps in range(0, 60, 3):
        git = source(base, tmp_path / f"work-{steps}")
        tasks = [asyncio.create_task(git.check(repository.url, "main", commit)) for commit in commits[:3]]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await git.check(repository.url, "main", commits[0])


@pytest.mark.parametrize("remote", ["ext::sh -c 'touch /tmp/x'", "http://127.0.0.1:1/x", "ssh://127.0.0.1:1/x", "-x"])
async def test_no_other_transport_is_used(tmp_path: Path, remote: str) -> None:
    git = source(tmp_path, tmp_path / "work", remote_for=lambda url: remote)
    assert (await fault(git, "https://github.com/opensafely/study", "main", "0" * 40)).startswith("Could not read")


FAKE_GIT = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
if "init" in sys.argv:
    os.mkdir(sys.argv[-1])
    sys.exit(0)
sys.stderr.write({stderr!r})
sys.exit(128)
"""


def fake_git(tmp_path: Path, stderr: str) -> tuple[str, Path]:
    """A program that notes how it was called, complains, and fails."""
    program, log = tmp_path / "fake-git", tmp_path / "calls"
    program.write_text(FAKE_GIT.format(python=sys.executable, log=str(log), stderr=stderr))
    program.chmod(0o755)
    return str(program), log


async def test_the_token_is_neither_an_argument_nor_in_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "ghp_very/secret"
    binary, log = fake_git(tmp_path, f"fatal: https://x:{token}@proxy.example/ and Z2hwX3Zlcnk")
    git = Git(
        tmp_path / "work",
        allowed_orgs=["opensafely"],
        proxy_domain="proxy.example",
        token=token,
        environ={"PATH": "/bin", "SECRET_OF_OURS": "1", "HTTPS_PROXY": "http://p"},
        binary=binary,
    )
    text = await fault(git, "https://github.com/opensafely/study", "main", "0" * 40)
    (call,) = log.read_text().splitlines()
    argv, environ = call.split("], {", 1)
    assert "https://proxy.example/opensafely/study" in argv
    assert token not in argv
    assert "http.https://proxy.example/.extraHeader" in environ
    assert "GIT_TERMINAL_PROMPT" in environ
    assert "HTTPS_PROXY" in environ
    assert "SECRET_OF_OURS" not in environ
    captured = capsys.readouterr()
    for said in (text, caplog.text, captured.out, captured.err):
        assert token not in said
    assert token not in git._git.mask(f"x {token}")


class FetchFails:
    """`Git` over a program that fails every fetch with one text."""

    @staticmethod
    async def read(tmp_path: Path, stderr: str) -> tuple[str, int]:
        binary, log = fake_git(tmp_path, stderr)
        clock = BackoffClock()
        git = source(tmp_path, tmp_path / "work", binary=binary, clock=clock, timeout=1000)
        with pytest.raises(SourceError) as caught:
            await git.read_file("https://github.com/opensafely/study", "0" * 40, "project.yaml", 10)
        fetches = len(re.findall(r'"fetch"', log.read_text()))
        assert clock.waits == [4, 8, 16, 32][: fetches - 1]
        return str(caught.value), fetches


class BackoffClock(ManualClock):
    """Waits between tries are over at once and noted; the time limit of 1000 seconds is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        if seconds == 1000:
            await super().sleep(seconds)
        self.waits.append(seconds)


async def test_a_broken_connection_is_tried_again_and_then_named(tmp_path: Path) -> None:
    text, fetches = await FetchFails.read(tmp_path, "fatal: gnutls_handshake() failed: The TLS connection was")
    assert fetches == 5
    url = "https://github.com/opensafely/study"
    assert text.startswith(f"Network error when fetching commit {'0' * 40} from {url}")
    assert "try again later" in text


async def test_any_other_failure_is_final(tmp_path: Path) -> None:
    text, fetches = await FetchFails.read(tmp_path, "fatal: remote error: upload-pack: not our ref")
    assert fetches == 1
    assert text == f"Error fetching commit {'0' * 40} from https://github.com/opensafely/study"


async def test_the_machine_at_fault_is_not_the_callers_fault(tmp_path: Path, repository: Repository) -> None:
    git = source(tmp_path, tmp_path / "work", binary="git-that-is-not-there")
    with pytest.raises(Unavailable, match="git is not installed"):
        await git.check(repository.url, "main", "0" * 40)
    (tmp_path / "file").touch()
    git = source(tmp_path, tmp_path / "file" / "work")
    with pytest.raises(Unavailable, match="The folder for git repositories cannot be used"):
        await git.check(repository.url, "main", "0" * 40)


async def test_the_machines_own_git_configuration_is_not_read(
    base: Path, tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f'[url "/nowhere"]\n  insteadOf = {base}\n')
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    git = source(base, tmp_path / "work", environ=dict(os.environ))
    await git.check(repository.url, "main", repository.commit(FILES))

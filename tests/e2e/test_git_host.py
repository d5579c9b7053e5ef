"""The controller's git and the agent's git at a real HTTPS host: certificates, tokens, redirects."""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.checkout import Checkouts, Rules
from agent.core.errors import BadSource, SourceUnavailable
from common.clock import SystemClock
from controller.core.errors import SourceError
from controller.sources.git import Git
from tests.e2e.git_server import GitServer, serving
from tests.e2e.process_table import every_command_line

TOKEN = "ghp-canary-token-4711"
ORGS = ("opensafely", "opensafely-actions")
FILES = {"project.yaml": b"version: 4\n", "a.py": b"print(1)\n"}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[GitServer]:
    async with serving(tmp_path / "host", token=TOKEN) as server:
        yield server


def trusting(host: GitServer, variable: str = "SSL_CERT_FILE") -> dict[str, str]:
    return {"PATH": os.environ["PATH"], variable: str(host.certificate)}


def controllers(host: GitServer, folder: Path, *, token: str = TOKEN, environ: dict[str, str] | None = None) -> Git:
    return Git(
        folder / "controller",
        allowed_orgs=ORGS,
        proxy_domain=host.domain,
        token=token,
        environ=trusting(host) if environ is None else environ,
    )


def agents(host: GitServer, folder: Path, *, token: str = TOKEN, environ: dict[str, str] | None = None) -> Checkouts:
    return Checkouts(
        cache=folder / "agent",
        rules=Rules(allow_local=False, allowed_orgs=ORGS, proxy_domain=host.domain),
        clock=SystemClock(),
        time_limit=60,
        user="jobrunner-test",
        token=token,
        environ=trusting(host) if environ is None else environ,
    )


def kept(folder: Path) -> bytes:
    """Every byte that git and we have written."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def spellings(token: str) -> list[str]:
    """How a token can turn up: as it is, and as either side's git sends it."""
    users = ("jobrunner-ctrl", "jobrunner-test")
    return [token, *(b64encode(f"{user}:{token}".encode()).decode() for user in users)]


async def test_both_read_a_private_repository_through_the_proxy(host: GitServer, tmp_path: Path) -> None:
    repository = await asyncio.to_thread(host.repository, "opensafely/study")
    commits = await asyncio.to_thread(repository.history, 15, FILES)
    git, checkouts = controllers(host, tmp_path), agents(host, tmp_path)
    lines: set[str] = set()
    with capture_logs() as logged:
        async with every_command_line(lines):
            for commit in (commits[-1], commits[0]):  # the head; and one for which all of the history is needed
                await git.check(repository.url, "main", commit)
                assert await git.read_file(repository.url, commit, "project.yaml", 100) == b"version: 4\n"
            await asyncio.to_thread((tmp_path / "volume").mkdir)
            await checkouts.check_out(repository.url, commits[3], tmp_path / "volume")
    assert (tmp_path / "volume/a.py").read_text() == "print(1)\n"
    assert host.users() == {"jobrunner-ctrl", "jobrunner-test"}
    assert any("git" in line and host.domain in line for line in lines), "git was not seen at work"
    for spelling in spellings(TOKEN):
        assert spelling not in "\n".join(lines)
        assert spelling not in str(logged)
        assert spelling.encode() not in await asyncio.to_thread(kept, tmp_path)


@pytest.mark.parametrize("token", ["", "ghp-canary-wrong-0815"])
async def test_a_token_that_does_not_open_is_told_and_not_shown(host: GitServer, tmp_path: Path, token: str) -> None:
    repository = await asyncio.to_thread(host.repository, "opensafely/study")
    commit = await asyncio.to_thread(repository.commit, FILES)
    with capture_logs() as logged:
        with pytest.raises(SourceError) as refused:
            await controllers(host, tmp_path, token=token).check(repository.url, "main", commit)
        with pytest.raises(SourceUnavailable) as failed:
            await agents(host, tmp_path, token=token).check_out(repository.url, commit, tmp_path)
    assert refused.value.message == f"Could not read from {repository.url}"
    assert "PRIVATE_REPO_ACCESS_TOKEN" in str(failed.value)
    said = str(logged) + str(failed.value)
    assert "Authentication failed" in said
    if token:
        assert not [spelling for spelling in spellings(token) if spelling in said]


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "GIT_SSL_CAINFO"])
async def test_certificates_of_a_private_authority_are_trusted_where_named(
    host: GitServer, tmp_path: Path, variable: str
) -> None:
    repository = await asyncio.to_thread(host.repository, "opensafely/study")
    commit = await asyncio.to_thread(repository.commit, FILES)
    told, untold = trusting(host, variable), {"PATH": os.environ["PATH"]}
    await controllers(host, tmp_path, environ=told).check(repository.url, "main", commit)
    assert await agents(host, tmp_path, environ=told).read_file(repository.url, commit, "project.yaml", 100)
    host.asked.clear()
    with pytest.raises(SourceError, match="Could not read"):
        await controllers(host, tmp_path, environ=untold).check(repository.url, "main", commit)
    with pytest.raises(SourceUnavailable, match="certificate"):
        await agents(host, tmp_path / "fresh", environ=untold).check_out(repository.url, commit, tmp_path)
    assert host.asked == [], "nothing is said to a host whose certificate is not trusted, the token least of all"


async def test_redirects_lead_nowhere_and_take_no_token_along(host: GitServer, tmp_path: Path) -> None:
    async with serving(tmp_path / "elsewhere") as stranger:
        taken = await asyncio.to_thread(stranger.repository, "strangers/study")
        commit = await asyncio.to_thread(taken.commit, FILES)
        both = host.certificate.read_text() + stranger.certificate.read_text()
        await asyncio.to_thread((tmp_path / "both.pem").write_text, both)
        trust = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": str(tmp_path / "both.pem")}
        host.moved["/opensafely/study"] = f"https://{stranger.domain}/strangers/study"
        url = "https://github.com/opensafely/study"
        with pytest.raises(SourceError, match=f"Could not read from {url}"):
            await controllers(host, tmp_path, environ=trust).check(url, "main", commit)
        with pytest.raises(SourceError, match="Error fetching commit"):
            await controllers(host, tmp_path, environ=trust).read_file(url, commit, "project.yaml", 100)
        with pytest.raises(SourceUnavailable, match=f"Could not read from {url}: .*301"):
            await agents(host, tmp_path, environ=trust).check_out(url, commit, tmp_path)
        assert host.asked
        assert stranger.asked == []


async def test_what_is_not_there_is_the_authors_fault_on_the_agent(host: GitServer, tmp_path: Path) -> None:
    repository = await asyncio.to_thread(host.repository, "opensafely/study")
    await asyncio.to_thread(repository.commit, FILES)
    checkouts = agents(host, tmp_path)
    with pytest.raises(BadSource, match=f"Error fetching commit {'1' * 40} from {repository.url}"):
        await checkouts.check_out(repository.url, "1" * 40, tmp_path)
    with pytest.raises(SourceUnavailable, match="Could not read from"):
        await checkouts.check_out("https://github.com/opensafely/nothing", "1" * 40, tmp_path)

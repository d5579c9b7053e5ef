"""Digests, asked of a registry that exists only here."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import CallbackResult, aioresponses
from yarl import URL

from controller.core.errors import NotFound, Unavailable
from controller.sources.images import Glance, ImageDigests
from tests.fakes.clock import ManualClock

REGISTRY = "ghcr.io/opensafely-core"
MANIFEST = "https://ghcr.io/v2/opensafely-core/python/manifests/v2"
TOKEN = "https://ghcr.io/token"
SCOPE = "repository:opensafely-core/python:pull"
CHALLENGE = {"WWW-Authenticate": f'Bearer realm="{TOKEN}",service="ghcr.io",scope="{SCOPE}"'}
ASK = URL(TOKEN).update_query(service="ghcr.io", scope=SCOPE)
DIGEST = "sha256:" + "a" * 64
ANSWER = {"Docker-Content-Digest": DIGEST}


class Response(aiohttp.ClientResponse):
    """aioresponses makes responses as aiohttp did before 3.14, without a writer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"stream_writer": Mock()} | kwargs))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    monkeypatch.setattr("aioresponses.core.ClientResponse", Response)
    with aioresponses() as mocked:
        yield mocked


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def digests(session: aiohttp.ClientSession, clock: ManualClock) -> ImageDigests:
    return ImageDigests(REGISTRY, session, seconds=300, clock=clock)


def calls(registry: aioresponses, method: str, url: str | URL) -> list[Any]:
    return registry.requests.get((method, URL(url)), [])


async def test_a_public_registry_still_wants_a_token(registry: aioresponses, digests: ImageDigests) -> None:
    registry.head(MANIFEST, status=401, headers=CHALLENGE)
    registry.get(ASK, payload={"token": "abc"})
    registry.head(MANIFEST, headers=ANSWER)
    assert await digests.resolve("python:v2") == DIGEST
    first, second = calls(registry, "HEAD", MANIFEST)
    assert "Authorization" not in first.kwargs["headers"]
    assert second.kwargs["headers"]["Authorization"] == "Bearer abc"
    for kind in ("image.index.v1", "manifest.list.v2", "image.manifest.v1", "distribution.manifest.v2"):
        assert kind in second.kwargs["headers"]["Accept"]


async def test_the_registry_may_stand_in_front_of_the_name(registry: aioresponses, digests: ImageDigests) -> None:
    registry.head(MANIFEST, headers=ANSWER)
    assert await digests.resolve(f"{REGISTRY}/python:v2") == DIGEST
    assert await digests.resolve("python:v2") == DIGEST
    assert len(calls(registry, "HEAD", MANIFEST)) == 1


async def test_tags_move(registry: aioresponses, digests: ImageDigests, clock: ManualClock) -> None:
    registry.head(MANIFEST, headers=ANSWER)
    registry.head(MANIFEST, headers={"Docker-Content-Digest": "sha256:" + "b" * 64})
    assert await digests.resolve("python:v2") == DIGEST
    clock.advance(299)
    assert await digests.resolve("python:v2") == DIGEST
    clock.advance(1)
    assert await digests.resolve("python:v2") == "sha256:" + "b" * 64


async def test_simultaneous_callers_share_one_request(registry: aioresponses, digests: ImageDigests) -> None:
    registry.head(MANIFEST, headers=ANSWER)
    assert await asyncio.gather(*(digests.resolve("python:v2") for _ in range(10))) == [DIGEST] * 10
    assert len(calls(registry, "HEAD", MANIFEST)) == 1


async def test_a_registry_that_does_not_say_the_digest(registry: aioresponses, digests: ImageDigests) -> None:
    registry.head(MANIFEST)
    registry.get(MANIFEST, body=b"manifest")
    assert await digests.resolve("python:v2") == f"sha256:{hashlib.sha256(b'manifest').hexdigest()}"


@pytest.mark.parametrize("status", [404, 403])
async def test_no_such_image(registry: aioresponses, digests: ImageDigests, status: int) -> None:
    registry.head(MANIFEST, status=status)
    with pytest.raises(NotFound, match=r"^Image python:v2 was not found at ghcr\.io$"):
        await digests.resolve("python:v2")


async def test_a_token_that_opens_nothing(registry: aioresponses, digests: ImageDigests) -> None:
    registry.head(MANIFEST, status=401, headers=CHALLENGE, repeat=True)
    registry.get(ASK, payload={"access_token": "abc"})
    with pytest.raises(NotFound):
        await digests.resolve("python:v2")


@pytest.mark.parametrize(
    "image", ["python", "python:", "Python:v2", "../x:v2", "python:v2/../x", ":v2", "a b:v2", "x:-"]
)
async def test_names_that_are_none(registry: aioresponses, digests: ImageDigests, image: str) -> None:
    with pytest.raises(NotFound, match="is not a name and a tag"):
        await digests.resolve(image)
    assert not registry.requests


@pytest.mark.parametrize("failure", [TimeoutError(), aiohttp.ClientConnectionError(), 500, 429])
async def test_a_registry_in_trouble(registry: aioresponses, digests: ImageDigests, failure: Any) -> None:
    if isinstance(failure, int):
        registry.head(MANIFEST, status=failure)
    else:
        registry.head(MANIFEST, exception=failure)
    registry.head(MANIFEST, headers=ANSWER)
    with pytest.raises(Unavailable, match=r"^The digest of image python:v2 cannot be looked up at ghcr\.io$"):
        await digests.resolve("python:v2")
    assert await digests.resolve("python:v2") == DIGEST


@pytest.mark.parametrize(
    "challenge",
    ["", "Basic realm=x", 'Bearer realm="http://ghcr.io/token"', 'Bearer service="x"', 'Bearer realm="::::"'],
)
async def test_challenges_that_we_do_not_take(registry: aioresponses, digests: ImageDigests, challenge: str) -> None:
    registry.head(MANIFEST, status=401, headers={"WWW-Authenticate": challenge})
    with pytest.raises(Unavailable):
        await digests.resolve("python:v2")


@pytest.mark.parametrize("body", [b"[]", b"{}", b"nonsense", b'{"token": 3}'])
async def test_token_services_that_make_no_sense(registry: aioresponses, digests: ImageDigests, body: bytes) -> None:
    registry.head(MANIFEST, status=401, headers=CHALLENGE)
    registry.get(ASK, body=body)
    with pytest.raises(Unavailable):
        await digests.resolve("python:v2")


class TestGlance:
    """A look that does not wait: asking goes on behind it."""

    async def test_the_answer_is_there_for_a_later_glance(
        self, registry: aioresponses, digests: ImageDigests, clock: ManualClock
    ) -> None:
        registry.head(MANIFEST, headers=ANSWER)
        assert digests.glance("python:v2").pending
        assert digests.glance("python:v2").pending
        await finished(digests)
        assert digests.glance("python:v2") == Glance(at=clock.monotonic(), digest=DIGEST)

    async def test_a_registry_in_trouble_has_no_digest_and_is_asked_again(
        self, registry: aioresponses, digests: ImageDigests, clock: ManualClock
    ) -> None:
        registry.head(MANIFEST, status=500)
        registry.head(MANIFEST, headers=ANSWER)
        assert digests.glance("python:v2").pending
        await finished(digests)
        assert digests.glance("python:v2") == Glance(at=clock.monotonic(), digest=None)
        assert digests.glance("python:v2").pending
        await finished(digests)
        assert digests.glance("python:v2").digest == DIGEST

    async def test_an_answer_that_nobody_fetched_grows_old(
        self, registry: aioresponses, digests: ImageDigests, clock: ManualClock
    ) -> None:
        registry.head(MANIFEST, headers=ANSWER)
        registry.head(MANIFEST, status=404)
        digests.glance("python:v2")
        await finished(digests)
        clock.advance(301)
        assert digests.glance("python:v2").pending
        await finished(digests)
        assert digests.glance("python:v2").digest is None

    async def test_closing_gives_it_up(self, registry: aioresponses, digests: ImageDigests) -> None:
        async def never(url: URL, **_: Any) -> CallbackResult:
            await asyncio.Event().wait()
            return CallbackResult()

        registry.head(MANIFEST, callback=never)
        digests.glance("python:v2")
        await digests.close()
        assert all(task.cancelled() for task in digests._glances.values())


async def finished(digests: ImageDigests) -> None:
    """Return once nothing is being asked any more."""
    await asyncio.wait(digests._glances.values())


async def test_closing_gives_up_requests(registry: aioresponses, digests: ImageDigests) -> None:
    asked = asyncio.Event()

    async def never(url: URL, **_: Any) -> CallbackResult:
        asked.set()
        await asyncio.Event().wait()
        return CallbackResult()

    registry.head(MANIFEST, callback=never)
    waiting = asyncio.create_task(digests.resolve("python:v2"))
    await asked.wait()
    await digests.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting

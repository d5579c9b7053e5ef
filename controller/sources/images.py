"""Which content an image's tag stands for now, asked of its registry (OCI distribution API, version 2)."""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import structlog
from attrs import frozen
from yarl import URL

from common.clock import Clock, SystemClock
from controller.core.errors import NotFound, Unavailable
from controller.core.request_checks import shown
from controller.sources.cache import Cache

log = structlog.get_logger(__name__)

MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
"""Lists for several architectures first: it is their digest that names the image everywhere (section 8, no. 24)."""

_MAX_MANIFEST: Final = 4 << 20
_PATH: Final = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


@frozen(kw_only=True)
class Glance:
    """What is known of an image now."""

    at: float
    """When it was learnt, by the monotonic clock."""
    digest: str | None = None
    """None if the registry did not say."""
    pending: bool = False
    """Whether the registry is only being asked: glance again."""


class ImageDigests:
    """Resolves tags.

    :param registry: host and path in front of image names, such as `ghcr.io/opensafely-core`.
    :param session: the process's HTTP client.
    :param seconds: age after which a digest is asked for again: tags move.
    :param timeout: seconds for each request to the registry.
    """

    def __init__(
        self,
        registry: str,
        session: aiohttp.ClientSession,
        *,
        seconds: float = 300,
        timeout: float = 20,
        clock: Clock | None = None,
    ) -> None:
        self._registry = registry.rstrip("/")
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._seconds = seconds
        self._clock = clock or SystemClock()
        self._cache: Cache[str, str] = Cache(1024, seconds=seconds, clock=clock)
        self._glances: dict[str, asyncio.Task[Glance]] = {}

    async def resolve(self, image: str) -> str:
        """The digest `sha256:...` of `name:tag`, with or without the registry in front.

        :raises NotFound: the registry has no such image (or does not show it to everybody).
        :raises Unavailable: no usable answer from the registry.
        """
        name = image.removeprefix(f"{self._registry}/")
        return await self._cache.get(name, lambda: self._ask(name))

    def glance(self, image: str) -> Glance:
        """What can be said without waiting; for those who must not wait for a network.

        The first glance begins to ask, and says that nothing is known yet; a later one has the answer. So does one
        after the registry failed: then there is no digest, and the next glance asks again.
        """
        asked = self._glances.get(image)
        if asked is None or (asked.done() and self._clock.monotonic() - asked.result().at > self._seconds):
            self._glances[image] = asyncio.create_task(self._look(image))
            return Glance(at=self._clock.monotonic(), pending=True)
        if not asked.done():
            return Glance(at=self._clock.monotonic(), pending=True)
        del self._glances[image]
        return asked.result()

    async def _look(self, image: str) -> Glance:
        try:
            digest: str | None = await self.resolve(image)
        except Exception as error:  # whatever it is, nobody's work may end by it
            log.warning("image digest is not known", image=image, error=str(error))
            digest = None
        return Glance(at=self._clock.monotonic(), digest=digest)

    async def close(self) -> None:
        """Give up requests that are under way."""
        for glance in self._glances.values():
            glance.cancel()
        await asyncio.gather(*self._glances.values(), return_exceptions=True)
        await self._cache.close()

    async def _ask(self, image: str) -> str:
        name, _, tag = image.partition(":")
        host, _, folder = self._registry.partition("/")
        path = f"{folder}/{name}".lstrip("/")
        if not _PATH.fullmatch(path) or not _TAG.fullmatch(tag):
            raise NotFound(f"Image {shown(image)} is not a name and a tag", image=image)
        url = URL(f"https://{host}/v2/{path}/manifests/{tag}")
        try:
            return await self._digest(url, image)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.warning("registry does not answer", image=image, error=repr(error))
            raise Unavailable(f"The digest of image {image} cannot be looked up at {host}", image=image) from error

    async def _digest(self, url: URL, image: str) -> str:
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        status, answer, _ = await self._request("HEAD", url, headers)
        if status == 401:
            token = await self._token(answer.get("WWW-Authenticate", ""))
            headers["Authorization"] = f"Bearer {token}"
            status, answer, _ = await self._request("HEAD", url, headers)
        digest = answer.get("Docker-Content-Digest", "")
        if status == 200 and not _DIGEST.fullmatch(digest):
            # A registry need not say it in answer to HEAD; the digest is that of the manifest's bytes.
            status, _, body = await self._request("GET", url, headers)
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if status in (401, 403, 404):
            raise NotFound(f"Image {image} was not found at {url.host}", image=image)
        if status != 200:
            raise ValueError(f"status {status}")
        return digest

    async def _token(self, challenge: str) -> str:
        """A token for anonymous readers, from where the registry says.

        :raises ValueError: the registry asks for something else.
        """
        scheme, _, rest = challenge.partition(" ")
        parameters = dict(_PARAMETER.findall(rest))
        realm = URL(parameters.pop("realm", ""))
        if scheme.lower() != "bearer" or realm.scheme != "https":
            raise ValueError("the registry asks for a kind of authentication that is not supported")
        wanted = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        async with self._session.get(realm.update_query(wanted), timeout=self._timeout) as response:
            response.raise_for_status()
            data: Any = await response.json(content_type=None)
        token = data.get("token") or data.get("access_token") if isinstance(data, dict) else None
        if not isinstance(token, str):
            raise ValueError("the registry's token service gave no token")
        return token

    async def _request(self, method: str, url: URL, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        async with self._session.request(method, url, headers=headers, timeout=self._timeout) as response:
            body = b""
            if method == "GET":
                body = await _read(response)
            return response.status, response.headers, body


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(1 << 16):
        size += len(part)
        if size > _MAX_MANIFEST:
            raise ValueError("the manifest is too large")
        parts.append(part)
    return b"".join(parts)

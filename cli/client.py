"""The HTTP client of the commands: one call, tried again while that makes sense, and errors as one line.

Every call made here may be repeated: reads change nothing, a create is known by its RAP id, a cancel sets a
flag, and so do operators' commands.
"""

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson
from attrs import frozen
from yarl import URL

from cli.errors import Missing, Problem, Refused
from common import proxies
from common.clock import Clock, SystemClock

RAP_API: Final = "/controller/v1"
NATIVE_API: Final = "/api"

_AGAIN: Final = frozenset({502, 503, 504})
_TIMEOUT: Final = aiohttp.ClientTimeout(total=90, connect=10)
"""Seconds for one try. A create fetches the repository before it answers."""
_READ_TIMEOUT: Final = aiohttp.ClientTimeout(total=15, connect=10)
"""The same for what only reads: a controller that hangs is not waited for much longer than `retry_for`."""
_STREAM_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=10, sock_read=45)
"""For what goes on: a controller sends something every 15 seconds."""
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0


@frozen(kw_only=True)
class Answer:
    """What the controller said: a status and a JSON object."""

    status: int
    data: Mapping[str, Any]


@frozen(kw_only=True)
class _Hiccup:
    """A failure that may pass."""

    reason: str
    retry_after: float = 0.0
    """Seconds that the controller asked us to wait."""


class Interrupted(Exception):
    """A stream could not begin or broke off; that may pass."""


class Client:
    """A session with one controller; an async context manager.

    :param url: the controller's address, with or without a path prefix.
    :param token: sent as `Authorization: Bearer`; never shown.
    :param retry_for: seconds for which a failing call is tried again.
    :raises Problem: `url` is not an HTTP address, or `token` cannot be sent.
    """

    def __init__(self, url: str, token: str, *, retry_for: float = 10.0, clock: Clock | None = None) -> None:
        self.url = _base(url)
        if not token.isascii() or not token.isprintable():
            raise Problem("the token has characters that cannot be sent (check --token or RAP_TOKEN)")
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self.clock: Clock = clock or SystemClock()
        self.retry_for = retry_for
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=proxies.apply_to(self.url),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def create(self, body: Mapping[str, Any]) -> Answer:
        """Ask for a RAP (RAP API, `rap/create/`); 201 created, 200 nothing new."""
        return await self._call("POST", f"{RAP_API}/rap/create/", body=body)

    async def cancel(self, rap_id: str, actions: Sequence[str]) -> Answer:
        """Cancel actions of a RAP (RAP API, `rap/cancel/`)."""
        body = {"rap_id": rap_id, "actions": list(actions)}
        return await self._call("POST", f"{RAP_API}/rap/cancel/", body=body)

    async def read(self, *path: str, **query: str | int | None) -> dict[str, Any]:
        """GET from the native API; parts of `path` are quoted, parameters that are None left out."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return dict((await self._call("GET", _native(path), query=given)).data)

    async def change(self, *path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """POST to the native API: an operator's command; parts of `path` are quoted."""
        return dict((await self._call("POST", _native(path), body=body)).data)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call, repeated on passing failures for up to `retry_for` seconds.

        :raises Missing: 404.
        :raises Refused: any other answer above 299.
        :raises Problem: no usable answer within the time.
        """
        deadline = self.clock.monotonic() + self.retry_for
        pause = _FIRST_PAUSE
        while True:
            outcome = await self._try(method, path, body, query)
            if isinstance(outcome, Answer):
                return outcome
            wait = max(pause * random.uniform(0.5, 1.0), outcome.retry_after)  # noqa: S311  jitter, not a secret
            if self.clock.monotonic() + wait > deadline:
                raise Problem(f"{outcome.reason}; gave up after trying for {self.retry_for:g} s")
            await self.clock.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _try(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None
    ) -> Answer | _Hiccup:
        if self._session is None:
            raise RuntimeError("the client is used outside of its `async with`")
        # The path is quoted already; quoting it again would change an escaped slash.
        url = URL(self.url + path, encoded=True).with_query(query or {})
        data = None if body is None else orjson.dumps(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        timeout = _READ_TIMEOUT if method == "GET" else _TIMEOUT
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                text = await response.read()
                return _judge(self.url, response.status, response.headers, text)
        except (aiohttp.ClientError, OSError) as error:
            return _hiccup(self.url, error, timeout.total)

    @asynccontextmanager
    async def stream(self, *path: str, place: str | None, **query: str | None) -> AsyncIterator[aiohttp.StreamReader]:
        """One answer of the native API that goes on: server-sent events. `cli.stream` takes them apart.

        :param place: where an earlier one ended.
        :raises Interrupted: it could not begin, or broke off, and may be asked for again.
        :raises Refused: it cannot be.
        """
        if self._session is None:
            raise RuntimeError("the client is used outside of its `async with`")
        given = {name: value for name, value in query.items() if value is not None}
        url = URL(self.url + _native(path), encoded=True).with_query(given)
        headers = {"Accept": "text/event-stream"} | ({} if place is None else {"Last-Event-ID": place})
        try:
            async with self._session.get(
                url, headers=headers, allow_redirects=False, timeout=_STREAM_TIMEOUT
            ) as response:
                if response.status != 200 or response.content_type != "text/event-stream":
                    said = _judge(self.url, response.status, response.headers, await response.read())
                    raise Interrupted(said.reason if isinstance(said, _Hiccup) else f"{self.url} sends no events")
                yield response.content
        except (aiohttp.ClientError, OSError) as error:
            raise Interrupted(_hiccup(self.url, error, _STREAM_TIMEOUT.sock_read).reason) from error


def _hiccup(url: str, error: aiohttp.ClientError | OSError, seconds: float | None) -> _Hiccup:
    """What it means that a call failed on its way.

    :raises Problem: trying again would not help.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        raise Problem(f"no secure connection to {url}: {error}") from error
    if isinstance(error, aiohttp.ClientConnectorError):
        return _Hiccup(reason=f"no controller answers at {url} ({error.strerror or error})")
    why = str(error) or (f"no answer within {seconds:g} s" if isinstance(error, TimeoutError) else type(error).__name__)
    return _Hiccup(reason=f"the connection to {url} failed ({why})")


def _native(parts: Sequence[str]) -> str:
    """The path in the native API, each part quoted, so that no name can lead elsewhere."""
    quoted = (URL.build(path=part).raw_path.replace("/", "%2F") for part in parts)
    return f"{NATIVE_API}/{'/'.join(quoted)}"


def _base(url: str) -> str:
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Problem(f"--url (RAP_URL) must be an http:// or https:// address, not {url!r}")
    if parsed.user is not None or parsed.password is not None:
        raise Problem("--url (RAP_URL) must not hold a user or password; --token (RAP_TOKEN) is for the token")
    return str(parsed.with_query(None).with_fragment(None)).rstrip("/")


def _judge(url: str, status: int, headers: Mapping[str, str], text: bytes) -> Answer | _Hiccup:
    """What an answer means: done, again, or never."""
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        data = None
    said = data if isinstance(data, dict) else None
    if status in _AGAIN:
        return _Hiccup(
            reason=f"the controller at {url} is not available (HTTP {status}{_colon(_sentence(said))})",
            retry_after=_seconds(headers.get("Retry-After")),
        )
    if 300 <= status < 400:
        target = headers.get("Location", "elsewhere")
        raise Problem(f"{url} redirects to {target}: give the right --url (RAP_URL)")
    if status < 300 and said is not None:
        return Answer(status=status, data=said)
    if said is None:
        if status < 300:
            # Not ours: a proxy's page while the controller restarts, or a wrong address.
            return _Hiccup(reason=f"{url} does not answer like a RAP controller (HTTP {status}, no JSON)")
        said = {}
        if status < 500 and status != 401:
            raise Problem(f"{url} does not answer like a RAP controller (HTTP {status}): check --url (RAP_URL)")
    raise _refusal(url, status, said)


def _refusal(url: str, status: int, said: Mapping[str, Any]) -> Problem:
    sentence, key = _sentence(said), str(said.get("error", ""))
    if status == 401:
        return Refused(
            f"{url} does not accept the token{_colon(sentence)} (check --token or RAP_TOKEN)",
            status=status,
            key=key,
        )
    if status == 404:
        return Missing(sentence or "not found", status=status, key=key)
    if status >= 500:
        said_so = f"the controller at {url} failed (HTTP {status}{_colon(sentence)})"
        return Refused(said_so, status=status, key=key)
    return Refused(sentence or f"the controller answered HTTP {status}", status=status, key=key)


def _sentence(said: Mapping[str, Any] | None) -> str:
    """The words for the user: `message` of the native API, `details` of the RAP API."""
    if said is None:
        return ""
    return str(said.get("message") or said.get("details") or said.get("error") or "")


def _colon(sentence: str) -> str:
    return f": {sentence}" if sentence else ""


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0

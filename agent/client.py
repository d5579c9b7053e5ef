"""Speaks /agent/v1 to the controller, and does not give up: a backend may be cut off for hours.

`classify` is the one place that sorts an answer into done, retry or give up, by type and status, never by words.
The token stands only in the Authorization header; it is never logged.
"""

import email.utils
import enum
import random
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

import aiohttp
import structlog
from attrs import frozen

from common.clock import Clock
from common.convert import Malformed, dumps, loads
from common.protocol import (
    ClaimRequest,
    ClaimResponse,
    Declaration,
    LogAnswer,
    LogChunk,
    ReleaseRequest,
    ReleaseResponse,
    ReportsRequest,
    ReportsResponse,
    Verdict,
    Welcome,
)

T = TypeVar("T")
_log = structlog.get_logger()

ANSWER_SECONDS: Final = 30.0
"""How long an answer may take beyond the time that the request asked it to wait."""
_FIRST, _LONGEST, _LONGEST_REFUSED = 0.25, 30.0, 300.0
_LONGEST_RETRY_AFTER: Final = 600.0
_LARGEST_ANSWER: Final = 64 * 1024 * 1024


class Outcome(enum.Enum):
    """What to do after an answer, or after none came."""

    DONE = "done"
    RETRY = "retry"
    """The network, the controller or a proxy has a bad moment."""
    REFUSED = "refused"
    """This agent, as configured, is not let in. Retried slowly and loudly: a controller that is being redeployed
    can look like this for a while, and an agent that stops needs a person to start it."""
    REJECTED = "rejected"
    """The request itself is wrong; sending it again gives the same."""


class Rejected(Exception):
    """The controller will not take this request, however often it is sent."""


@frozen(kw_only=True)
class Answer:
    """What came back, as far as `classify` needs to know it."""

    status: int | None = None
    """None if no complete answer came."""
    readable: bool = False
    """Whether the body has the shape that was expected."""


def classify(answer: Answer) -> Outcome:
    """Sort an answer. A 200 with an unreadable body is retried: a proxy spoke, not the controller."""
    status = answer.status
    if status is None or status >= 500 or status in (408, 425, 429):
        return Outcome.RETRY
    if 200 <= status < 300:
        return Outcome.DONE if answer.readable else Outcome.RETRY
    if status in (400, 409, 413, 415, 422):
        return Outcome.REJECTED
    return Outcome.REFUSED


def compute_delay(outcome: Outcome, failures: int, retry_after: float | None, jitter: float) -> float:
    """Seconds to wait after `failures` failures in a row: exponential, with full jitter above a quarter.

    :param retry_after: what the controller asked for; honoured up to ten minutes.
    :param jitter: between 0 and 1.
    """
    longest = _LONGEST_REFUSED if outcome is Outcome.REFUSED else _LONGEST
    delay = min(longest, _FIRST * 2.0 ** min(failures - 1, 30)) * (0.25 + 0.75 * jitter)
    if retry_after is not None:
        delay = max(delay, min(retry_after, _LONGEST_RETRY_AFTER) * (1 + 0.1 * jitter))
    return delay


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header, which is a number or a date; None if it is neither.

    :param now: Unix seconds.
    """
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


@frozen(kw_only=True)
class _Received(Generic[T]):
    """What one request brought."""

    answer: Answer
    body: T | None = None
    """Set if the answer is readable."""
    retry_after: float | None = None
    """Seconds, if the answer asked for a pause."""
    fault: str = ""


class Client:
    """One controller, seen by one agent."""

    def __init__(
        self, session: aiohttp.ClientSession, *, url: str, backend: str, agent: str, token: str, clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        """:param jitter: gives numbers between 0 and 1; tests hand in a constant."""
        self._session = session
        self._base = f"{url.rstrip('/')}/agent/v1/{quote(backend, safe='')}"
        self._agent = agent
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._clock = clock
        self._jitter = jitter

    async def declare(self, declaration: Declaration) -> Welcome:
        """Say who we are, for as long as it takes.

        :raises Rejected: the controller does not take such an agent.
        """
        return await self._call("PUT", f"agents/{quote(self._agent, safe='')}", declaration, Welcome)

    async def claim(self, request: ClaimRequest, *, patience: float = ANSWER_SECONDS) -> ClaimResponse:
        """Wait for something to do, for as long as `request.wait`; the network's troubles make it longer.

        :param patience: seconds that the answer may take beyond that. A claim renews leases, so one that hangs on a
            dead connection must be given up while there is time for another.
        :raises Rejected: see `declare`.
        """
        return await self._call("POST", "claim", request, ClaimResponse, wait=request.wait, patience=patience)

    async def report(self, request: ReportsRequest) -> ReportsResponse:
        """State a batch of reports until every one has a verdict.

        :raises Rejected: the batch as a whole is not taken.
        """

        def check(response: ReportsResponse) -> None:
            if [answer.task_id for answer in response.answers] != [report.task_id for report in request.reports]:
                raise Malformed(["answers: not one per report, in their order"])
            if not all(answer.verdict in set(Verdict) for answer in response.answers):
                raise Malformed(["answers: a verdict that does not exist"])

        return await self._call("POST", "reports", request, ReportsResponse, check=check)

    async def push_log(self, chunk: LogChunk, *, tries: int) -> LogAnswer | None:
        """Push a piece of a log; None if it did not arrive within `tries`.

        :raises Rejected: see `declare`.
        """
        return await self._attempt("POST", "logs", chunk, LogAnswer, tries=tries)

    async def release(self, request: ReleaseRequest) -> ReleaseResponse:
        """Hand tasks back.

        :raises Rejected: see `declare`.
        """
        return await self._call("POST", "release", request, ReleaseResponse)

    async def _call(
        self, method: str, path: str, body: Any, cls: type[T], *, wait: float = 0, patience: float = ANSWER_SECONDS,
        check: Callable[[T], None] | None = None,
    ) -> T:  # fmt: skip
        answer = await self._attempt(method, path, body, cls, wait=wait, patience=patience, check=check)
        if answer is None:
            raise AssertionError("a call without a bound on its tries ends with an answer")
        return answer

    async def _attempt(
        self, method: str, path: str, body: Any, cls: type[T], *, wait: float = 0, patience: float = ANSWER_SECONDS,
        tries: int | None = None, check: Callable[[T], None] | None = None,
    ) -> T | None:  # fmt: skip
        """Send until it is done, until it makes no sense, or `tries` times."""
        payload = dumps(body)
        failures = 0
        while True:
            received = await self._send(method, path, payload, cls, wait + patience, check)
            outcome = classify(received.answer)
            if outcome is Outcome.DONE:
                if failures:
                    _log.info("controller answers again", path=path, failures=failures)
                return received.body
            failures += 1
            if outcome is Outcome.REJECTED:
                raise Rejected(f"{method} {path}: status {received.answer.status}: {received.fault}")
            delay = compute_delay(outcome, failures, received.retry_after, self._jitter())
            self._complain(outcome, path, received.answer, received.fault, failures, delay)
            if tries is not None and failures >= tries:
                return None
            await self._clock.sleep(delay)

    def _complain(self, outcome: Outcome, path: str, answer: Answer, fault: str, failures: int, delay: float) -> None:
        told = {"path": path, "status": answer.status, "fault": fault, "failures": failures, "retry_in": delay}
        if outcome is Outcome.REFUSED:
            _log.error("the controller refuses this agent: check its URL, backend name and token", **told)
        else:
            _log.warning("the controller did not answer as it should", **told)

    async def _send(
        self, method: str, path: str, payload: bytes, cls: type[T], seconds: float, check: Callable[[T], None] | None
    ) -> _Received[T]:
        """One request and what came back."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=ANSWER_SECONDS / 2)
        url = f"{self._base}/{path}"
        body = bytearray()
        try:
            async with self._session.request(
                method, url, data=payload, headers=self._headers, allow_redirects=False, timeout=timeout
            ) as response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _LARGEST_ANSWER:
                        return _Received(answer=Answer(status=response.status), fault="answer too large")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return _Received(answer=Answer(), fault=f"{type(error).__name__}: {error}")
        answer = Answer(status=response.status)
        retry_after = parse_retry_after(response.headers.get("Retry-After"), self._clock.now().timestamp())
        if not 200 <= response.status < 300:
            fault = body[:300].decode(errors="replace")
            return _Received(answer=answer, retry_after=retry_after, fault=fault)
        try:
            parsed = loads(bytes(body), cls)
            if check is not None:
                check(parsed)
        except Malformed as error:
            return _Received(answer=answer, retry_after=retry_after, fault=str(error)[:300])
        return _Received(answer=Answer(status=response.status, readable=True), body=parsed)

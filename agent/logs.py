"""Pushes a job's log to the controller, piece by piece, where the egress policy lets log text out.

The final log file begins with exactly the bytes that the executor gave while the job ran, so one reader serves
both, and what was pushed before is not pushed again. The controller's answer says where the next piece starts,
so a lost answer, a repeated piece or a restarted agent all end in the same text. Log text that cannot be
delivered never harms the job.
"""

import codecs
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from agent.client import Client, Rejected
from common.protocol import LogChunk

Source = Callable[[int, int], Awaitable[bytes]]
"""(byte offset, most bytes) -> bytes; empty at the end of what there is."""

_log = structlog.get_logger()
_READ: Final = 256 * 1024
_PIECE: Final = 64 * 1024
_MOST_SETBACKS: Final = 5


class LogPush:
    """How far the log of one attempt has been pushed. Offsets of text are in characters."""

    def __init__(self, client: Client, *, agent: str, task_id: str, attempt: int, limit: int) -> None:
        """:param limit: characters that are pushed at most."""
        self._client = client
        self._agent = agent
        self._task_id = task_id
        self._attempt = attempt
        self._limit = limit
        self._position = 0
        self._accepting = True
        self._setbacks = 0
        self._rewind()

    def _rewind(self) -> None:
        self._bytes = 0
        self._start = 0
        self._buffer = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def push(self, source: Source, *, tries: int) -> None:
        """Push all that `source` has beyond what was pushed.

        :param tries: attempts per piece; then the rest waits for the next call.
        """
        while self._accepting and self._position < self._limit:
            if self._start > self._position:
                self._rewind()
            if not await self._fill(source):
                return
            text = self._buffer[: min(_PIECE, self._limit - self._position)]
            if not await self._send(text, tries):
                return

    async def _fill(self, source: Source) -> bool:
        """Have text at `_position` in the buffer; False if there is none (yet)."""
        while True:
            skipped = min(len(self._buffer), self._position - self._start)
            self._buffer, self._start = self._buffer[skipped:], self._start + skipped
            if self._buffer:
                return True
            chunk = await source(self._bytes, _READ)
            if not chunk:
                return False
            self._bytes += len(chunk)
            # Databases refuse zero characters in text.
            self._buffer = self._decoder.decode(chunk).replace("\x00", "\ufffd")

    async def _send(self, text: str, tries: int) -> bool:
        chunk = LogChunk(
            agent=self._agent, task_id=self._task_id, attempt=self._attempt, offset=self._position, text=text
        )
        try:
            answer = await self._client.push_log(chunk, tries=tries)
        except Rejected as error:
            _log.warning("the controller does not take this log", fault=str(error))
            self._accepting = False
            return False
        if answer is None:
            return False
        if answer.next_offset <= self._position:
            self._setbacks += 1
        self._accepting = answer.accepting and answer.next_offset >= 0 and self._setbacks < _MOST_SETBACKS
        self._position = max(answer.next_offset, 0)
        return True

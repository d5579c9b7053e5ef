"""What anybody on the machine can read in the process table."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

BETWEEN_LOOKS = 0.02
"""Seconds; the machine has other things to do as well."""


def command_lines() -> set[str]:
    """The command line of every process."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip())
    return found


@contextlib.asynccontextmanager
async def every_command_line(found: set[str]) -> AsyncIterator[None]:
    """Collect them in `found`, again and again until the block ends, from a thread of its own."""
    over = asyncio.Event()

    async def collect() -> None:
        while not over.is_set():
            found.update(await asyncio.to_thread(command_lines))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), BETWEEN_LOOKS)

    collecting = asyncio.create_task(collect())
    try:
        yield
    finally:
        over.set()
        await collecting

"""Whether the engine sees the same volume as the agent: one that does not would run the job on an empty folder.

Docker refuses to mount a folder that it does not have; Podman makes it, empty, and says nothing.
"""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from aiodocker import DockerError

from agent.executors.base import ExecutorError
from agent.executors.docker.engine import Engine, is_gone

SETTING: Final = "DOCKER_HOST_VOLUME_DIR"


class VolumeUnseen(ExecutorError):
    """The container has another folder than the run's volume."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; {SETTING} must say where the engine has the folder of volumes", fatal=False)


async def find_entry(volume: Path) -> str | None:
    """The name of a file in the volume, by which the container can be asked for it; None if there is none.

    :param volume: where the agent sees the folder. To be looked at before Podman has made it.
    :raises VolumeUnseen: it is not there.
    """
    try:
        return await asyncio.to_thread(_first_file, volume)
    except OSError as error:
        raise VolumeUnseen(f"the volume {volume} cannot be read: {error.strerror}") from error


def _first_file(folder: Path) -> str | None:
    with os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.is_file(follow_symlinks=False)), None)


async def check_seen(engine: Engine, name: str, entry: str) -> None:
    """Look for a file of the volume in the container that was made for it, and has not been started.

    :param name: the container's.
    :param entry: what `find_entry` found.
    :raises VolumeUnseen: the container does not have it.
    :raises DockerError: the engine cannot look.
    """
    try:
        await engine.head(f"containers/{name}/archive?{urlencode({'path': f'/workspace/{entry}'})}")
    except DockerError as error:
        if not is_gone(error):
            raise
        raise VolumeUnseen("the container engine does not see what the agent has put into the job's volume") from None


def keep_beside(volume: Path, name: str, text: str) -> None:
    """Have a file with this text in the folder of volumes, where the engine sees it and no job does (blocking).

    :param name: another one for another text: what is there already is left as it is.
    :raises OSError: it cannot be written.
    """
    path = volume.parent / name
    if path.exists():
        return
    with tempfile.NamedTemporaryFile("w", dir=volume.parent, prefix=f"{name}.", delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)

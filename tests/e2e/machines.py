"""What jobs run on in the tests of a whole backend: containers, or sandboxes; with images of the tests' own making."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from attrs import frozen

from tests.agent.executors import docker_host
from tests.agent.executors.docker_host import PYTHON, Host

REGISTRY = "ghcr.io/opensafely-core"
NETWORK = "rap-test-database"
DATABASE_HOST = "database.backend.example"
_PROGRAMS = Path(__file__).parent / "programs"
_ENTRY = {"ehrql:v1": "ehrql.py", "tpp-database-utils:latest": "database_utils.py"}
"""Image -> the program that it begins with."""


@frozen(kw_only=True)
class Machine:
    """An executor, and how the database is found from its jobs."""

    environ: Mapping[str, str]
    """The agent's settings."""
    database_host: str
    """How the database is called."""
    address: str
    """Where it is."""
    prefix: tuple[str, ...] = ()
    """What the agent is started by."""
    engine: Host | None = None
    """What runs the jobs, if they are containers."""


def sandbox() -> Machine:
    """The executor `sandbox`, where database jobs get the machine's network."""
    images = {name: [sys.executable, str(_PROGRAMS / program)] for name, program in _ENTRY.items()}
    environ = {
        "RAP_EXECUTOR": "sandbox",
        "RAP_SANDBOX_NETWORK": "true",
        "RAP_SANDBOX_IMAGES": json.dumps(images | {"python": [sys.executable]}),
    }
    return Machine(environ=environ, database_host="localhost", address="127.0.0.1")


def docker(host: Host, folder: Path) -> Machine:
    """The executor `docker`, with an agent that knows the name of the database, and is the only one to know it."""
    if os.geteuid() != 0:
        pytest.skip("not root, as one must be to give the agent a hosts file of its own")
    address = str(_ask(host, 200, "GET", f"/networks/{NETWORK}")["IPAM"]["Config"][0]["Gateway"])
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{address} {DATABASE_HOST}\n")
    return Machine(
        environ={"RAP_EXECUTOR": "docker", "RAP_DOCKER_HOST": host.address, "DATABASE_ACCESS_NETWORK": NETWORK},
        database_host=DATABASE_HOST,
        address=address,
        prefix=("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)),
        engine=host,
    )


@contextmanager
def docker_images() -> Iterator[Host]:
    """An engine with the images of the platform, as far as the tests need them, and the network of the database."""
    with docker_host.engine() as host:
        _ask(host, 201, "POST", f"/images/{PYTHON}/tag", repo=f"{REGISTRY}/python", tag="v2")
        for image, program in _ENTRY.items():
            status, said = host.ask("POST", "/build", _pack(program), t=f"{REGISTRY}/{image}")
            assert status == 200, said
            assert b'"error"' not in said, said
        options = {"com.docker.network.bridge.enable_icc": "false"}
        bridge = {"Name": NETWORK, "Driver": "bridge", "Options": options}
        host.ask("DELETE", f"/networks/{NETWORK}")  # of a run that was killed, if the engine is not the tests' own
        _ask(host, 201, "POST", "/networks/create", json.dumps(bridge))
        try:
            yield host
        finally:
            _ask(host, 204, "DELETE", f"/networks/{NETWORK}")


def _ask(host: Host, status: int, method: str, path: str, body: Any = None, **query: str) -> Any:
    found, said = host.ask(method, path, body, **query)
    assert found == status, said
    return json.loads(said) if said else None


def _pack(program: str) -> bytes:
    """A build's files: the tests' Python, a client of PostgreSQL with its libraries, and the program."""
    client = Path(asyncpg.__file__).parent
    lines = [f"FROM {PYTHON}", "COPY app /app", "COPY lib /", "ENV PYTHONPATH=/app"]
    recipe = "\n".join([*lines, f'ENTRYPOINT ["python", "/app/{program}"]']).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(recipe)
        archive.addfile(entry, io.BytesIO(recipe))
        archive.add(_PROGRAMS / program, f"app/{program}")
        archive.add(client, "app/asyncpg")
        for library in _libraries(client):
            archive.add(os.path.realpath(library), f"lib{library}")
    return packed.getvalue()


def _libraries(folder: Path) -> set[str]:
    """What the compiled modules in a folder need of this machine."""
    modules = map(str, folder.rglob("*.so"))
    said = subprocess.run(["ldd", *modules], capture_output=True, text=True, check=True).stdout
    return {word for word in said.split() if word.startswith("/") and not word.endswith(":")}

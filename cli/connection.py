"""Which controller a command talks to, and the options that all such commands share."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import click
import orjson
from attrs import field, frozen
from rich.console import Console

from cli import local
from cli.client import Client
from cli.errors import Problem

T = TypeVar("T")
_PIPE_WIDTH: Final = 160
"""Columns when the output is no terminal: nothing that a person greps for is cut."""


@frozen(kw_only=True)
class Connection:
    """A controller's address, a token for it, and how to answer."""

    url: str
    token: str = field(repr=False)
    backend: str | None
    """The backend of a `rap up` on this machine, if that is what `url` is."""
    retry_for: float
    json: bool
    """Whether stdout gets one JSON document and nothing else."""

    def client(self) -> Client:
        """A client for this controller, to be entered."""
        return Client(self.url, self.token, retry_for=self.retry_for)

    def read(self, *path: str, **query: str | int | None) -> dict[str, Any]:
        """One GET from the native API, for commands that need no more than that; see `Client.read`.

        :raises Problem: it is refused, or there is no answer.
        """

        async def work() -> dict[str, Any]:
            async with self.client() as client:
                return await client.read(*path, **query)

        return run(work())

    def change(self, *path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One operator's command, likewise; see `Client.change`.

        :raises Problem: it is refused, or there is no answer.
        """

        async def work() -> dict[str, Any]:
            async with self.client() as client:
                return await client.change(*path, body=body)

        return run(work())


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments `url`, `token`, `retry_for` and `as_json`: those of `connect`."""
    decorators = (
        click.option("--url", envvar="RAP_URL", show_envvar=True, help="The controller's address."),
        click.option(
            "--token",
            envvar="RAP_TOKEN",
            show_envvar=True,
            help="A client's token; better kept in the environment than on a command line.",
        ),
        click.option(
            "--retry-for",
            type=click.FloatRange(min=0, max=86_400),
            default=10.0,
            show_default=True,
            envvar="RAP_RETRY_FOR",
            show_envvar=True,
            metavar="SECONDS",
            help="How long to try again while the controller is away.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def connect(url: str | None, token: str | None, retry_for: float, as_json: bool) -> Connection:
    """The controller that the options name, or else the `rap up` on this machine.

    :raises Problem: there is neither, or no token for it.
    """
    here = local.find()
    if url is None:
        if here is None:
            raise Problem("no `rap up` runs on this machine: start one, or set --url (RAP_URL) and --token (RAP_TOKEN)")
        url = here.controller_url
    # The local token is for the local controller only: it is never sent anywhere else.
    is_here = here is not None and url.rstrip("/") == here.controller_url.rstrip("/")
    if token is None and is_here and here is not None:
        token = here.client_token
    if not token:
        raise Problem(f"no token for {url}: set --token (RAP_TOKEN)")
    backend = here.backend if is_here and here is not None else None
    return Connection(url=url, token=token, backend=backend, retry_for=retry_for, json=as_json)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do a command's work on an event loop of its own."""
    return asyncio.run(work)


def console(*, stderr: bool = False) -> Console:
    """A console that does not cut lines when nobody looks."""
    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)
    return (
        found
        if found.is_terminal
        else Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH)
    )


def print_json(document: Any) -> None:
    """One document on stdout."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())

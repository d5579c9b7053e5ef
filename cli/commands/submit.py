"""`rap submit`: ask for actions of a repository to be run, and perhaps wait for them."""

import getpass
import sys
from collections.abc import Mapping
from typing import Any

import click
from attrs import frozen

from cli import connection, progress, report, source
from cli.client import Client
from cli.connection import Connection
from cli.errors import Problem, Refused
from common.ids import random_id

_UNEXPLAINED = "Unknown error"
"""What the RAP API says to those who may not run on a backend, whether it exists or not (reference section 1.2)."""
_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@frozen(kw_only=True)
class Wish:
    """What the options say beyond the source."""

    rap_id: str
    actions: tuple[str, ...]
    backend: str | None
    workspace: str
    project: str
    force: bool
    wait: bool


@click.command()
@click.argument("repo")
@click.argument("actions", metavar="[ACTION]...", nargs=-1)
@click.option("--commit", help="What to run; default: the newest commit of the branch.")
@click.option("--branch", help="The branch that holds the commit; default: the current one.")
@click.option("--workspace", help="Where outputs go; default: the repository's name.")
@click.option("--backend", envvar="RAP_BACKEND", show_envvar=True, help="Default: the only one there is.")
@click.option("--project", help="The project that the RAP belongs to; default: the repository's name.")
@click.option("--force", is_flag=True, help="Run dependencies again, even those that have succeeded.")
@click.option("--wait", is_flag=True, help="Show progress until the end; exit code 1 if a job fails.")
@connection.options
def submit(
    *,
    repo: str,
    actions: tuple[str, ...],
    commit: str | None,
    branch: str | None,
    workspace: str | None,
    backend: str | None,
    project: str | None,
    force: bool,
    wait: bool,
    **options: Any,
) -> None:
    """Ask for actions of REPO (a local path or an address) to be run; without ACTION, all of them."""
    connected = connection.connect(**options)
    found = source.resolve(repo, branch, commit)
    for warning in found.warnings:
        click.echo(f"rap: warning: {warning}", err=True)
    wish = Wish(
        rap_id=random_id(),
        actions=actions or ("run_all",),
        backend=backend or connected.backend,
        workspace=workspace or found.name,
        project=project or found.name,
        force=force,
        wait=wait,
    )
    try:
        document = connection.run(_submit(connected, found, wish))
    except KeyboardInterrupt:
        click.echo(
            f"\nrap: no longer watching; RAP {wish.rap_id} is not cancelled by this"
            f" (see `rap status {wish.rap_id}`, `rap cancel {wish.rap_id}`)",
            err=True,
        )
        sys.exit(_INTERRUPTED)
    if connected.json:
        connection.print_json(document)
    if document["rap"] is not None and not report.all_succeeded(document["rap"]):
        sys.exit(1)


async def _submit(connected: Connection, found: source.Source, wish: Wish) -> dict[str, Any]:
    # With --json, stdout is for the document alone.
    console = connection.console(stderr=connected.json)
    async with connected.client() as client:
        backend = wish.backend or await _only_backend(client)
        data = await _create(client, _body(found, wish, backend))
        if data.get("count"):
            jobs = report.count(data["count"], "job")
            console.print(
                f"RAP {wish.rap_id}: {jobs} on backend {backend}, workspace {wish.workspace},"
                f" commit {found.commit[:10]} of {found.branch}",
                soft_wrap=True,
            )
        else:
            console.print(f"Nothing to do: {report.safe(str(data.get('details', '')))}", soft_wrap=True)
        detail = None
        if data.get("count") and wish.wait:
            detail = await progress.follow(client, wish.rap_id, console)
            report.print_rap(console, detail)
        elif data.get("count"):
            console.print(f"Follow it with `rap status {wish.rap_id}`", soft_wrap=True)
    return {
        "rap_id": wish.rap_id,
        "backend": backend,
        "workspace": wish.workspace,
        "repo_url": found.repo_url,
        "branch": found.branch,
        "commit": found.commit,
        "result": data.get("result"),
        "details": data.get("details"),
        "count": data.get("count", 0),
        "rap": detail,
    }


async def _create(client: Client, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask for the RAP.

    :raises Problem: it is refused. Where the RAP API only says `Unknown error`, as it must, with what can be found out.
    """
    try:
        return (await client.create(body)).data
    except Refused as refused:
        await _check_backend(client, body["backend"])
        if refused.message != _UNEXPLAINED:
            raise
        raise Problem(
            f"backend {body['backend']} refuses the RAP and does not say why ({_UNEXPLAINED}):"
            " probably this token may read there, but not run"
        ) from refused


def _body(found: source.Source, wish: Wish, backend: str) -> dict[str, Any]:
    return {
        "backend": backend,
        "rap_id": wish.rap_id,
        "workspace": wish.workspace,
        "repo_url": found.repo_url,
        "branch": found.branch,
        "commit": found.commit,
        "database_name": "default",
        "requested_actions": list(wish.actions),
        "codelists_ok": True,
        "force_run_dependencies": wish.force,
        "created_by": _user(),
        "project": wish.project,
        "orgs": [],
    }


async def _check_backend(client: Client, wanted: str) -> None:
    """Pass if the token opens the backend.

    :raises Problem: it does not.
    """
    slugs = await _open_backends(client)
    if wanted not in slugs:
        raise Problem(f"--backend: {wanted!r} is not open to you; what is: {', '.join(slugs) or 'none'}")


async def _open_backends(client: Client) -> list[str]:
    return [str(each["slug"]) for each in (await client.read("backends"))["backends"]]


async def _only_backend(client: Client) -> str:
    """The one backend that the token opens.

    :raises Problem: there are more, or none.
    """
    slugs = await _open_backends(client)
    if len(slugs) == 1:
        return slugs[0]
    if not slugs:
        raise Problem("the token opens no backend: ask the operator of the controller")
    raise Problem(f"more than one backend is open to you: choose one of {', '.join(slugs)} with --backend")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user id without a name.
        return "unknown"

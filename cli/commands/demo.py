"""`rap demo`: the example study from a git repository to its figure, through a stack of its own."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from agent.executors.choice import Choice
from cli import connection, progress, report
from cli.client import Client
from cli.commands.up import is_unisolated
from cli.errors import Problem
from cli.stack import signals
from cli.stack.defaults import EXECUTOR
from cli.stack.stack import Running, running
from common.ids import random_id

STUDY: Final = Path(__file__).parents[2] / "examples" / "diabetes"
WORKSPACE: Final = "diabetes"
RESULTS: Final = Path(".rap-demo")

_INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""
_SHOWN: Final = {".png": "figure", ".svg": "figure", ".csv": "table", ".md": "report"}
_GIT_ENV: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "rap demo",
    "GIT_AUTHOR_EMAIL": "demo@localhost",
    "GIT_COMMITTER_NAME": "rap demo",
    "GIT_COMMITTER_EMAIL": "demo@localhost",
}


@click.command()
def demo() -> None:
    """Run the example study from start to finish, then stop everything.

    Its figure and tables are left in .rap-demo/. Exit code 0 only if every job succeeded.
    """
    results = RESULTS.absolute()
    if not STUDY.is_dir():
        raise Problem("the example study is part of the repository, not of the installed package: clone it")
    try:
        results.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
        base = Path(tempfile.mkdtemp(prefix="rap-demo-"))
    except OSError as error:
        raise Problem(f"{error.filename or results} cannot be written: {error.strerror}") from error
    try:
        succeeded = signals.run(_demo(base, results), on_signal=lambda: click.echo("Stopping ..."))
    finally:
        _keep(base / "data" / "logs", results / "logs")
        shutil.rmtree(base, ignore_errors=True)
    if succeeded is None:
        sys.exit(_INTERRUPTED)
    sys.exit(0 if succeeded else 1)


async def _demo(base: Path, results: Path) -> bool:
    console = connection.console()
    commit = await asyncio.to_thread(_make_repository, base / "study")
    console.print("Starting PostgreSQL, a controller and an agent ...", soft_wrap=True)
    async with running(base / "data", 0, click.echo, executor=_executor(os.environ)) as stack:
        if is_unisolated(stack.executor):
            click.echo("WARNING: bubblewrap is missing or does not work here: jobs run without isolation.")
        console.print(f"The controller answers at {stack.info.controller_url}", soft_wrap=True)
        detail = await _unless_failed(stack, _follow(stack, base / "study", commit))
        medium = stack.place.storage / "medium_privacy" / "workspaces" / WORKSPACE
        await asyncio.to_thread(_keep, medium, results / WORKSPACE)
    _show(detail, results / WORKSPACE)
    return report.all_succeeded(detail)


def _executor(environ: Mapping[str, str]) -> Choice:
    """The sandbox, whose Python is ours and has what the study imports; the environment may say otherwise."""
    if named := environ.get(EXECUTOR, "").strip().lower():
        return Choice(name=named, reason=f"as {EXECUTOR} says")
    return Choice(name="sandbox", reason="the demo needs no images")


async def _follow(stack: Running, study: Path, commit: str) -> dict[str, Any]:
    """Submit the study and watch it to its end; the RAP's details."""
    console = connection.console()
    rap_id = random_id()
    async with Client(stack.info.controller_url, stack.info.client_token) as client:
        answer = await client.create(_request(stack, study, commit, rap_id))
        console.print(f"RAP {rap_id}: {answer.data.get('count')} jobs, commit {commit[:10]}", soft_wrap=True)
        detail = await progress.follow(client, rap_id, console)
        report.print_rap(console, detail)
        return detail


async def _unless_failed(stack: Running, work: Any) -> dict[str, Any]:
    """The result of `work`, unless the stack gives up first."""
    task, failed = asyncio.ensure_future(work), asyncio.ensure_future(stack.failed())
    try:
        await asyncio.wait({task, failed}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            failed.result()
        return dict(await task)
    finally:
        task.cancel()
        failed.cancel()
        await asyncio.gather(task, failed, return_exceptions=True)


def _request(stack: Running, study: Path, commit: str, rap_id: str) -> dict[str, Any]:
    """The body that a portal would send."""
    return {
        "backend": stack.info.backend,
        "rap_id": rap_id,
        "workspace": WORKSPACE,
        "repo_url": str(study),
        "branch": "main",
        "commit": commit,
        "database_name": "default",
        "requested_actions": ["run_all"],
        "codelists_ok": True,
        "force_run_dependencies": False,
        "created_by": "demo",
        "project": "diabetes",
        "orgs": ["demo"],
    }


def _make_repository(folder: Path) -> str:
    """A git repository with one commit, the example study; the commit.

    :raises Problem: git is missing or fails.
    """
    shutil.copytree(STUDY, folder, ignore=shutil.ignore_patterns("__pycache__", "output"))
    try:
        _git(folder, "init", "--quiet", "--initial-branch=main")
        _git(folder, "add", ".")
        _git(folder, "commit", "--quiet", "--message", "The example study")
        return _git(folder, "rev-parse", "HEAD")
    except FileNotFoundError as error:
        raise Problem("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise Problem(f"git failed: {str(error.stderr).strip()}") from error


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, env=_GIT_ENV, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _keep(source: Path, target: Path) -> None:
    """Copy a folder to where it outlives the demo, in place of the last demo's."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def _show(detail: Mapping[str, Any], folder: Path) -> None:
    """Say where the figure and the tables lie."""
    found = sorted(
        (_SHOWN[path.suffix], path)
        for path in folder.rglob("*")
        if path.suffix in _SHOWN and "metadata" not in path.relative_to(folder).parts
    )
    if found:
        click.echo("\nWhat may leave the backend, as it lies in the medium-privacy area:")
    for kind, path in found:
        click.echo(f"  {kind:7} {path}")
    click.echo(f"\nLogs of the processes: {folder.parent / 'logs'}")

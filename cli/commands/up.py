"""`rap up`: PostgreSQL, a controller and an agent on this machine, until Ctrl-C."""

import os
from pathlib import Path

import click

from agent.executors.choice import Choice
from agent.settings import EXECUTORS
from cli import local
from cli.stack import place as places
from cli.stack import signals
from cli.stack.defaults import EXECUTOR
from cli.stack.stack import Running, running


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where everything is kept; default: ${XDG_DATA_HOME:-~/.local/share}/rap.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free one.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Written (JSON, for you alone) when everything runs, removed at the end.",
)
@click.option(
    "--executor",
    type=click.Choice(EXECUTORS, case_sensitive=False),
    envvar=EXECUTOR,
    show_envvar=True,
    help="What runs jobs; default: the best that works here (see `rap doctor`).",
)
def up(*, data: Path | None, port: int, ready_file: Path | None, executor: str | None) -> None:
    """Run a controller, an agent and a database on this machine until Ctrl-C.

    The backend is called `test`. Running it again with the same DIR carries on where it was.
    """
    folder = (data or places.default_folder(os.environ)).absolute()
    files = [] if ready_file is None else [ready_file.absolute()]
    signals.run(_up(folder, port, files, asked_for(executor)), on_signal=lambda: _say("Stopping ..."))
    _say("Stopped.")


def asked_for(executor: str | None) -> Choice | None:
    """The executor that the user named, if there was one, and where."""
    if executor is None:
        return None
    source = click.get_current_context().get_parameter_source("executor")
    asked = source is click.core.ParameterSource.COMMANDLINE
    return Choice(name=executor, reason="as --executor says" if asked else f"as {EXECUTOR} says")


async def _up(folder: Path, port: int, ready_files: list[Path], executor: Choice | None) -> None:
    async with running(folder, port, _say, executor=executor) as stack:
        written: list[Path] = []
        try:
            for file in (stack.place.ready_file, *ready_files):
                places.announce(file, stack.info)
                written.append(file)
            _register(stack.info)
            _greet(stack)
            await stack.failed()
        finally:
            local.remove_registration(stack.info.pid)
            for file in written:
                file.unlink(missing_ok=True)


def _register(info: local.Local) -> None:
    """Only a convenience for the other commands: a home that cannot be written ends nothing."""
    try:
        local.write_registration(info)
    except OSError as error:
        _say(f"Other `rap` commands will not find this by themselves ({error}): set RAP_URL and RAP_TOKEN")


def _greet(stack: Running) -> None:
    for line in (
        "",
        f"Ready at {stack.info.controller_url}",
        f"  backend   {stack.info.backend}, one agent (executor: {stack.executor})",
        f"  data      {stack.info.data_dir}",
        f"  outputs   {stack.place.workspaces}",
        "  try       rap submit PATH/TO/STUDY --wait     (another terminal)",
        f"  dashboard {stack.info.controller_url}/ui/     (token: client_token in {stack.place.ready_file})",
        f"  API docs  {stack.info.controller_url}/controller/v1/docs/",
        "",
    ):
        click.echo(line)
    if is_unisolated(stack.executor):
        _say("WARNING: jobs are not isolated from this machine: bubblewrap is missing or does not work here.")
    _say("Ctrl-C stops everything; nothing is lost.")


def is_unisolated(executor: str) -> bool:
    """Whether the agent declared an executor that runs jobs as plain processes."""
    return "unisolated" in executor


def _say(sentence: str) -> None:
    click.echo(sentence)

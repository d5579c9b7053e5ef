"""The `rap` command: names its subcommands, and imports one only when it is used.

So `rap --help` is quick, and a missing optional dependency hurts only the command that needs it.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import click
from attrs import frozen

from cli.errors import Problem


@frozen
class Lazy:
    """Where a subcommand lives, and its line in the list of commands."""

    target: str
    """`module:attribute`."""
    summary: str


USING: Final[Mapping[str, Lazy]] = {
    "submit": Lazy("cli.commands.submit:submit", "Ask for actions of a repository to be run."),
    "status": Lazy("cli.commands.status:status", "Show a RAP and its jobs."),
    "watch": Lazy("cli.commands.watch:watch", "Print what happens, as it happens."),
    "list": Lazy("cli.commands.list:list_raps", "List RAPs, newest first."),
    "jobs": Lazy("cli.commands.jobs:jobs", "List jobs of all RAPs."),
    "logs": Lazy("cli.commands.logs:logs", "Print a job's log."),
    "history": Lazy("cli.commands.history:history", "Print everything that happened to a job."),
    "trace": Lazy("cli.commands.trace:trace", "Draw what a RAP's jobs waited for, and where they ran."),
    "cancel": Lazy("cli.commands.cancel:cancel", "Cancel a RAP's jobs."),
    "backends": Lazy("cli.commands.backends:backends", "List backends and their agents."),
    "agents": Lazy("cli.commands.agents:agents", "List agents: what they run, and who is silent."),
}
"""Commands that talk to a controller."""

OPERATING: Final[Mapping[str, Lazy]] = {
    "flags": Lazy("cli.commands.flags:flags", "Show the switches of backends."),
    "limits": Lazy("cli.commands.limits:limits", "Show or change how much of a backend jobs may use."),
    "kill": Lazy("cli.commands.kill:kill", "End jobs."),
    "retry": Lazy("cli.commands.retry:retry", "Have a job tried again."),
    "pause": Lazy("cli.commands.modes:pause", "Start no more jobs on a backend."),
    "unpause": Lazy("cli.commands.modes:unpause", "Start jobs on a backend again."),
    "db-maintenance": Lazy("cli.commands.modes:db_maintenance", "Keep database jobs out, or let them in again."),
    "token": Lazy("cli.commands.token:token", "Let people, portals and agents in, and out again."),
    "release": Lazy("cli.commands.release:release", "Let outputs out that you have reviewed."),
    "prune": Lazy("cli.commands.prune:prune", "Forget what finished long ago."),
    "prepare-for-reboot": Lazy("cli.commands.reboot:prepare_for_reboot", "Pause a backend and empty its machines."),
    "forget-agent": Lazy("cli.commands.forget_agent:forget_agent", "Take the work of an agent that is gone for good."),
}
"""Commands that change how a backend works; they talk to a controller with an operator's token."""

RUNNING: Final[Mapping[str, Lazy]] = {
    "up": Lazy("cli.commands.up:up", "Run a controller, an agent and a database on this machine."),
    "demo": Lazy("cli.commands.demo:demo", "Run the example study from start to finish."),
    "controller": Lazy("cli.commands.controller:controller", "Run a controller (configured by environment)."),
    "agent": Lazy("cli.commands.agent:agent", "Run an agent in a backend (configured by environment)."),
    "migrate": Lazy("cli.commands.migrate:migrate", "Bring the database's schema up to date."),
    "workspace": Lazy("cli.commands.workspace:workspace", "Look at workspaces, put them away, bring them back."),
    "backup": Lazy("cli.commands.backup:backup", "Write the database to a file while everything works."),
    "restore": Lazy("cli.commands.restore:restore", "Bring a backup back into an empty database."),
    "doctor": Lazy("cli.commands.doctor:doctor", "Say what is wrong, and what to type."),
}
"""Commands that are the system."""

SECTIONS: Final[Mapping[str, Mapping[str, Lazy]]] = {
    "Use a controller": USING,
    "Operate a backend": OPERATING,
    "Run the system": RUNNING,
}


class LazyGroup(click.Group):
    """A group that knows its subcommands by name and imports them one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of the help."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported now.

        :raises Problem: it needs a package that is not installed.
        """
        lazy = next((section[cmd_name] for section in SECTIONS.values() if cmd_name in section), None)
        return None if lazy is None else _load(cmd_name, lazy)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, out of the tables: nothing is imported for it."""
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, lazy.summary) for name, lazy in section.items()])


def _load(name: str, lazy: Lazy) -> click.Command:
    module, attribute = lazy.target.split(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise Problem(
            f"`rap {name}` needs the Python package {error.name!r}, which is not installed"
            " (pip install 'rap-controller[embedded,study]' brings everything)"
        ) from error
    if not isinstance(command, click.Command):
        raise TypeError(f"{lazy.target} is not a click command")
    return command


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        try:
            number = version("rap-controller")
        except PackageNotFoundError:
            number = "(not installed)"
        click.echo(f"rap {number}")
        ctx.exit()


_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=LazyGroup, context_settings=_SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def rap() -> None:
    """Reproducible analytic pipelines in secure backends.

    Commands that use a controller find a local `rap up` by themselves; for another one, set RAP_URL and
    RAP_TOKEN.
    """


def main(**options: Any) -> None:
    """The entry point of the `rap` script."""
    try:
        rap.main(prog_name="rap", **options)
    except OSError as error:
        # Above all: what a command prints cannot be written, because the disk is full or stdout is closed.
        click.echo(f"rap: {error}", err=True)
        sys.exit(Problem.exit_code)


if __name__ == "__main__":
    main()

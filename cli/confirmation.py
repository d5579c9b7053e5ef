"""Asking before something that cannot be taken back. Questions go to stderr: stdout stays the command's result."""

import sys
from typing import Final

import click

from cli.errors import Problem

REFUSED: Final = 1
"""Exit code of a "no" to the question."""

option: Final = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
"""Gives a command the argument `yes`."""


def need_person(yes: bool, *, danger: str) -> None:
    """Give up early where nobody could be asked.

    :param danger: begins the sentence, such as "stopping every running job".
    :raises Problem: there is no terminal, and no `-y`.
    """
    if not yes and not has_person():
        raise Problem(f"{danger} needs a yes: there is no terminal to ask at, so give -y")


def has_person() -> bool:
    """Whether somebody sits at the terminal."""
    return sys.stdin.isatty()


def ask(question: str) -> None:
    """Go on after a yes; end the command after a no."""
    if not click.confirm(question, err=True):
        click.echo("rap: nothing was changed", err=True)
        sys.exit(REFUSED)

"""What a command says when it cannot go on: one line on stderr, exit code 2, never a traceback."""

import click


class Problem(click.ClickException):
    """Something that the person at the keyboard can mend: an option, the connection, a name.

    The text is one sentence that names the option or setting to change; it never carries a token.
    """

    exit_code = 2

    def show(self, file: object = None) -> None:
        """Print the line on stderr, so that stdout stays a command's result."""
        del file
        click.echo(f"rap: {' '.join(self.format_message().split())}", err=True)


class Refused(Problem):
    """The controller says that the request cannot be: `status` is the HTTP status, `key` its error key."""

    def __init__(self, message: str, *, status: int, key: str) -> None:
        super().__init__(message)
        self.status = status
        self.key = key


class Missing(Refused):
    """The controller knows no such thing, or shows it to others only."""

"""`rap agent`: the production process, configured by environment."""

import os
import sys

import click


@click.command()
def agent() -> None:
    """Run an agent in a backend until SIGTERM or Ctrl-C.

    Configured by environment variables (docs/configuration.md); exit code 2 if they cannot be used.
    """
    from agent.__main__ import main

    sys.exit(main(os.environ))

"""`rap controller`: the production process, configured by environment."""

import os
import sys

import click


@click.command()
def controller() -> None:
    """Run a controller until SIGTERM or Ctrl-C.

    Configured by environment variables (docs/configuration.md); exit code 2 if they cannot be used.
    """
    from controller.__main__ import main

    sys.exit(main(os.environ))

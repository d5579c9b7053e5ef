"""`rap migrate`: bring the schema up to date; run it at every deployment, before the controllers start."""

import asyncio
import os

import asyncpg
import click

from cli import connection
from cli.errors import Problem
from common.environ import ConfigurationError
from controller.settings import database_url
from controller.store.schema import SchemaError
from controller.store.schema import migrate as apply


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def migrate(as_json: bool) -> None:
    """Bring the schema of RAP_DATABASE_URL up to date."""
    try:
        url = database_url(os.environ)
    except ConfigurationError as error:
        raise Problem(str(error)) from error
    try:
        applied = asyncio.run(apply(url))
    except SchemaError as error:
        raise Problem(str(error)) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        # The text of a connection's failure names host and user, never the password.
        raise Problem(f"the database of RAP_DATABASE_URL cannot be migrated: {error}") from error
    if as_json:
        connection.print_json({"applied": list(applied)})
        return
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to apply: the schema is up to date")

"""`rap limits`: how much of a backend jobs may use."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from cli import connection, report
from cli.connection import Connection

_POOLS: Final = {"workers": "workers", "db_workers": "database workers"}


class _Limit(click.FloatRange):
    """A finite number: NaN passes every comparison, and would be sent as null, which means something else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        :raises click.BadParameter: it is none, or out of bounds.
        """
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


_LIMIT: Final = _Limit(min=0, max=1_000_000)


@click.command()
@click.argument("backend", required=False)
@click.option("--workers", type=_LIMIT, help="New limit for jobs without database; 0 starts none of them.")
@click.option("--db-workers", type=_LIMIT, help="New limit for database jobs; 0 starts none of them.")
@click.option("--reset", is_flag=True, help="Back to what the settings say.")
@connection.options
def limits(backend: str | None, workers: float | None, db_workers: float | None, reset: bool, **options: Any) -> None:
    """Show how much jobs may use of BACKEND (or of every one), or change it. Needs an operator's token.

    Limits are sums of jobs' weights. A change holds at once and until the next one, for every controller. Lowering
    stops nothing that runs.
    """
    given = {"workers": workers, "db_workers": db_workers}
    changes = {name: value for name, value in given.items() if value is not None}
    if reset and changes:
        raise click.UsageError("--reset goes without --workers and --db-workers")
    if (reset or changes) and backend is None:
        raise click.UsageError("BACKEND is missing: whose limits shall change?")
    connected = connection.connect(**options)
    if reset or changes:
        wanted = dict.fromkeys(_POOLS) if reset else changes
        _print_set(connected, connected.change("backends", str(backend), "limits", body=wanted))
        return
    document = connected.read("limits", backend=backend)
    if connected.json:
        connection.print_json(document)
        return
    connection.console().print(_table(document["limits"]))


def _print_set(connected: Connection, done: Mapping[str, Any]) -> None:
    if connected.json:
        connection.print_json(done)
        return
    console, capacity = connection.console(), done["capacity"]
    slug = report.safe(capacity["backend"])
    holds = " and ".join(f"{capacity[name]['limit']:g} {words}" for name, words in _POOLS.items())
    already = "" if done["changed"] else " (it was so already: nothing changed)"
    console.print(f"Backend {slug} has {holds}{already}", soft_wrap=True)
    for name, words in _POOLS.items():
        pool = capacity[name]
        if pool["in_use"] > pool["limit"]:
            console.print(
                f"Jobs use {pool['in_use']:g} {words}: they run on, and others wait until there is room", soft_wrap=True
            )
        if pool["too_heavy"]:
            console.print(
                f"Too heavy for {pool['limit']:g} {words}: {report.count(pool['too_heavy'], 'pending job')},"
                " waiting until the limit is raised",
                soft_wrap=True,
            )


def _table(found: Iterable[Mapping[str, Any]]) -> Table:
    table = report.table("Backend", "Pool", "Limit", "Settings", "In use", "Running", "Pending", "Too heavy")
    for capacity in found:
        for name, words in _POOLS.items():
            pool = capacity[name]
            limit = f"{pool['limit']:g}{'' if pool['override'] is None else ' (set by an operator)'}"
            counts = (f"{pool['in_use']:g}", pool["running"], pool["pending"], pool["too_heavy"])
            cells = (report.safe(capacity["backend"]), words, limit, f"{pool['configured']:g}", *counts)
            table.add_row(*(Text(str(cell)) for cell in cells))
    return table

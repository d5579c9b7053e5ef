"""`rap backends`: where jobs can run, and who serves them there."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import click
from rich.text import Text

from cli import connection, report
from cli.connection import Connection


@click.command()
@connection.options
def backends(**options: Any) -> None:
    """List the backends that the token opens, with their agents."""
    connected = connection.connect(**options)
    document = connection.run(_read(connected))
    if connected.json:
        connection.print_json(document)
        return
    if not document["backends"]:
        connection.console().print("The token opens no backend.")
        return
    now = datetime.now(UTC)
    table = report.table("Backend", "Last seen", "Mode", "Database checks", "Agents")
    for each in document["backends"]:
        table.add_row(
            Text(report.safe(each["slug"])),
            Text(report.ago(each["last_seen"], now)),
            Text(_mode(each)),
            Text("\n".join(_check(check, now) for check in each.get("checks", ())) or "none"),
            Text("\n".join(_agent(agent, now) for agent in each["agents"]) or "none"),
        )
    connection.console().print(table)


async def _read(connected: Connection) -> dict[str, Any]:
    """The backends of the native API, each with a list of its `agents`."""
    async with connected.client() as client:
        found, agents = await asyncio.gather(client.read("backends"), client.read("agents"))
    return {
        "backends": [
            {**each, "agents": [agent for agent in agents["agents"] if agent["backend"] == each["slug"]]}
            for each in found["backends"]
        ]
    }


def _mode(backend: dict[str, Any]) -> str:
    modes = ["paused"] if backend["paused"] else []
    if backend["db_maintenance"]:
        modes.append(f"database maintenance ({report.safe(str(backend['db_maintenance_type']))})")
    return ", ".join(modes) or "normal"


_ANSWERS = {
    ("dbstatus", None): "status unknown",
    ("dbdatacheck", None): "data unknown",
    ("dbdatacheck", "OK"): "data recent",
    ("dbdatacheck", "FAILED"): "data too old",
}


def _check(check: dict[str, Any], now: datetime) -> str:
    """A check that could not be carried out leaves its question open."""
    kind, answer = check["kind"], check["answer"]
    maintained = "in maintenance" if str(answer).startswith("db-maintenance") else "not in maintenance"
    return report.safe(f"{_ANSWERS.get((kind, answer), maintained)}, {report.ago(check['finished_at'], now)}")


def _agent(agent: dict[str, Any], now: datetime) -> str:
    words = f"{agent['id']}: {agent['executor']}, {agent['slots']} slots, seen {report.ago(agent['last_seen'], now)}"
    return report.safe(words)

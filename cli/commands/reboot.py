"""`rap prepare-for-reboot`: stop what runs on a backend so that its machines can be switched off."""

import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from cli import confirmation, connection, report
from cli.connection import Connection

_NOT_YET: Final = 1
"""Exit code of `--status` while a reboot would cut something short."""


@click.command()
@click.argument("backend")
@click.option("--status", is_flag=True, help="Change nothing; say whether it is safe. Exit code 0: safe, 1: not yet.")
@confirmation.option
@connection.options
def prepare_for_reboot(backend: str, status: bool, yes: bool, **options: Any) -> None:
    """Pause BACKEND and queue its running jobs again. Needs an operator's token.

    The jobs' processes are stopped, and the jobs start anew after `rap unpause`. Asks first.
    """
    confirmation.need_person(status or yes, danger="stopping every running job")
    connected = connection.connect(**options)
    if status:
        found = connected.read("backends", backend, "reboot-status")
        _print_status(connected, found)
        sys.exit(0 if found["safe"] else _NOT_YET)
    if not yes:
        found = connected.read("backends", backend, "reboot-status")
        running = report.count(found["running"], "running job")
        confirmation.ask(f"Pause backend {report.safe(found['backend'])} and stop its {running}?")
    _print_done(connected, connected.change("backends", backend, "prepare-for-reboot"))


def _print_done(connected: Connection, done: Mapping[str, Any]) -> None:
    if connected.json:
        connection.print_json(done)
        return
    found = done["status"]
    if done["changed"] or done["jobs"]:
        did = f"paused, {report.count(len(done['jobs']), 'running job')} sent back to the queue"
    else:
        did = "was prepared already: nothing changed"
    connection.console().print(f"Backend {report.safe(found['backend'])} {did}", soft_wrap=True)
    _print_status(connected, found)


def _print_status(connected: Connection, found: Mapping[str, Any]) -> None:
    if connected.json:
        connection.print_json(found)
        return
    slug = report.safe(found["backend"])
    paused = "paused" if found["paused"] else "not paused"
    running, stopping = report.count(found["running"], "job"), report.count(found["cancelling"], "job")
    verdict = "safe to reboot" if found["safe"] else "NOT safe to reboot yet"
    connection.console().print(
        f"Backend {slug} is {paused}, {running} running, {stopping} being stopped: {verdict}", soft_wrap=True
    )
    if found.get("unconfirmed"):
        names = ", ".join(report.safe(name) for name in found["unconfirmed"])
        connection.console().print(f"Waiting for agents to confirm: {names}", soft_wrap=True)

"""What may be forgotten of finished RAPs, and its removal."""

from attrs import frozen

from controller.store.queries import command, query, scalar


@frozen
class PageRow:
    """One RAP of a page; `finished` if all of its jobs had ended before the cut-off."""

    id: str
    seq: int
    finished: bool


@frozen
class ClearedRow:
    """How many rows of each kind are gone."""

    events: int
    logs: int
    tasks: int


page = query("pruning", "page", PageRow)
jobs_of = query("pruning", "jobs_of", str, scalar("id"))
removable = query("pruning", "removable", str, scalar("id"))
clear = query("pruning", "clear", ClearedRow)
forget_late_logs = command("pruning", "forget_late_logs")
forget_needs = command("pruning", "forget_needs")
forget_dependants = command("pruning", "forget_dependants")
remove_outputs = query("pruning", "remove_outputs", int, scalar("removed"))
remove_jobs = command("pruning", "remove_jobs")
remove_raps = command("pruning", "remove_raps")

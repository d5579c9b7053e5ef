"""Sessions of people at a browser: digests only, of the session's secret and of the token that began it."""

from controller.store.queries import command, query, scalar

insert = command("sessions", "insert")
find = query("sessions", "find", bytes, scalar("token"))
delete = command("sessions", "delete")
delete_expired = command("sessions", "delete_expired")

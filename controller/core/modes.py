"""The operator's switches of a backend: what the values of its flags mean (reference section 3.6)."""

from collections.abc import Mapping

from attrs import frozen

from controller.core.model import DB_MAINTENANCE, Flag


@frozen(kw_only=True)
class Modes:
    """How a backend is switched at one moment.

    Two flags are read in two ways (edge behaviour 19; sections 1.2 and 2.2): whoever acts takes a pause in any case of
    letters and any text for manual maintenance, whoever answers a portal takes exactly the word that commands set. Our
    own commands set no other words, but a database that was brought here by hand may hold them.
    """

    paused: bool = False
    """No job is started."""
    paused_shown: bool = False
    """What portals are told of that."""
    db_maintenance: bool = False
    """No job that uses the database may run."""
    manual: bool = False
    """An operator has set or unset maintenance, so that no check of the database does."""
    manual_shown: bool = False
    """What portals are told of that."""
    checks_disabled: bool = False
    """An operator does not want the database to be asked (has a meaning in manual maintenance only)."""

    @classmethod
    def of(cls, values: Mapping[str, str | None]) -> "Modes":
        """What these values mean, by the names of their flags; a flag that is missing was never set."""
        paused, manual = values.get(Flag.PAUSED) or "", values.get(Flag.MANUAL_DB_MAINTENANCE) or ""
        return cls(
            paused=paused.lower() == "true",
            paused_shown=paused == "true",
            db_maintenance=values.get(Flag.MODE) == DB_MAINTENANCE,
            manual=manual != "",
            manual_shown=manual == "on",
            checks_disabled=values.get(Flag.CHECKS_DISABLED) == "true",
        )

"""What the values of flags mean, and where two readers read them differently (reference section 3.6)."""

import pytest

from controller.core.modes import Modes


@pytest.mark.parametrize(
    ("values", "modes"),
    [
        ({}, Modes()),
        ({"paused": None, "mode": None, "manual-db-maintenance": None}, Modes()),
        ({"paused": "", "mode": "", "manual-db-maintenance": "", "db-maintenance-checks-disabled": ""}, Modes()),
        ({"paused": "true"}, Modes(paused=True, paused_shown=True)),
        ({"paused": "True"}, Modes(paused=True)),
        ({"paused": "yes"}, Modes()),
        ({"mode": "db-maintenance"}, Modes(db_maintenance=True)),
        ({"mode": "DB-MAINTENANCE"}, Modes()),
        ({"manual-db-maintenance": "on"}, Modes(manual=True, manual_shown=True)),
        ({"manual-db-maintenance": "yes"}, Modes(manual=True)),
        ({"db-maintenance-checks-disabled": "true"}, Modes(checks_disabled=True)),
        ({"db-maintenance-checks-disabled": "True"}, Modes()),
        ({"last-seen-at": "true"}, Modes()),
    ],
)
def test_the_meaning_of_flags(values: dict[str, str | None], modes: Modes) -> None:
    assert Modes.of(values) == modes

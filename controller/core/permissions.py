"""What a database job may see (reference/opensafely.md section 4.5)."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final

EVENT_LEVEL_DATA: Final = "event_level_data"


def analysis_scope(
    requested: Mapping[str, Sequence[str]],
    *,
    project: str,
    requires_db: bool,
    event_level_projects: Collection[str],
) -> dict[str, tuple[str, ...]]:
    """The scope that a job of `project` gets; empty for a job without database.

    :param event_level_projects: slugs of the projects that may see event-level data; an operator's setting.
    """
    if not requires_db:
        return {}
    scope = {key: tuple(values) for key, values in requested.items()}
    scope["dataset_permissions"] = tuple(sorted(scope.get("dataset_permissions", ())))
    if project in event_level_projects:
        access = {*scope.get("component_access", ()), EVENT_LEVEL_DATA}
        scope["component_access"] = tuple(sorted(access))
    return scope


def ehrql_permissions(scope: Mapping[str, Sequence[str]]) -> str:
    """The value of `EHRQL_PERMISSIONS`: a JSON array of everything that the scope lists.

    Keys are taken in alphabetical order, so that the value does not depend on how the scope was stored.
    """
    return json.dumps([value for key in sorted(scope) for value in scope[key]])

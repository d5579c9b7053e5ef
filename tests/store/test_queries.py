"""Every named query is prepared on the migrated schema; its columns must fit its row's class, in name and type."""

import types
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs

import controller.store.backends
import controller.store.diagnosis
import controller.store.events
import controller.store.gauges
import controller.store.jobs
import controller.store.pruning
import controller.store.raps
import controller.store.samples
import controller.store.sessions
import controller.store.tasks
import controller.store.tokens
import controller.store.traces  # noqa: F401  the imports declare the queries
from controller.store.db import Database
from controller.store.queries import ALL, Query, Tx, _rewrite

PYTHON_TYPES: Mapping[str, set[type]] = {
    "text": {str},
    "int4": {int},
    "int8": {int},
    "bool": {bool},
    "float8": {float},
    "timestamptz": {datetime},
    "jsonb": {Mapping},
    "text[]": {list},
    "bytea": {bytes},
}


def _accepted(hint: Any) -> set[Any]:
    """The runtime classes that a type hint allows, None left out."""
    if get_origin(hint) in (Union, types.UnionType):
        return {cls for part in get_args(hint) if part is not type(None) for cls in _accepted(part)}
    hint = getattr(hint, "__supertype__", hint)
    hint = get_origin(hint) or hint
    if isinstance(hint, type) and issubclass(hint, str):
        return {str}
    return {Mapping if hint is Mapping or str(hint).startswith("collections.abc.Mapping") else hint}


async def test_queries_fit_the_schema_and_their_rows(database: Database) -> None:
    async with database.connection() as tx:
        faults = [fault for query in ALL for fault in await _faults(query, tx)]
    assert ALL
    assert faults == []


async def _faults(query: Query[Any], tx: Tx) -> list[str]:
    statement = await tx.prepare(query.sql)
    columns = {attribute.name: attribute.type.name for attribute in statement.get_attributes()}
    faults = []
    if len(statement.get_parameters()) != len(query.parameters):
        faults.append(f"{query.name}: {query.parameters} are not its parameters")
    if query.columns is type(None):
        return faults
    if not attrs.has(query.columns):
        ((name, found),) = columns.items()
        return faults + ([] if PYTHON_TYPES[found] == {query.columns} else [f"{query.name}.{name}: {found}"])
    hints = get_type_hints(query.columns)
    if set(columns) != set(hints):
        return [*faults, f"{query.name}: columns {sorted(set(columns) ^ set(hints))} are on one side only"]
    return faults + [
        f"{query.name}.{name}: {found} does not fit {hints[name]}"
        for name, found in columns.items()
        if not _accepted(hints[name]) & PYTHON_TYPES[found]
    ]


def test_parameters_are_numbered_by_name_and_operators_left_alone() -> None:
    sql, names = _rewrite("-- why\nSELECT @b, @a, @b WHERE x @> '{}' AND y = 'm@example'")
    assert names == ("b", "a")
    assert sql == "SELECT $1, $2, $1 WHERE x @> '{}' AND y = 'm@example'"

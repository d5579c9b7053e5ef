"""SQL lives in `.sql` files, per entity, named. This loader turns each into a callable with a typed row.

A file is a sequence of `-- name: find_job` headers, each followed by a comment line with the why and one statement.
`@name` stands for a parameter; the loader rewrites it to PostgreSQL's `$n`. tests/store/test_queries.py prepares
every query on the migrated schema and compares columns and types with the row's class.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import asyncpg
from attrs import field, frozen

if TYPE_CHECKING:
    Tx = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:  # the classes take no parameters at run time
    Tx = asyncpg.Connection
"""A connection inside a transaction (or one whose single statement is its own transaction)."""

R = TypeVar("R")

_HEADER = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_PARAMETER = re.compile(r"(?<![@\w])@([a-z]\w*)")


@frozen
class Query(Generic[R]):
    """One named statement. Parameters are given by name; `build` makes each result of a record.

    `columns` is the class (or, for a single column, the type) that the test compares with what PostgreSQL says.
    """

    name: str
    sql: str
    parameters: tuple[str, ...]
    columns: type[Any]
    build: Callable[[Any], R] = field(repr=False)
    file: str

    @property
    def full_name(self) -> str:
        """With the file, such as `tasks.claim`: unique among all queries."""
        return f"{self.file}.{self.name}"

    async def all(self, tx: Tx, **values: Any) -> list[R]:
        """Every row."""
        return [self.build(record) for record in await tx.fetch(self.sql, *self._order(values))]

    async def one(self, tx: Tx, **values: Any) -> R | None:
        """The first row, or None."""
        record = await tx.fetchrow(self.sql, *self._order(values))
        return None if record is None else self.build(record)

    async def run(self, tx: Tx, **values: Any) -> None:
        """For its effect only."""
        await tx.execute(self.sql, *self._order(values))

    def _order(self, values: Mapping[str, Any]) -> list[Any]:
        if values.keys() != set(self.parameters):
            raise TypeError(f"query {self.name} takes {self.parameters}, got {sorted(values)}")
        return [values[name] for name in self.parameters]


ALL: list[Query[Any]] = []
"""Every query that a module of the store has declared, for the test that verifies them."""


@overload
def query(file: str, name: str, columns: type[R]) -> Query[R]: ...


@overload
def query(file: str, name: str, columns: type[Any], build: Callable[[Mapping[str, Any]], R]) -> Query[R]: ...


def query(
    file: str, name: str, columns: type[Any], build: Callable[[Mapping[str, Any]], Any] | None = None
) -> Query[Any]:
    """The statement `name` of `<file>.sql`; by default each result is `columns(**record)`."""
    sql, parameters = _statements(file)[name]
    made = Query(name, sql, parameters, columns, build or (lambda record: columns(**dict(record.items()))), file)
    ALL.append(made)
    return made


def command(file: str, name: str) -> Query[None]:
    """A statement that is run for its effect."""
    sql, parameters = _statements(file)[name]
    made: Query[None] = Query(name, sql, parameters, type(None), lambda record: None, file)
    ALL.append(made)
    return made


def scalar(column: str) -> Callable[[Mapping[str, Any]], Any]:
    """A `build` for queries of one column."""
    return lambda record: record[column]


@cache
def _statements(file: str) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    text = (Path(__file__).parent / f"{file}.sql").read_text()
    parts = _HEADER.split(text)[1:]
    return {name: _rewrite(sql.strip()) for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def _rewrite(sql: str) -> tuple[str, tuple[str, ...]]:
    """`@name` -> `$n`, the same name to the same number."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${names.setdefault(match[1], len(names) + 1)}"

    code = "\n".join(line for line in sql.splitlines() if not line.startswith("--"))
    return _PARAMETER.sub(number, code).rstrip().rstrip(";"), tuple(names)

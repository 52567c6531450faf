"""Statements as a driver takes them.

One that is made anew each time costs five times as much as one whose text is kept.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from sqlalchemy import Dialect, Table, insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert


class InsertMissing:
    """Adds a row that is not there: its required columns, and the ``optional`` ones named."""

    is_select = False

    def __init__(self, table: Table, *optional: str) -> None:
        self._table = table
        self.columns = [c.name for c in table.c if not c.nullable or c.name in optional]

    def of(self, dialect: Dialect) -> Insert:
        if dialect.name == "postgresql":
            return postgresql.insert(self._table).on_conflict_do_nothing()
        if dialect.name == "sqlite":
            return sqlite.insert(self._table).on_conflict_do_nothing()
        return insert(self._table).prefix_with("IGNORE")


class Result(NamedTuple):
    """What a statement has found or changed."""

    rows: list[Any]
    rowcount: int

    def one(self) -> Any:
        """Return its only row, None if it has found none."""
        return self.rows[0] if self.rows else None


class Text(NamedTuple):
    """A compiled statement: the names of its values in order, or None, and what makes its rows."""

    sql: str
    names: Sequence[str] | None
    fixed: Mapping[str, Any]
    row: Callable[[Any], Any] | None


def compiled(statement: Any, dialect: Dialect) -> Text:
    """Return ``statement`` as a driver of ``dialect`` takes it."""
    columns = None
    if isinstance(statement, InsertMissing):
        columns, statement = statement.columns, statement.of(dialect)
    made: Any = statement.compile(
        dialect=dialect, column_keys=columns, compile_kwargs={"render_postcompile": True}
    )
    required = {name for name, bind in made.binds.items() if bind.required}
    return Text(
        sql=str(made),
        names=made.positiontup if made.positional else None,
        fixed={
            name: value.value if isinstance(value, Enum) else value
            for name, value in made.params.items()
            if name not in required
        },
        row=_row_of(statement),
    )


def _row_of(statement: Any) -> Callable[[Any], Any] | None:
    if statement.is_select:
        names = statement.selected_columns.keys()
    else:
        names = [column.key for column in getattr(statement, "_returning", ())]
    make: Any = namedtuple
    row: Callable[[Any], Any] | None = make("Row", names, rename=True)._make if names else None
    return row

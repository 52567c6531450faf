"""What the tables of a database lack of what they should have, and what makes it."""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import Column, Connection, Index, Table, inspect

from ...errors import OutboxUnavailable
from .schema import metadata

#: A part of the tables.
Part: TypeAlias = "Table | Index | Column[Any]"


def missing(connection: Connection) -> list[Part]:
    """Return the tables that are missing, and the columns and indexes of those that are not."""
    inspector = inspect(connection)
    found: list[Part] = []
    for table in metadata.sorted_tables:
        if not inspector.has_table(table.name):
            found.append(table)
            continue
        columns = {column["name"] for column in inspector.get_columns(table.name)}
        found += [column for column in table.columns if column.name not in columns]
        indexes = {
            (index["name"], *index["column_names"], bool(index["unique"]))
            for index in inspector.get_indexes(table.name)
        }
        found += [index for index in table.indexes if _shape(index) not in indexes]
    return found


def _shape(index: Index) -> tuple[object, ...]:
    return (index.name, *(column.name for column in index.columns), bool(index.unique))


def make_missing(connection: Connection) -> bool:
    """Make the tables and indexes that are missing; return whether any were.

    :raises OutboxUnavailable: if a table lacks a column: it is another version's.
    """
    found = missing(connection)
    if any(isinstance(part, Column) for part in found):
        raise OutboxUnavailable(explain(connection, found))
    for part in found:
        if not isinstance(part, Column):
            part.create(connection)
    return bool(found)


def explain(connection: Connection, found: list[Part]) -> str:
    """Say what is missing, and what to do about it."""
    where = connection.engine.url.render_as_string(hide_password=True)
    remedy = "To make what is missing, run: flask async-hooks init-db"
    if any(isinstance(part, Column) for part in found):
        remedy = (
            "They are another version's. To delete them, with all deliveries, and create new "
            "ones, run: flask async-hooks init-db --recreate"
        )
    parts = ", ".join(_name(part) for part in found)
    return f"The outbox's tables in {where} are incomplete: {parts}. {remedy}"


def _name(part: Part) -> str:
    if isinstance(part, Table):
        return f"no table {part.name!r}"
    kind = "index" if isinstance(part, Index) else "column"
    table = "" if part.table is None else f" of {part.table.name!r}"
    return f"no {kind} {part.name!r}{table}"

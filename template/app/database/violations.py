"""The columns of a violated constraint."""

import re

from sqlalchemy import Index, Table
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import ColumnCollectionConstraint

from app.database.base import Base
from app.database.errors import SCHEMA_CHANGED, constraint, violated, violated_table
from app.database.type_checks import PREFIX


def violated_columns(error: IntegrityError) -> tuple[str, ...]:
    """Return the names of the columns whose constraint a statement has violated.

    There are none if the database does not name the constraint.
    """
    columns, name = violated(error)
    if columns or name is None:
        return columns
    if name.startswith(PREFIX):
        return (name.removeprefix(PREFIX),)
    tables = [table for table in Base.metadata.tables.values() if is_violated(table, error)]
    for table in tables:
        for found in (*table.constraints, *table.indexes):
            if isinstance(found, ColumnCollectionConstraint | Index) and is_named(found, name):
                return tuple(column.name for column in found.columns)
    return ()


def servers_fault(columns: tuple[str, ...], error: IntegrityError) -> str:
    """Return the reason for a 503 if none of the client's values has violated a constraint, or ""."""
    given = (error.statement or "").partition("VALUES")[0]
    if any(mentions(given, column) for column in columns):
        return ""
    tables = [table for table in Base.metadata.tables.values() if is_violated(table, error)]
    known = {column.name for table in tables for column in table.columns}
    if constraint(error) == "not_null" and known.isdisjoint(columns):
        return SCHEMA_CHANGED  # only a newer release has the column
    keys = (table.autoincrement_column for table in tables)
    numbered = {key.name for key in keys if key is not None}
    if constraint(error) == "unique" and not numbered.isdisjoint(columns):
        return "server error"  # the sequence of the key is behind its rows
    return ""


def is_violated(table: Table, error: IntegrityError) -> bool:
    """Return whether a table may be the one whose constraint a statement has violated."""
    if table.schema and not mentions(error.statement or "", table.schema):
        return False
    return violated_table(error) in (table.name, "")


def mentions(statement: str, name: str) -> bool:
    return re.search(rf"(?i)(?<!\w){re.escape(name)}(?!\w)", statement) is not None


def is_named(found: ColumnCollectionConstraint | Index, name: str) -> bool:
    # SQLAlchemy truncates a longer name and adds a hash: 55 characters, `_` and 4 more.
    return found.name == name or (len(name) == 60 and str(found.name)[:55] == name[:55])

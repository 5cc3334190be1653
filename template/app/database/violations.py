"""The columns of a violated constraint."""

import re

from sqlalchemy import Index
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
    for table in Base.metadata.tables.values():
        for found in (*table.constraints, *table.indexes):
            if isinstance(found, ColumnCollectionConstraint | Index) and is_named(found, name):
                return tuple(column.name for column in found.columns)
    return ()


def servers_fault(columns: tuple[str, ...], error: IntegrityError) -> str:
    """Return the reason for a 503 if none of the client's values has violated a constraint, or ""."""
    given, name = (error.statement or "").partition("VALUES")[0], violated_table(error)
    if not mentions(given, name) or any(mentions(given, column) for column in columns):
        return ""  # it was a trigger's statement, or a value of this one
    tables = [table for table in Base.metadata.tables.values() if table.name == name]
    known = {column.name: column for table in tables for column in table.columns}
    if constraint(error) == "not_null" and not any(column in known for column in columns):
        return SCHEMA_CHANGED  # only a newer release has the column
    computed = any(column in known and known[column].computed is not None for column in columns)
    if constraint(error) == "unique" and not computed:
        return "server error"  # the sequence of the key is behind its rows
    return ""


def mentions(statement: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", statement) is not None


def is_named(found: ColumnCollectionConstraint | Index, name: str) -> bool:
    # SQLAlchemy truncates a longer name and adds a hash: 55 characters, `_` and 4 more.
    return found.name == name or (len(name) == 60 and str(found.name)[:55] == name[:55])

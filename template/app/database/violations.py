"""The columns of a violated constraint."""

import re

from sqlalchemy import Index
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import ColumnCollectionConstraint

from app.database.base import Base
from app.database.errors import constraint, violated
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
    statement = error.statement or ""
    known = [table.columns for table in Base.metadata.tables.values()]
    if constraint(error) == "not_null":  # of a column that only a newer release has?
        named = any(names(statement, it) or any(it in table for table in known) for it in columns)
        return "" if named else "schema changed"
    if constraint(error) == "unique":  # of a key whose sequence is behind its rows?
        given = statement.partition("VALUES")[0]
        computed = {it.name for table in known for it in table if it.computed is not None}
        own = any(names(given, it) or it in computed for it in columns)
        return "" if own else "server error"
    return ""


def names(statement: str, column: str) -> bool:
    return re.search(rf"\b{re.escape(column)}\b", statement) is not None


def is_named(found: ColumnCollectionConstraint | Index, name: str) -> bool:
    # SQLAlchemy truncates a longer name and adds a hash: 55 characters, `_` and 4 more.
    return found.name == name or (len(name) == 60 and str(found.name)[:55] == name[:55])

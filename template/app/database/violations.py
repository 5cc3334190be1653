"""The columns of a violated constraint."""

import re

from sqlalchemy import Index
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import ColumnCollectionConstraint

from app.database.base import Base
from app.database.errors import violated
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


def is_known(column: str, error: IntegrityError) -> bool:
    """Return whether the statement or a model names a column: a newer migration's has no value yet."""
    named = re.search(rf"\b{re.escape(column)}\b", error.statement or "")
    return bool(named) or any(column in table.columns for table in Base.metadata.tables.values())


def is_named(found: ColumnCollectionConstraint | Index, name: str) -> bool:
    # SQLAlchemy truncates a longer name and adds a hash: 55 characters, `_` and 4 more.
    return found.name == name or (len(name) == 60 and str(found.name)[:55] == name[:55])

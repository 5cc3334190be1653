"""Autogenerate: what Alembic compares, and how it renders a difference."""

import sys
from collections.abc import Mapping
from typing import Any, Literal

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import MigrationScript
from sqlalchemy import Column, Enum
from sqlalchemy.types import TypeEngine

from migrations.metadata import metadata

SCHEMAS = {table.schema for table in metadata.tables.values()} or {None}


def render_item(kind: str, item: object, autogen: AutogenContext) -> str | Literal[False]:
    """Render the service's own column types by their names."""
    if kind != "type" or type(item).__module__ != "app.database.types":
        return False
    autogen.imports.add("from app import database")
    return f"database.{type(item).__name__}()"


def include_name(name: str | None, kind: str, parents: Mapping[str, Any]) -> bool:
    """Compare only the models' schemas, and CHECK constraints named by the naming convention.

    Others belong to their column's type; a database may have given them a name.
    """
    if kind == "schema":
        return name in SCHEMAS
    return kind != "check_constraint" or (name or "").startswith("ck_")


def compare_type(
    context: Any,
    found_column: Column[Any],
    column: Column[Any],
    found: TypeEngine[Any],
    wanted: TypeEngine[Any],
) -> bool | None:
    """Compare the labels of enums, which Alembic does not."""
    found, wanted = getattr(found, "item_type", found), getattr(wanted, "item_type", wanted)
    if isinstance(found, Enum) and isinstance(wanted, Enum):
        return set(found.enums) != set(wanted.enums) or None
    return None


def quoted(text: str) -> str:
    """Quote text as the database does in a server default."""
    return "'" + text.replace("'", "''") + "'"


def name_losses(context: Any, revision: Any, scripts: list[MigrationScript]) -> None:
    """Say which values would be lost: for Alembic, a rename is a drop and an addition."""
    for difference in scripts[0].upgrade_ops.as_diffs() if scripts[0].upgrade_ops else ():
        match difference:
            case ("remove_column", _, table, column):
                dropped, kept = f"{table}.{column.name}", "alter_column(…, new_column_name=…)"
            case ("remove_table", table):
                dropped, kept = table.fullname, "rename_table(…)"
            case _:
                continue
        text = f"Dropping {dropped} loses its values. If it was renamed, {kept} keeps them."
        print(text, file=sys.stderr)


OPTIONS: dict[str, Any] = {
    "target_metadata": metadata,
    "render_item": render_item,
    "process_revision_directives": name_losses,
    "include_name": include_name,
    "include_schemas": SCHEMAS - {None} != set(),
    "compare_type": compare_type,
    "compare_server_default": True,
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
}

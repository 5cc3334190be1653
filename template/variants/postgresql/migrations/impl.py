"""Alembic on PostgreSQL: defaults that are compared, CHECK constraints of types."""

import re
from typing import Any

from alembic.ddl.postgresql import PostgresqlImpl
from sqlalchemy import Column, MetaData, Table, text
from sqlalchemy.exc import DBAPIError

from app.database.type_checks import PREFIX
from migrations.autogenerate import quoted
from migrations.locks import LOCK_TIMEOUT


class PostgreSQL(PostgresqlImpl):
    """Alembic uses the class that was defined last for a database."""

    __dialect__ = "postgresql"

    def compare_server_default(
        self, inspector_column: Any, metadata_column: Any, wanted: str | None, found: str | None
    ) -> bool:
        plain = re.sub(r"::[^']+$", "", found or "")
        if wanted is not None and plain in (wanted, quoted(wanted)):
            return False
        try:
            with self.connection.begin_nested():  # type: ignore[union-attr]
                differs: bool = super().compare_server_default(  # type: ignore[no-untyped-call]
                    inspector_column, metadata_column, wanted, found
                )
                return differs
        except DBAPIError:  # the server can't compare these values
            return True

    def add_column(self, table_name: str, column: Any, **options: Any) -> None:
        super().add_column(table_name, column, **options)
        self._check(table_name, column, options.get("schema"), "NOT VALID")  # no row violates it

    def alter_column(
        self,
        table_name: str,
        column_name: str,
        *,
        name: Any = None,
        type_: Any = None,
        **options: Any,
    ) -> None:
        """Change the CHECK of the column's type along with its type or name."""
        quote = self.dialect.identifier_preparer.quote
        table = qualified(self, table_name, options.get("schema"))
        old = quote(f"{PREFIX}{column_name}")
        if type_ is not None:
            self._exec(text(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {old}"))
        super().alter_column(table_name, column_name, name=name, type_=type_, **options)
        if type_ is not None:
            column: Column[Any] = Column(name or column_name, type_, nullable=True)
            self._check(table_name, column, options.get("schema"))
        elif name is not None:
            new = quote(f"{PREFIX}{name}")
            rename = f"ALTER TABLE {table} RENAME CONSTRAINT {old} TO {new};"
            self._exec(text(f"DO $$BEGIN {rename} EXCEPTION WHEN undefined_object THEN END$$"))

    def _check(self, table_name: str, column: Any, schema: str | None, validity: str = "") -> None:
        compiler: Any = self.dialect.ddl_compiler
        if check := compiler(self.dialect, None).check(column):
            table = qualified(self, table_name, schema)
            self._exec(text(f"ALTER TABLE {table} ADD{check} {validity}".replace(":", "\\:")))

    def emit_begin(self) -> None:  # of `--sql`
        super().emit_begin()
        self.static_output(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';")


def qualified(impl: PostgresqlImpl, table: str, schema: str | None) -> str:
    return impl.dialect.identifier_preparer.format_table(Table(table, MetaData(), schema=schema))

"""CHECK constraints for column types: SQLite would store any value in any column."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Time,
    Uuid,
)
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler, SQLiteDDLCompiler
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateTable

from app.database.type_checks import Bounded, TypeCheckCompiler, without_types

NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
MAX_DIGITS = 15  # that a REAL returns unchanged

TEXT = "typeof(@) = 'text' AND instr(@, char(0)) = 0"
HEX_DIGITS = "NOT GLOB '*[^0-9a-f]*'"
HEX = f"typeof(@) = 'text' AND length(@) = 32 AND @ {HEX_DIGITS}"
NUMBER = "typeof(@) IN ('integer', 'real')"
# In SQLAlchemy's format. SQLite's functions accept other formats, and roll February 30 over; a
# column of type DATE has numeric affinity, and `substr` makes a text of it.
DAY = "{0} IS date({0}, '+0 days') AND substr({0}, 1) BETWEEN '0001-01-02' AND '9999-12-30'"
TIME = (
    "{0} GLOB '{1}??:??:??." + "[0-9]" * 6 + "'"
    " AND time(substr({0}, -15, 8), '+0 days') IS substr({0}, -15, 8)"
)
CONDITIONS: dict[type[Any], str] = {
    Boolean: "@ IN (0, 1)",
    Date: f"{TEXT} AND {DAY.format('@')}",
    DateTime: f"{TEXT} AND {DAY.format('substr(@, 1, 10)')} AND {TIME.format('substr(@, 11)', ' ')}",
    Time: f"{TEXT} AND {TIME.format('@', '')}",
    Uuid: HEX,
    JSON: "json_valid(@)",
    LargeBinary: "typeof(@) = 'blob'",
    Float: NUMBER + " AND abs(@) < 9e999",
}
BITS = {SmallInteger: 15, BigInteger: 63, Integer: 31}


class BoundedNumeric(Bounded, Numeric[Any]):
    pass


class BoundedFloat(Bounded, Float[Any]):
    pass


class StatementCompiler(SQLiteCompiler):
    def visit_now_func(self, fn: Any, **options: Any) -> str:
        # CURRENT_TIMESTAMP has another format than SQLAlchemy's datetimes, so it compares wrongly.
        return NOW

    visit_current_timestamp_func = visit_now_func


class DDLCompiler(TypeCheckCompiler, SQLiteDDLCompiler):
    def visit_create_table(self, create: CreateTable, **options: Any) -> str:
        # Without it, the id of a deleted row would be reused.
        if create.element.autoincrement_column is not None:
            create.element.dialect_options["sqlite"]["autoincrement"] = True
        statement: str = super().visit_create_table(create, **options)  # type: ignore[no-untyped-call]
        return statement

    def get_column_specification(self, column: Column[Any], **options: Any) -> str:
        specification: str = super().get_column_specification(column, **options)  # type: ignore[no-untyped-call]
        return specification + self.check(column)

    def condition(self, column: Column[Any], kind: Any) -> str | None:
        if isinstance(kind, String):
            return TEXT + (f" AND length(@) <= {kind.length}" if kind.length else "")
        if isinstance(kind, Integer):
            if column is column.table.autoincrement_column:  # checked by SQLite itself
                return None
            bits = next(bits for type_, bits in BITS.items() if isinstance(kind, type_))
            bits = 63 if is_key(column) else bits
            return f"typeof(@) = 'integer' AND @ BETWEEN {-(2**bits)} AND {2**bits - 1}"
        if isinstance(kind, Numeric):
            if kind.scale is None or not kind.precision or kind.precision > MAX_DIGITS:
                raise CompileError(
                    f"{column}: a Numeric needs a scale, and a precision of at most {MAX_DIGITS}"
                )
            largest = 10 ** (kind.precision - kind.scale)
            return f"{NUMBER} AND round(@, {kind.scale}) = @ AND abs(@) < {largest}"
        return next((check for type_, check in CONDITIONS.items() if isinstance(kind, type_)), None)


class CheckedDialect(SQLiteDialect_aiosqlite):
    """aiosqlite's dialect, with CHECK constraints for column types and bounded numbers."""

    supports_statement_cache = True
    statement_compiler = StatementCompiler
    ddl_compiler = DDLCompiler
    colspecs = SQLiteDialect_aiosqlite.colspecs | {Numeric: BoundedNumeric, Float: BoundedFloat}

    def get_foreign_keys(
        self, connection: Any, table_name: str, schema: str | None = None, **options: Any
    ) -> Any:
        # For a column that was added, only the PRAGMA has the actions.
        found = super().get_foreign_keys(connection, table_name, schema, **options)  # type: ignore[no-untyped-call]
        pragma = f"PRAGMA foreign_key_list({self.identifier_preparer.quote_identifier(table_name)})"
        actions = {
            row["from"]: {"onupdate": row["on_update"], "ondelete": row["on_delete"]}
            for row in connection.exec_driver_sql(pragma).mappings()
        }
        for key in found:
            if not key["options"]:
                kept = actions.get(key["constrained_columns"][0], {})
                key["options"] = {n: action for n, action in kept.items() if action != "NO ACTION"}
        return found

    def get_check_constraints(self, *args: Any, **options: Any) -> Any:
        return without_types(super().get_check_constraints(*args, **options))  # type: ignore[no-untyped-call]


def is_key(column: Column[Any]) -> bool:
    """Return whether a column is, or refers to, a key: 64 bits, though it is an INTEGER."""
    return column.primary_key or bool(column.foreign_keys)

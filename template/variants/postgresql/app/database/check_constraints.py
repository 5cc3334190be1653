"""CHECK constraints for column types: PostgreSQL stores values that Python can't represent."""

from typing import Any

from sqlalchemy import Column, Date, DateTime, Float, Numeric, Time
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgFloat, AsyncpgNumeric, PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.base import PGDDLCompiler

from app.database.type_checks import Bounded, TypeCheckCompiler, without_types

# The driver sends Python's first and last datetime as -infinity and infinity, and fails on years
# beyond 9999.
CONDITIONS: dict[type[Any], str] = {
    Date: "@ BETWEEN '0001-01-02' AND '9999-12-30'",
    Time: "@ < '24:00'",
    Float: "@ NOT IN ('NaN', 'Infinity', '-Infinity')",
    Numeric: "@ NOT IN ('NaN', 'Infinity', '-Infinity')",
}


class BoundedNumeric(Bounded, AsyncpgNumeric):
    pass


class BoundedFloat(Bounded, AsyncpgFloat):
    pass


class DDLCompiler(TypeCheckCompiler, PGDDLCompiler):
    def visit_create_column(self, create: Any, *args: Any, **options: Any) -> str | None:
        # For CREATE TABLE alone: added to a table with rows, it would scan all of them under an
        # exclusive lock.
        column: str | None = super().visit_create_column(create, *args, **options)  # type: ignore[no-untyped-call]
        return None if column is None else column + self.check(create.element)

    def condition(self, column: Column[Any], kind: Any) -> str | None:
        if isinstance(kind, DateTime):
            zone = "+00" if kind.timezone else ""
            return f"@ >= '0001-01-02 00:00:00{zone}' AND @ < '9999-12-31 00:00:00{zone}'"
        return next((check for type_, check in CONDITIONS.items() if isinstance(kind, type_)), None)


class CheckedDialect(PGDialect_asyncpg):
    """asyncpg's dialect, with CHECK constraints for column types and bounded numbers."""

    supports_statement_cache = True
    ddl_compiler = DDLCompiler
    colspecs = PGDialect_asyncpg.colspecs | {Numeric: BoundedNumeric, Float: BoundedFloat}

    def get_multi_check_constraints(self, *args: Any, **options: Any) -> Any:
        found = super().get_multi_check_constraints(*args, **options)  # type: ignore[no-untyped-call]
        return [(table, without_types(checks)) for table, checks in found]

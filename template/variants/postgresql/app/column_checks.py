"""What a column of each type holds, whoever writes: PostgreSQL stores more than Python can read."""

from typing import Any

from sqlalchemy import Column, Date, DateTime, Float, Numeric, Time
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgFloat, AsyncpgNumeric, PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.base import PGDDLCompiler

from app.column_types import CheckingDDLCompiler, Fitting, without_types

# The driver sends Python's first and last moment as infinite ones, and fails on years beyond 9999.
CONDITIONS: dict[type[Any], str] = {
    Date: "@ >= '0001-01-01' AND @ < '10000-01-01'",
    Time: "@ < '24:00'",
    Float: "@ NOT IN ('NaN', 'Infinity', '-Infinity')",
    Numeric: "@ NOT IN ('NaN', 'Infinity', '-Infinity')",
}


class FittingNumeric(Fitting, AsyncpgNumeric):
    pass


class FittingFloat(Fitting, AsyncpgFloat):
    pass


class DDLCompiler(CheckingDDLCompiler, PGDDLCompiler):
    def condition(self, column: Column[Any], kind: Any) -> str | None:
        if isinstance(kind, DateTime):
            zone = "+00" if kind.timezone else ""
            return f"@ >= '0001-01-01 00:00:00{zone}' AND @ < '10000-01-01 00:00:00{zone}'"
        return next((check for type_, check in CONDITIONS.items() if isinstance(kind, type_)), None)


class CheckingDialect(PGDialect_asyncpg):
    """asyncpg's dialect, whose tables hold what their columns promise."""

    supports_statement_cache = True
    ddl_compiler = DDLCompiler
    colspecs = PGDialect_asyncpg.colspecs | {Numeric: FittingNumeric, Float: FittingFloat}

    def get_multi_check_constraints(self, *args: Any, **options: Any) -> Any:
        found = super().get_multi_check_constraints(*args, **options)  # type: ignore[no-untyped-call]
        return [(table, without_types(checks)) for table, checks in found]

"""Values that fit the type of their column: bounded numbers, and a CHECK constraint."""

import math
from collections.abc import Callable, Iterable
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any

from sqlalchemy import Column, Dialect, Float, TypeDecorator
from sqlalchemy.engine.interfaces import ReflectedCheckConstraint
from sqlalchemy.sql.compiler import DDLCompiler as Compiler

PREFIX = "type_of_"
EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)  # rounds nothing


class Bounded:
    """A mixin for numeric types: refuses a value that would be rounded or overflow the column."""

    precision: Any
    scale: Any

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        process = super().bind_processor(dialect)  # type: ignore[misc]
        scale = self.scale
        if scale is None and self.precision and not isinstance(self, Float):
            scale = 0  # as in SQL; a Float's precision is another one

        def bind(value: Any) -> Any:
            if value is None:
                return None
            finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
            if not finite:
                raise ValueError("a number must be finite")
            if scale is not None and value:
                number = EXACT.normalize(Decimal(str(value)))
                if -int(number.as_tuple().exponent) > scale:
                    raise ValueError(f"a number must have at most {scale} decimal places")
                if self.precision and number.adjusted() >= (whole := self.precision - scale):
                    raise ValueError(f"a number must have at most {whole} digits before the point")
            return process(value) if process else value

        return bind


class TypeCheckCompiler(Compiler):
    """A mixin for DDL compilers: gives each column a CHECK constraint for its type."""

    def condition(self, column: Column[Any], kind: Any) -> str | None:
        """Return the condition for a column of this type, with `@` in place of its name."""
        raise NotImplementedError

    def check(self, column: Column[Any]) -> str:
        """Return the column's constraint clause, or an empty string."""
        kind = column.type.dialect_impl(self.dialect)
        while isinstance(kind, TypeDecorator):
            kind = kind.impl_instance
        condition = self.condition(column, kind)
        if condition is None or column.computed is not None:
            return ""
        name, check = map(self.preparer.quote, (column.name, f"{PREFIX}{column.name}"))
        unless = f"{name} IS NULL OR " if column.nullable else ""
        return f" CONSTRAINT {check} CHECK ({unless}{condition.replace('@', name)})"


def without_types(checks: Iterable[ReflectedCheckConstraint]) -> list[ReflectedCheckConstraint]:
    """Leave out the constraints of types, which are created and dropped with their columns."""
    return [check for check in checks if not (check["name"] or "").startswith(PREFIX)]

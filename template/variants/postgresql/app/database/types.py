"""Column types that migrations refer to."""

import datetime

from sqlalchemy import BigInteger, DateTime, Dialect, TypeDecorator


class BigIntegerKey(BigInteger):
    """The type of a 64-bit primary key."""


class UTCDateTime(TypeDecorator[datetime.datetime]):
    """A moment, stored and returned in UTC; a naive datetime is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value

import datetime
import decimal
import uuid
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Date,
    Double,
    Identity,
    Integer,
    Numeric,
    String,
    Time,
    Uuid,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, BigIntegerKey, UTCDateTime


class Value(Base):
    """A value of each type; each row has one, and NULL in the other columns."""

    __tablename__ = "values_of_types"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(always=True), primary_key=True)
    text: Mapped[str | None] = mapped_column(String(60))
    name: Mapped[str | None] = mapped_column(String(60))
    integer: Mapped[int | None] = mapped_column(Integer)
    big_integer: Mapped[int | None] = mapped_column(BigInteger)
    amount: Mapped[decimal.Decimal | None] = mapped_column(Numeric(12, 2))
    number: Mapped[float | None] = mapped_column(Double)
    flag: Mapped[bool | None]
    date: Mapped[datetime.date | None] = mapped_column(Date)
    time: Mapped[datetime.time | None] = mapped_column(Time)
    moment: Mapped[datetime.datetime | None] = mapped_column(UTCDateTime)
    key: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    json: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    changed_at: Mapped[datetime.datetime | None] = mapped_column(
        UTCDateTime, server_default=func.now(), onupdate=func.now()
    )

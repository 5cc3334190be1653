"""The declarative base of every model, and its mixins."""

import datetime
from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import MetaData, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database.types import UTCDateTime


class Base(DeclarativeBase):
    """The base of all models, whose tables Alembic compares with the database."""

    # A migration can alter or drop a constraint only by its name.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    type_annotation_map = {datetime.datetime: UTCDateTime}

    # The flush loads what the server generates, for an UPDATE as well as for an INSERT.
    __mapper_args__ = {"eager_defaults": True}

    if TYPE_CHECKING:
        __table__: ClassVar[Table]


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Timestamps:
    """When a row was inserted and last updated; the same moment for both at first."""

    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime.datetime] = mapped_column(
        default=lambda context: context.get_current_parameters().get("created_at") or utc_now(),
        onupdate=utc_now,
    )

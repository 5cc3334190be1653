"""The base of every model."""

import datetime
from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import MetaData, Table
from sqlalchemy.orm import DeclarativeBase

from app.database import UTCDateTime


class Base(DeclarativeBase):
    """Models are mapped here; Alembic compares their tables with the database."""

    # Constraints without names of their own could not be altered or dropped by a migration.
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

    if TYPE_CHECKING:
        __table__: ClassVar[Table]


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

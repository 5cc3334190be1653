"""The table of the items. Yours: an update leaves it alone."""

from sqlalchemy import Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, BigIntegerKey, Timestamps

MAX_NAME_LENGTH = 200
MAX_DESCRIPTION_LENGTH = 2_000


class Item(Timestamps, Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), unique=True)
    description: Mapped[str | None] = mapped_column(String(MAX_DESCRIPTION_LENGTH))
    version: Mapped[int] = mapped_column(default=1)

    # A flush of the ORM increments it, and refuses to overwrite a row that has changed since it was
    # read. A statement increments it itself, as in `queries.update_item`.
    __mapper_args__ = Base.__mapper_args__ | {"version_id_col": version}

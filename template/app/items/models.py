import datetime

from sqlalchemy import Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import BigIntegerKey
from app.models import Base, utc_now

MAX_NAME_LENGTH = 200
MAX_DESCRIPTION_LENGTH = 2_000


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), unique=True)
    description: Mapped[str | None] = mapped_column(String(MAX_DESCRIPTION_LENGTH))
    created_at: Mapped[datetime.datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime.datetime] = mapped_column(
        default=lambda row: row.get_current_parameters()["created_at"], onupdate=utc_now
    )
    version: Mapped[int] = mapped_column(default=1)

    # The ORM counts it up, and refuses to overwrite a row that has changed since it was read.
    __mapper_args__ = {"version_id_col": version}

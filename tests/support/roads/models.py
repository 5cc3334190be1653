from sqlalchemy import Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, BigIntegerKey


class Road(Base):
    __tablename__ = "roads"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(60), unique=True)
    number: Mapped[int]

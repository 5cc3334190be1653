"""What a model and a migration need: the base, and the column types that are the service's own."""

from app.database.base import Base, Timestamps, utc_now
from app.database.types import BigIntegerKey, UTCDateTime

__all__ = ["Base", "BigIntegerKey", "Timestamps", "UTCDateTime", "utc_now"]

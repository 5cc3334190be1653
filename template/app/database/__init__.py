"""What models and migrations need: the base, and the service's own column types."""

from app.database.base import Base, Timestamps, utc_now
from app.database.types import BigIntegerKey, UTCDateTime

__all__ = ["Base", "BigIntegerKey", "Timestamps", "UTCDateTime", "utc_now"]

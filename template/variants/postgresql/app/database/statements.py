"""The statements whose form is the database's own."""

from sqlalchemy.dialects.postgresql import insert

__all__ = ["insert"]

"""The statements whose form is the database's own."""

from sqlalchemy.dialects.sqlite import insert

__all__ = ["insert"]

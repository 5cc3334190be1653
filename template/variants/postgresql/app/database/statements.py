"""Statements that are specific to the database."""

from sqlalchemy.dialects.postgresql import insert

__all__ = ["insert"]

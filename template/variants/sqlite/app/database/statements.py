"""Statements that are specific to the database."""

from sqlalchemy.dialects.sqlite import insert

__all__ = ["insert"]

"""The `sessionmaker`."""

from sqlalchemy.ext.asyncio import async_sessionmaker

Sessionmaker = async_sessionmaker
"""SQLAlchemy's own: PostgreSQL allows many writers at a time."""

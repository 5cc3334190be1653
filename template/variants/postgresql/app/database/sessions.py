"""The factory of sessions."""

from sqlalchemy.ext.asyncio import async_sessionmaker

Sessionmaker = async_sessionmaker
"""SQLAlchemy's own: PostgreSQL has many writers at a time."""

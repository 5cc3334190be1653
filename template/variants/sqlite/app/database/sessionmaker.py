"""The `sessionmaker`: its sessions share a write lock, since the file has one writer at a time."""

import asyncio
import sqlite3
from contextlib import suppress
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import MissingGreenlet, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from app.database.pool import await_


class Writer(Session):
    """A session that acquires the process's write lock, in the order of arrival.

    It does so before it checks out a connection, so that waiting sessions leave the pool to
    readers, but not before its first statement, so that other work blocks no writer.
    """

    _has_lock = False

    def get_bind(self, *arguments: Any, **options: Any) -> Any:
        if not self._has_lock:
            with suppress(MissingGreenlet):  # a handler that asks for the engine executes nothing
                await_(self._take_lock())
        return super().get_bind(*arguments, **options)

    async def _take_lock(self) -> None:
        seconds = self.info["timeout"]
        try:
            async with asyncio.timeout(seconds):
                await self.info["lock"].acquire()
        except TimeoutError:
            error = sqlite3.OperationalError(f"the write lock was not free in {seconds:g} s")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise OperationalError(None, None, error) from None
        self._has_lock = True

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.release_lock()

    def release_lock(self) -> None:
        if self._has_lock:
            self._has_lock = False
            self.info["lock"].release()


@event.listens_for(Writer, "after_transaction_end")
def release_lock(session: Writer, transaction: SessionTransaction) -> None:
    # Not every session is closed: `sessionmaker.begin()` leaves one open if its commit fails.
    if transaction.parent is None:
        session.release_lock()


class Sessionmaker(async_sessionmaker[AsyncSession]):
    """A factory of sessions that share one write lock."""

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        pool: Any = engine.pool
        info = {"lock": asyncio.Lock(), "timeout": pool.timeout()}
        super().__init__(engine, sync_session_class=Writer, info=info, **options)

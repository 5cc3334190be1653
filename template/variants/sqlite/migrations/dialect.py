"""What SQLite needs of migrations: a turn for each process, and tables that are made anew whole."""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from alembic.ddl.sqlite import SQLiteImpl
from alembic.runtime.migration import MigrationContext

from migrations.running import POLL

logger = logging.getLogger("migrations")


class Implementation(SQLiteImpl):
    """Alembic takes the last class that was defined for a database."""

    __dialect__ = "sqlite"

    def _compare_identity_default(self, *_: Any) -> tuple[set[str], set[str], bool]:
        return set(), set(), False  # SQLite has none: keys are given without


def check_rows(ctx: MigrationContext, **step: Any) -> None:
    """Refuse a migration, before its commit, that leaves rows without those they refer to."""
    assert ctx.connection is not None
    if orphans := ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        raise RuntimeError(f"rows refer to rows that are not there: {orphans[:10]}")


@contextmanager
def turn(path: str) -> Iterator[None]:
    """Wait until no other process migrates: the lock of a file beside, which ends with the process.

    The database's own is not held between two migrations, nor while one works in batches.
    """
    with closing(sqlite3.connect(f"{path}-migrations", timeout=0, isolation_level=None)) as file:
        waits = False
        while not lock(file):
            if not waits:
                logger.info("another process migrates: waiting for it")
            waits = True
            time.sleep(POLL)
        yield


def lock(file: sqlite3.Connection) -> bool:
    try:
        file.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True

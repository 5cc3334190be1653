"""The lock of a migration: one process migrates at a time."""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from migrations.runner import POLL

logger = logging.getLogger("migrations")


def create(path: str) -> str:
    """Create a file that only its owner may read; SQLite's, and its log, would be readable by all."""
    with suppress(OSError):  # SQLite says what is wrong
        os.close(os.open(path, os.O_CREAT, 0o600))
    return path


@contextmanager
def migration_lock(path: str) -> Iterator[None]:
    """Wait until no other process migrates: a lock on a file of its own, which ends with the process.

    The database's lock is not held between migrations, nor during an autocommit block.
    """
    own = create(f"{path}-migrations")
    with closing(sqlite3.connect(own, timeout=0, isolation_level=None)) as file:
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

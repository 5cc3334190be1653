"""What a connection to the SQLite file needs when it is opened and when it is given up."""

import os
import sqlite3
from typing import Any


class OutcomeUnknown(sqlite3.OperationalError):
    """The file could not be written to the end of a commit: the transaction may be stored or not."""


def identity(path: str) -> object:
    """Return what tells a file from any other that has been or will be at its path."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def files(path: str) -> tuple[object, object]:
    """Return the identities of the database and its write-ahead log, both of which hold rows."""
    return identity(path), identity(f"{path}-wal")


def is_same(opened: tuple[object, object], found: tuple[object, object]) -> bool:
    """Tell whether these are the files that were opened; a log may have been begun since."""
    return opened[0] == found[0] is not None and opened[1] in (None, found[1])


def unavailable(reason: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    return error


async def set_up(connection: Any) -> None:
    await connection.execute("PRAGMA foreign_keys = ON")
    # With less, a power failure would take the last commits with it.
    await connection.execute("PRAGMA synchronous = FULL")


async def close(connection: Any) -> None:
    # Its thread may be in a statement for which nobody waits any more, with the file locked.
    await connection.interrupt()
    try:
        await connection.rollback()  # a cursor that is still referred to would keep the lock
    finally:
        await connection.close()

"""What a connection to the SQLite file needs when it is opened and when it is given up."""

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

CLOSE_TIMEOUT = 1.0  # seconds
# Another program's text that is not Unicode would break each list that holds it.
DECODE = partial(str, encoding="utf-8", errors="replace")


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
    connection.text_factory = DECODE
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


class Connections:
    """Those that are open, and of which file: of one at a time under a path.

    SQLite finds a file's log and its index by their paths: two files that are open under one path
    take each other's, and lose what was committed.
    """

    def __init__(self) -> None:
        self._files: WeakKeyDictionary[Any, tuple[str, tuple[object, object]]] = WeakKeyDictionary()
        self._in_use: WeakSet[Any] = WeakSet()
        self._opening: list[object] = []  # the identities of files
        self._given_up: dict[asyncio.Task[None], object] = {}  # to the identity of its file

    def add(self, connection: Any, path: str, opened: tuple[object, object]) -> None:
        self._files[connection] = path, opened

    def discard(self, connection: Any) -> None:
        self._files.pop(connection, None)

    def is_good(self, connection: Any) -> bool:
        path, opened = self._files.get(connection, ("", (None, None)))
        return is_same(opened, files(path))

    def note_checkout(self, connection: Any, record: object, proxy: object) -> None:
        self._in_use.add(connection.driver_connection)

    def note_checkin(self, connection: Any, record: object) -> None:
        if connection is not None:
            self._in_use.discard(connection.driver_connection)

    def give_up(self, connection: Any) -> None:
        """Close a connection, once, while nobody waits for it."""
        if connection not in self._files:
            return
        task = asyncio.get_running_loop().create_task(close(connection))
        _, (self._given_up[task], _) = self._files.pop(connection)
        task.add_done_callback(self._given_up.pop)

    async def close_others(self, path: str) -> object:
        """Close what is open of another file that was at `path`, and return the identity of this one.

        A request that uses the other file is interrupted, and gives its connection back.
        """
        file = identity(path)
        for connection, (_, opened) in [*self._files.items()]:
            if opened[0] != file and connection in self._in_use:
                await connection.interrupt()
            elif opened[0] != file:
                self.give_up(connection)
        if closing := [task for task, other in self._given_up.items() if other != file]:
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)
        return file

    @contextmanager
    def opening(self, path: str, file: object) -> Iterator[None]:
        """Open a connection to this file.

        Raises:
            OperationalError: another file that was at `path` is still open, or is being opened.
        """
        known = [opened[0] for _, opened in self._files.values()]
        if {file, *known, *self._opening, *self._given_up.values(), identity(path)} != {file}:
            raise unavailable(f"another file that was at {path} is still in use")
        self._opening.append(file)
        try:
            yield
        finally:
            self._opening.remove(file)

"""Connections to the SQLite file: which file each has open, their setup and closing."""

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

CLOSE_TIMEOUT = 1.0  # seconds
BUSY = 0.1  # seconds for which a thread is taken to execute a statement that was abandoned
# Another program's text that is not UTF-8 would break every list that contains it.
DECODE = partial(str, encoding="utf-8", errors="replace")


class OutcomeUnknown(sqlite3.OperationalError):
    """COMMIT failed half-way: the transaction may be committed or not."""


def identity(path: str) -> object:
    """Return what distinguishes a file from any other at the same path."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def files(path: str) -> tuple[object, object]:
    """Return the identities of the database and its write-ahead log, which both contain rows."""
    return identity(path), identity(f"{path}-wal")


def is_same(opened: tuple[object, object], found: tuple[object, object]) -> bool:
    """Return whether these are the files that were opened; a log may have been created since."""
    return opened[0] == found[0] is not None and opened[1] in (None, found[1])


def unavailable(reason: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    return error


def check_file(path: str) -> None:
    """Refuse what SQLite would create, open without writing, or lose rows by.

    Raises:
        OperationalError: with the reason.
    """
    if not os.path.exists(path):
        there = os.path.isdir(os.path.dirname(os.path.abspath(path)))
        remedy = " (alembic upgrade head makes it)" if there else ", and so is its folder"
        raise unavailable(f"{path} is missing{remedy}")
    if os.path.isdir(path):
        raise unavailable(f"{path} is a folder, not a file")
    if not os.access(path, os.R_OK):
        raise unavailable(f"{path} may not be read by this user")
    if not os.access(path, os.W_OK):
        raise unavailable(f"{path} is read-only, for this user or by its file system")
    # SQLite would delete the write-ahead log beside an empty file.
    if not os.path.getsize(path):
        raise unavailable(f"{path} is empty (alembic upgrade head fills it)")


async def set_up(connection: Any) -> None:
    connection.text_factory = DECODE
    await connection.execute("PRAGMA foreign_keys = ON")
    # With NORMAL, a power failure would lose the last commits.
    await connection.execute("PRAGMA synchronous = FULL")


async def close(connection: Any) -> None:
    # A cursor that is still referenced would keep the lock.
    rollback = asyncio.ensure_future(connection.rollback())
    # SQLite interrupts all that begins while a cursor is open, the rollback too. So only what keeps
    # its thread busy is interrupted: an abandoned statement, with the file locked.
    if not (await asyncio.wait([rollback], timeout=BUSY))[0]:
        await connection.interrupt()
    try:
        with suppress(sqlite3.OperationalError):
            await rollback
    finally:
        await connection.close()


class Connections:
    """The open connections and their files: one file at a time at each path.

    SQLite finds a file's log and its index by path: two files that are open at one path use each
    other's, and lose commits.
    """

    def __init__(self) -> None:
        self._files: WeakKeyDictionary[Any, tuple[str, tuple[object, object]]] = WeakKeyDictionary()
        self._in_use: WeakSet[Any] = WeakSet()
        self._opening: list[object] = []  # the identities of files
        self._given_up: dict[asyncio.Task[None], object] = {}  # closing tasks, and their files

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
        """Close a connection in the background, once."""
        if connection not in self._files:
            return
        task = asyncio.get_running_loop().create_task(close(connection))
        _, (self._given_up[task], _) = self._files.pop(connection)
        task.add_done_callback(self._given_up.pop)

    async def close_others(self, path: str) -> object:
        """Close the connections to any previous file at `path`; return the present one's identity.

        A statement on a previous file is interrupted, so that its request returns the connection.
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
        """Reserve the path for this file while a connection to it is opened.

        Raises:
            OperationalError: a previous file at `path` is still open or being opened.
        """
        known = [opened[0] for _, opened in self._files.values()]
        if {file, *known, *self._opening, *self._given_up.values(), identity(path)} != {file}:
            raise unavailable(f"another file that was at {path} is still in use")
        self._opening.append(file)
        try:
            yield
        finally:
            self._opening.remove(file)

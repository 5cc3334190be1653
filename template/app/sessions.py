"""How a request reaches the database: `SessionDep` to write, `ReaderDep` to read."""

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, TypeVarTuple

from fastapi import Depends, Request
from sqlalchemy import Row, Select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.util import greenlet_spawn

from app.database import READ_OPTIONS

Columns = TypeVarTuple("Columns")


async def get_session(request: Request) -> AsyncGenerator[AsyncSession]:
    sessionmaker: async_sessionmaker[AsyncSession] = request.app.state.sessionmaker
    async with sessionmaker.begin() as session:
        yield session


# `scope="function"`: the commit comes before the response, so no client is told of a row that was
# never stored. FastAPI's default is to send the response first.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
"""One transaction: committed when the handler returns, rolled back when it raises.

Nobody calls `commit()`. What the database makes (keys, defaults) is there after `flush()`.
"""


class Reader:
    """Runs `select` statements outside a transaction: one round trip each, nothing held between.

    Two calls see two states of the database: what must agree belongs into one statement or into a
    session. Select columns; build the statement once, as a constant, and pass what varies.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.sync_engine.execution_options(**READ_OPTIONS)

    async def all(
        self, statement: Select[*Columns], **parameters: object
    ) -> Sequence[Row[*Columns]]:
        """Return every row; give the statement a limit.

        Raises:
            TypeError: if the statement is anything else than a `select`.
        """
        if not isinstance(statement, Select):
            raise TypeError("a Reader only reads; take a SessionDep to write")
        # One switch of greenlets for all three steps; `AsyncConnection` would make one for each.
        return await greenlet_spawn(self._all, statement, parameters)

    async def one_or_none(
        self, statement: Select[*Columns], **parameters: object
    ) -> Row[*Columns] | None:
        """Return the first row, or `None`; for a statement that finds one at the most."""
        rows = await self.all(statement, **parameters)
        return rows[0] if rows else None

    def _all(
        self, statement: Select[*Columns], parameters: dict[str, object]
    ) -> Sequence[Row[*Columns]]:
        with self._engine.connect() as connection:
            return connection.execute(statement, parameters).all()


async def get_reader(request: Request) -> Reader:
    reader: Reader = request.app.state.reader
    return reader


ReaderDep = Annotated[Reader, Depends(get_reader)]

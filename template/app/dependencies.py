"""Dependencies of routes: `SessionDep` to write, `ReaderDep` to read."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy.ext.asyncio import AsyncSession

from app.database.reader import Reader


async def get_session(connection: HTTPConnection) -> AsyncGenerator[AsyncSession]:
    async with connection.app.state.sessionmaker() as session:
        yield session
        await session.commit()


SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
"""A session in one transaction: committed before the response is sent, rolled back by any error.

`scope="function"` makes the commit come first: no client gets a 2xx for a row that was never stored.
Never call `commit()`; `flush()` loads keys and server defaults.
"""


async def get_reader(connection: HTTPConnection) -> Reader:
    return connection.app.state.reader  # type: ignore[no-any-return]


ReaderDep = Annotated[Reader, Depends(get_reader)]
"""A reader in autocommit: each statement sees its own snapshot."""

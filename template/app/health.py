"""Liveness and readiness probes."""

import asyncio
import logging
from functools import cache
from pathlib import Path
from typing import Literal

from fastapi import HTTPException, Request, status
from sqlalchemy import String, column, select, table
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import State
from starlette.types import Scope

from app.database.server import READ_ONLY
from app.dependencies import Reader, ReaderDep
from app.redaction import reason_of
from app.routing import Router

router = Router(prefix="/health", include_in_schema=False)
logger = logging.getLogger(__name__)

Schema = Literal["up to date", "behind", "ahead"]

READY_TIMEOUT = 4.0  # seconds; a first connection takes a dozen round trips
MIGRATIONS = Path(__file__).parent.parent / "migrations"
VERSIONS = select(column("version_num", String), READ_ONLY.label("read_only")).select_from(
    table("alembic_version")
)


@router.get("/live")
async def live() -> dict[str, str]:
    """Report that the process runs; touch nothing, so that no database outage restarts it."""
    return {"status": "live"}


@router.get("/ready")
async def ready(request: Request, reader: ReaderDep) -> dict[str, str]:
    """Report whether it can serve: the database accepts writes and its schema is not behind."""
    state = request.app.state
    if is_busy(state):
        return {"status": "busy"}
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            reason = await find_obstacle(reader, state.settings.database_writes)
    except (SQLAlchemyError, TimeoutError) as error:
        if isinstance(error, TimeoutError) and is_busy(state):
            return {"status": "busy"}
        reason = "The database does not answer, or shows no schema."
        cause = reason_of(error)
        if isinstance(error, TimeoutError) and not str(error):  # of READY_TIMEOUT
            url = state.settings.driver_url  # without its password
            cause = f"no answer within {READY_TIMEOUT:g} s: {url!r} is silent or locked"
        logger.warning("not ready: %s", cause)
    else:
        if reason is None:
            return {"status": "ready"}
        logger.warning("not ready: %s", reason)
    raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, reason)


def is_probe(scope: Scope) -> bool:
    """Return whether a request is a probe's, wherever the service is mounted."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.startswith(f"{router.prefix}/")


def is_busy(state: State) -> bool:
    """Load must not make a replica unready, or all of them would go at once."""
    full: bool = state.engine.pool.checkedout() >= state.settings.database_capacity
    return full and not state.engine.dialect.unreachable


async def find_obstacle(reader: Reader, writes: bool) -> str | None:
    schema, read_only = await examine(reader)
    if read_only and writes:
        return "The database takes no writes."
    return "The schema is behind." if schema == "behind" else None


async def examine(reader: Reader) -> tuple[Schema, bool]:
    """Compare the database with the migrations; return also whether it is read-only.

    A revision that the migrations don't have is a newer release's.
    """
    rows = (await reader.execute(VERSIONS)).all()
    current = {row.version_num for row in rows}
    heads, known = await asyncio.to_thread(revisions)
    read_only = any(row.read_only for row in rows)
    if current == heads:
        return "up to date", read_only
    return ("behind" if current <= known else "ahead"), read_only


@cache
def revisions() -> tuple[set[str], set[str]]:
    """Read the heads, and all revisions, from the migrations' files."""
    # Importing Alembic takes a tenth of the startup, and it is needed once: import it then.
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    return set(scripts.get_heads()), {script.revision for script in scripts.walk_revisions()}

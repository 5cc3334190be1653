"""What an orchestrator asks: is the process alive, and may it get requests?"""

import asyncio
from functools import cache
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, HTTPException, Request, status
from sqlalchemy import String, column, select, table
from sqlalchemy.exc import SQLAlchemyError

from app.errors import problems
from app.sessions import Reader, ReaderDep

router = APIRouter(prefix="/health", tags=["health"])

READY_TIMEOUT = 4.0  # seconds; a first connection takes a dozen round trips
MIGRATIONS = Path(__file__).parent.parent / "migrations"
VERSIONS = select(column("version_num", String)).select_from(table("alembic_version"))


@router.get("/live")
async def live() -> dict[str, str]:
    """Say that the process runs. Touches nothing: no outage of the database restarts it."""
    return {"status": "live"}


@router.get("/ready", responses=problems(status.HTTP_503_SERVICE_UNAVAILABLE))
async def ready(request: Request, reader: ReaderDep) -> dict[str, str]:
    """Say whether requests can be served: the database answers, and its schema is not behind."""
    state = request.app.state
    if state.engine.pool.checkedout() >= state.settings.database_capacity:
        # Load is no reason to be taken out of service, or all replicas would go together.
        return {"status": "busy"}
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            schema = await compare_schema(reader)
    except (SQLAlchemyError, TimeoutError):
        detail = "The database does not answer, or has no schema yet."
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, detail) from None
    if schema == "behind":
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "The schema is behind.")
    return {"status": "ready"}


async def compare_schema(reader: Reader) -> Literal["up to date", "behind", "ahead"]:
    """Compare the database with the migrations; one that they don't have is a newer release's."""
    current = {row.version_num for row in await reader.all(VERSIONS)}
    newest, known = await asyncio.to_thread(revisions)
    if current == newest:
        return "up to date"
    return "behind" if current <= known else "ahead"


@cache
def revisions() -> tuple[set[str], set[str]]:
    """Read the newest revisions, and all, from the migrations' files."""
    # Alembic would take a tenth of the start, and is asked once: import it then.
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    return set(scripts.get_heads()), {script.revision for script in scripts.walk_revisions()}

"""Liveness and readiness probes."""

import asyncio
import logging

from fastapi import HTTPException, Request, status
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import State
from starlette.types import Scope

from app.database.revisions import compare_revisions
from app.dependencies import ReaderDep
from app.redaction import reason_of
from app.routing import Router

router = Router(prefix="/health", include_in_schema=False)
logger = logging.getLogger(__name__)

PROBES = ("/health/live", "/health/ready")
READY_TIMEOUT = 4.0  # seconds; a first connection takes a dozen round trips


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
            schema, read_only = await compare_revisions(reader)
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
        if read_only and state.settings.database_writes:
            reason = "The database takes no writes."
        elif schema == "behind":
            reason = "The schema is behind."
        else:
            return {"status": "ready"}
        logger.warning("not ready: %s", reason)
    raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, reason)


def is_probe(scope: Scope) -> bool:
    """Return whether a request is a probe's, wherever the service is mounted."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in PROBES


def is_busy(state: State) -> bool:
    """Load must not make a replica unready, or all of them would go at once."""
    full: bool = state.engine.pool.checkedout() >= state.settings.database_capacity
    return full and not state.engine.dialect.unreachable

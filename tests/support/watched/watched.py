"""The service with one more path, which reports what its log and its database do not show."""

import asyncio
import threading
from typing import Any

from app.main import app
from fastapi import Request


@app.get("/health/watched", include_in_schema=False)
async def watched(request: Request) -> dict[str, int]:
    """Return what is in use; below /health, so that no line of the log is its own."""
    pool: Any = request.app.state.engine.pool
    others = ("MainThread", "asyncio_", "uvloop_", "AnyIO")
    return {
        "capacity": request.app.state.settings.database_capacity,
        "idle": pool.checkedin(),
        "in use": pool.checkedout(),
        "waiting": pool.waiting() if hasattr(pool, "waiting") else 0,
        "tasks": len(asyncio.all_tasks()),
        "threads": sum(not thread.name.startswith(others) for thread in threading.enumerate()),
    }

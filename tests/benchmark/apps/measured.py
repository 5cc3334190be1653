"""Serves the app that MEASURED_APP names, and reports at /measured what it has cost so far."""

import importlib
import json
import os
import queue
import time
from typing import Any

cost = {"thread_hops": 0, "connection_seconds": 0.0}


class CountingQueue(queue.SimpleQueue[Any]):
    """The queue by which aiosqlite sends each call to its thread."""

    def put_nowait(self, item: Any) -> None:
        cost["thread_hops"] += 1
        super().put_nowait(item)


def count_thread_hops() -> None:
    import aiosqlite.core

    aiosqlite.core.SimpleQueue = CountingQueue


def time_connections() -> None:
    """Add up for how long requests hold the connections of SQLAlchemy's pools."""
    from sqlalchemy import Pool, event

    @event.listens_for(Pool, "checkout")
    def checkout(connection: Any, record: Any, proxy: Any) -> None:
        record.info["checked_out"] = time.perf_counter()

    @event.listens_for(Pool, "checkin")
    def checkin(connection: Any, record: Any) -> None:
        cost["connection_seconds"] += time.perf_counter() - record.info["checked_out"]


if os.environ.get("MEASURED_THREAD_HOPS"):
    count_thread_hops()
if os.environ.get("MEASURED_CONNECTIONS"):
    time_connections()

module, name = os.environ["MEASURED_APP"].split(":")
measured = getattr(importlib.import_module(module), name)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http" or scope["path"] != "/measured":
        return await measured(scope, receive, send)
    body = json.dumps({"cpu_seconds": time.process_time(), **cost}).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

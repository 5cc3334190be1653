"""The example's handlers on bare aiosqlite: one connection, no transactions, no pool, no checks."""

import datetime
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
from app.features.items.schemas import ItemCreate, ItemRead
from app.pagination import Page
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response

COLUMNS = "id, name, description, created_at, updated_at, version"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    path = os.environ["DATABASE_URL"].removeprefix("sqlite+aiosqlite:///")
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        await connection.execute("PRAGMA synchronous = FULL")
        connection.row_factory = sqlite3.Row
        app.state.connection = connection
        yield


app = FastAPI(lifespan=lifespan, openapi_url=None)
router = APIRouter()


@app.get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get("/greetings/{name}")
async def greet(name: str) -> dict[str, str]:
    return {"greeting": f"Hello, {name}"}


@router.post("/items", status_code=201, response_model=ItemRead)
async def create_item(data: ItemCreate, request: Request, response: Response) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    [row] = await request.app.state.connection.execute_fetchall(
        "INSERT INTO items (name, description, created_at, updated_at, version)"
        f" VALUES (?1, ?2, ?3, ?3, 1) RETURNING {COLUMNS}",
        (data.name, data.description, now),
    )
    response.headers["Location"] = f"/items/{row['id']}"
    response.headers["ETag"] = f'"{row["version"]}"'
    return dict(row)


@router.get("/items", response_model=Page[ItemRead])
async def list_items(request: Request, limit: int = 100) -> dict[str, Any]:
    rows = await request.app.state.connection.execute_fetchall(
        f"SELECT {COLUMNS} FROM items WHERE id > ? ORDER BY id LIMIT ?", (0, limit + 1)
    )
    items = [dict(row) for row in rows[:limit]]
    return {"items": items, "next_cursor": str(items[-1]["id"]) if len(rows) > limit else None}


@router.get("/items/{item_id}", response_model=ItemRead)
async def read_item(item_id: int, request: Request, response: Response) -> dict[str, Any]:
    rows = await request.app.state.connection.execute_fetchall(
        f"SELECT {COLUMNS} FROM items WHERE id = ?", (item_id,)
    )
    for row in rows:
        response.headers["ETag"] = f'"{row["version"]}"'
        return dict(row)
    raise HTTPException(404)


app.include_router(router)

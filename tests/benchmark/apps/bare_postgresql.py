"""The example's handlers on bare asyncpg: one connection or its pool, no transactions, no checks."""

import datetime
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from app.features.items.schemas import ItemCreate, ItemRead
from app.pagination import Page
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response

COLUMNS = "id, name, description, created_at, updated_at, version"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    connect = asyncpg.create_pool if os.environ.get("BARE_POOL") else asyncpg.connect
    app.state.connection = await connect(os.environ["DATABASE_URL"])
    yield
    await app.state.connection.close()


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
    now = datetime.datetime.now(datetime.UTC)
    row = await request.app.state.connection.fetchrow(
        "INSERT INTO items (name, description, created_at, updated_at, version)"
        f" VALUES ($1, $2, $3, $3, 1) RETURNING {COLUMNS}",
        data.name,
        data.description,
        now,
    )
    response.headers["Location"] = f"/items/{row['id']}"
    response.headers["ETag"] = f'"{row["version"]}"'
    return dict(row)


@router.get("/items", response_model=Page[ItemRead])
async def list_items(request: Request, limit: int = 100) -> dict[str, Any]:
    rows = await request.app.state.connection.fetch(
        f"SELECT {COLUMNS} FROM items WHERE id > $1 ORDER BY id LIMIT $2", 0, limit + 1
    )
    items = [dict(row) for row in rows[:limit]]
    return {"items": items, "next_cursor": str(items[-1]["id"]) if len(rows) > limit else None}


@router.get("/items/{item_id}", response_model=ItemRead)
async def read_item(item_id: int, request: Request, response: Response) -> dict[str, Any]:
    row = await request.app.state.connection.fetchrow(
        f"SELECT {COLUMNS} FROM items WHERE id = $1", item_id
    )
    if row is None:
        raise HTTPException(404)
    response.headers["ETag"] = f'"{row["version"]}"'
    return dict(row)


app.include_router(router)

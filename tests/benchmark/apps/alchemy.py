"""The example's handlers on Litestar, by advanced-alchemy's service, as its documentation does it."""

import datetime
import os
from collections.abc import AsyncGenerator
from typing import Any

from advanced_alchemy.extensions.litestar import (
    AsyncSessionConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemyPlugin,
    base,
    filters,
    repository,
    service,
)
from litestar import Litestar, get, post
from litestar.di import Provide
from msgspec import Struct
from sqlalchemy import Identity
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Item(base.DefaultBase):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str]
    description: Mapped[str | None]
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime] = mapped_column(default=now, onupdate=now)
    version: Mapped[int] = mapped_column(default=1)


class ItemCreate(Struct):
    name: str
    description: str | None = None


class ItemRead(Struct):
    id: int
    name: str
    description: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


class ItemService(service.SQLAlchemyAsyncRepositoryService[Item]):
    class Repository(repository.SQLAlchemyAsyncRepository[Item]):
        model_type = Item

    repository_type = Repository


async def provide_items(db_session: AsyncSession) -> AsyncGenerator[ItemService, None]:
    async with ItemService.new(session=db_session) as items:
        yield items


@post("/items")
async def create_item(data: ItemCreate, items: ItemService) -> ItemRead:
    return items.to_schema(await items.create(data), schema_type=ItemRead)


@get("/items")
async def list_items(items: ItemService, limit: int = 100) -> dict[str, Any]:
    order = filters.OrderBy("id")
    rows = await items.list(order, filters.LimitOffset(limit=limit + 1, offset=0))
    return {"items": [items.to_schema(row, schema_type=ItemRead) for row in rows[:limit]]}


@get("/items/{item_id:int}")
async def read_item(item_id: int, items: ItemService) -> ItemRead:
    return items.to_schema(await items.get(item_id), schema_type=ItemRead)


config = SQLAlchemyAsyncConfig(
    connection_string=os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:"),
    before_send_handler="autocommit",
    session_config=AsyncSessionConfig(expire_on_commit=False),
)
app = Litestar(
    [create_item, list_items, read_item],
    dependencies={"items": Provide(provide_items)},
    openapi_config=None,
    plugins=[SQLAlchemyPlugin(config=config)],
)

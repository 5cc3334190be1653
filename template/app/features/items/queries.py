"""The statements of the items, for a request or a worker. Yours: an update leaves it alone."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Integer, Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.database.reader import Reader
from app.features.items.models import Item

ItemRow: TypeAlias = Row[int, str, str | None, datetime.datetime, datetime.datetime, int]

# Statements are built once: SQLAlchemy's cache finds a compiled one by a key, which it computes
# once for each statement. Only changes and deletions are built on each call, from the conditions
# of their request. A write returns its row, and changes no object that the session has loaded.
COLUMNS = (Item.id, Item.name, Item.description, Item.created_at, Item.updated_at, Item.version)
ITEM = select(*COLUMNS).where(Item.id == bindparam("id"))
PAGE = (
    select(*COLUMNS)
    .where(Item.id > bindparam("after"))
    .order_by(Item.id)
    .limit(bindparam("limit", None, Integer))  # LIMIT has no column to take its type from
)
CREATE = insert(Item.__table__).returning(*COLUMNS)


async def list_items(db: Reader | AsyncSession, *, after: int, limit: int) -> Sequence[ItemRow]:
    """Return at most `limit` items whose ids are greater than `after`, oldest first."""
    return (await db.execute(PAGE, {"after": after, "limit": limit})).all()


async def get_item(db: Reader | AsyncSession, item_id: int) -> ItemRow | None:
    return (await db.execute(ITEM, {"id": item_id})).first()


async def create_item(session: AsyncSession, values: Mapping[str, Any]) -> ItemRow:
    return (await session.execute(CREATE, values)).one()


async def update_item(
    session: AsyncSession, item_id: int, values: Mapping[str, Any], *conditions: ColumnElement[bool]
) -> ItemRow | None:
    """Change an item if all conditions hold; return it, or `None`."""
    criteria = (Item.id == item_id, *conditions)
    change = update(Item.__table__).where(*criteria).values(**values, version=Item.version + 1)
    statement = change.returning(*COLUMNS) if values else select(*COLUMNS).where(*criteria)
    return (await session.execute(statement)).first()


async def delete_item(
    session: AsyncSession, item_id: int, *conditions: ColumnElement[bool]
) -> int | None:
    """Delete an item if all conditions hold; return its id, or `None`."""
    statement = delete(Item.__table__).where(Item.id == item_id, *conditions)
    return await session.scalar(statement.returning(Item.id))

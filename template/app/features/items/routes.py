"""The endpoints of the items. Yours: an update leaves it alone."""

from typing import Any

from fastapi import HTTPException, Request, Response, status
from sqlalchemy.ext.asyncio import AsyncSession

from app.dependencies import ReaderDep, SessionDep
from app.etags import IfMatch, etag, matches
from app.features.items import queries
from app.features.items.models import Item
from app.features.items.schemas import ItemCreate, ItemRead, ItemUpdate
from app.fields import Id
from app.pagination import MAX_LIMIT, Cursor, Limit, Page, encode_cursor
from app.routing import Router

router = Router(prefix="/items", tags=["items"])


@router.get("", response_model=Page[ItemRead])
async def list_items(
    reader: ReaderDep, limit: Limit = MAX_LIMIT, cursor: Cursor = None
) -> dict[str, Any]:
    """Oldest first. Every page costs the same: it starts after a key, not at an offset.

    What was stored before the first page, and is not deleted meanwhile, appears once. What is stored
    meanwhile may be missed: to synchronise, start again at the first page.
    """
    rows = await queries.list_items(reader, after=cursor or 0, limit=limit + 1)
    more = len(rows) > limit
    items = rows[:limit]
    return {"items": items, "next_cursor": encode_cursor(items[-1].id) if more else None}


@router.post("", status_code=status.HTTP_201_CREATED, response_model=ItemRead)
async def create_item(
    data: ItemCreate, session: SessionDep, request: Request, response: Response
) -> object:
    item = await queries.create_item(session, data.model_dump())
    response.headers["Location"] = f"{request.url.path}/{item.id}"
    response.headers["ETag"] = etag(ItemRead, item.version)
    return item


@router.get("/{item_id}", response_model=ItemRead)
async def read_item(item_id: Id, reader: ReaderDep, response: Response) -> object:
    item = await queries.get_item(reader, item_id)
    if item is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    response.headers["ETag"] = etag(ItemRead, item.version)
    return item


@router.patch("/{item_id}", response_model=ItemRead)
async def update_item(
    item_id: Id, data: ItemUpdate, session: SessionDep, response: Response, if_match: IfMatch = None
) -> object:
    changes = data.model_dump(exclude_unset=True)
    item = await queries.update_item(session, item_id, changes, matches(Item.version, if_match))
    if item is None:
        raise await missing_or_changed(session, item_id)
    response.headers["ETag"] = etag(ItemRead, item.version)
    return item


@router.delete("/{item_id}", status_code=status.HTTP_204_NO_CONTENT, response_class=Response)
async def delete_item(item_id: Id, session: SessionDep, if_match: IfMatch = None) -> None:
    if await queries.delete_item(session, item_id, matches(Item.version, if_match)) is None:
        raise await missing_or_changed(session, item_id)


async def missing_or_changed(session: AsyncSession, item_id: int) -> HTTPException:
    """Return 412 for a version that has changed, 404 for a row that does not exist."""
    found = await queries.get_item(session, item_id)
    return HTTPException(
        status.HTTP_412_PRECONDITION_FAILED if found else status.HTTP_404_NOT_FOUND
    )

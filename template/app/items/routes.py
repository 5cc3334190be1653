from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response, status
from sqlalchemy import Integer, bindparam, select

from app.errors import problems
from app.items.models import Item
from app.items.schemas import ItemCreate, ItemPage, ItemRead, ItemUpdate
from app.resources import Cursor, Id, IfMatch, encode_cursor, etag, require_match
from app.sessions import ReaderDep, SessionDep

router = APIRouter(
    prefix="/items",
    tags=["items"],
    responses=problems(status.HTTP_422_UNPROCESSABLE_CONTENT, status.HTTP_503_SERVICE_UNAVAILABLE),
)

MAX_LIMIT = 100

# Statements built once, so that SQLAlchemy compiles them once.
ITEMS = select(Item.id, Item.name, Item.description, Item.created_at, Item.updated_at, Item.version)
ITEM = ITEMS.where(Item.id == bindparam("id"))
PAGE = (
    ITEMS.where(Item.id > bindparam("after"))
    .order_by(Item.id)
    .limit(bindparam("limit", None, Integer))
)


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=ItemRead,
    responses=problems(status.HTTP_409_CONFLICT, status.HTTP_413_CONTENT_TOO_LARGE),
)
async def create_item(
    data: ItemCreate, session: SessionDep, request: Request, response: Response
) -> Item:
    item = Item(**data.model_dump())
    session.add(item)
    await session.flush()
    response.headers["Location"] = request.url_for("read_item", item_id=item.id).path
    response.headers["ETag"] = etag(item.version)
    return item


@router.get("", response_model=ItemPage)
async def list_items(
    reader: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    cursor: Cursor | None = None,
) -> dict[str, Any]:
    """Oldest first. A page costs the same wherever it is: it begins behind a key, not an offset."""
    rows = await reader.all(PAGE, after=cursor or 0, limit=limit + 1)
    more = len(rows) > limit
    items = rows[:limit]
    return {"items": items, "next_cursor": encode_cursor(items[-1].id) if more else None}


@router.get("/{item_id}", response_model=ItemRead, responses=problems(status.HTTP_404_NOT_FOUND))
async def read_item(item_id: Id, reader: ReaderDep, response: Response) -> object:
    item = await reader.first(ITEM, id=item_id)
    if item is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    response.headers["ETag"] = etag(item.version)
    return item


@router.patch(
    "/{item_id}",
    response_model=ItemRead,
    responses=problems(
        status.HTTP_404_NOT_FOUND,
        status.HTTP_409_CONFLICT,
        status.HTTP_412_PRECONDITION_FAILED,
        status.HTTP_413_CONTENT_TOO_LARGE,
    ),
)
async def update_item(
    item_id: Id, data: ItemUpdate, session: SessionDep, response: Response, if_match: IfMatch = None
) -> Item:
    item = await get_locked(session, item_id, if_match)
    for field, value in data.model_dump(exclude_unset=True).items():
        setattr(item, field, value)
    await session.flush()
    response.headers["ETag"] = etag(item.version)
    return item


@router.delete(
    "/{item_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(status.HTTP_404_NOT_FOUND, status.HTTP_412_PRECONDITION_FAILED),
)
async def delete_item(item_id: Id, session: SessionDep, if_match: IfMatch = None) -> None:
    await session.delete(await get_locked(session, item_id, if_match))


async def get_locked(session: SessionDep, item_id: int, if_match: str | None) -> Item:
    """Load an item for a change, and keep others from changing it until the transaction ends."""
    item = await session.get(Item, item_id, with_for_update=True)
    if item is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    require_match(if_match, item.version)
    return item

"""The endpoints of the items. Yours: an update leaves it alone."""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response, status
from sqlalchemy import Integer, bindparam, delete, insert, select, update

from app.dependencies import ReaderDep, SessionDep
from app.features.items.models import Item
from app.features.items.schemas import ItemCreate, ItemRead, ItemUpdate
from app.fields import Id
from app.rest import Cursor, IfMatch, Page, encode_cursor, etag, matches

router = APIRouter(prefix="/items", tags=["items"])

MAX_LIMIT = 100

# Statements built once, so that SQLAlchemy compiles them once. Those that write name the table and
# not the model: they return the row that they made, and the session has nothing to keep track of.
COLUMNS = (Item.id, Item.name, Item.description, Item.created_at, Item.updated_at, Item.version)
ITEM = select(*COLUMNS).where(Item.id == bindparam("id"))
PAGE = (
    select(*COLUMNS)
    .where(Item.id > bindparam("after"))
    .order_by(Item.id)
    .limit(bindparam("limit", None, Integer))
)
CREATE = insert(Item.__table__).returning(*COLUMNS)


@router.get("", response_model=Page[ItemRead])
async def list_items(
    reader: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    cursor: Cursor | None = None,
) -> dict[str, Any]:
    """Oldest first. A page costs the same wherever it is: it begins behind a key, not an offset.

    A walk from the first page on shows whatever was stored before it began. What is stored
    meanwhile may come to be behind the cursor: to synchronise, begin at the first page again.
    """
    rows = await reader.all(PAGE, after=cursor or 0, limit=limit + 1)
    more = len(rows) > limit
    items = rows[:limit]
    return {"items": items, "next_cursor": encode_cursor(items[-1].id) if more else None}


@router.post("", status_code=status.HTTP_201_CREATED, response_model=ItemRead)
async def create_item(
    data: ItemCreate, session: SessionDep, request: Request, response: Response
) -> object:
    item = (await session.execute(CREATE, data.model_dump())).one()
    response.headers["Location"] = f"{request.url.path}/{item.id}"
    response.headers["ETag"] = etag(ItemRead, item.version)
    return item


@router.get("/{item_id}", response_model=ItemRead)
async def read_item(item_id: Id, reader: ReaderDep, response: Response) -> object:
    item = await reader.first(ITEM, id=item_id)
    if item is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    response.headers["ETag"] = etag(ItemRead, item.version)
    return item


@router.patch("/{item_id}", response_model=ItemRead)
async def update_item(
    item_id: Id, data: ItemUpdate, session: SessionDep, response: Response, if_match: IfMatch = None
) -> object:
    same = (Item.id == item_id, matches(Item.version, if_match))
    changes = data.model_dump(exclude_unset=True)
    change = update(Item.__table__).where(*same).values(**changes, version=Item.version + 1)
    statement = change.returning(*COLUMNS) if changes else select(*COLUMNS).where(*same)
    item = (await session.execute(statement)).first()
    if item is None:
        raise await missing_or_changed(session, item_id)
    response.headers["ETag"] = etag(ItemRead, item.version)
    return item


@router.delete("/{item_id}", status_code=status.HTTP_204_NO_CONTENT, response_class=Response)
async def delete_item(item_id: Id, session: SessionDep, if_match: IfMatch = None) -> None:
    deletion = delete(Item.__table__).where(Item.id == item_id, matches(Item.version, if_match))
    if (await session.execute(deletion.returning(Item.id))).first() is None:
        raise await missing_or_changed(session, item_id)


async def missing_or_changed(session: SessionDep, item_id: int) -> HTTPException:
    """Find out why no row was the version that the client knows."""
    found = (await session.execute(ITEM, {"id": item_id})).first()
    return HTTPException(
        status.HTTP_412_PRECONDITION_FAILED if found else status.HTTP_404_NOT_FOUND
    )

"""The example's handlers as they are usually written: one ORM session a request, and pre-ping."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from app.features.items.models import Item
from app.features.items.schemas import ItemCreate, ItemRead
from app.pagination import Page
from app.settings import ServiceSettings, load_settings
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from sqlalchemy import select
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    url = load_settings(ServiceSettings).driver_url
    registry.deregister(url.drivername.replace("+", "."))  # the service's dialect
    # SQLite's writers take no turns: one of them may wait for longer than the 5 s of the default.
    options = {"timeout": 60} if url.get_backend_name() == "sqlite" else {}
    engine = create_async_engine(url, pool_pre_ping=True, connect_args=options)
    app.state.sessionmaker = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
router = APIRouter()


async def get_session(request: Request) -> AsyncGenerator[AsyncSession]:
    async with request.app.state.sessionmaker() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]


@app.get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get("/greetings/{name}")
async def greet(name: str) -> dict[str, str]:
    return {"greeting": f"Hello, {name}"}


@router.post("/items", status_code=201, response_model=ItemRead)
async def create_item(data: ItemCreate, session: SessionDep, response: Response) -> Item:
    item = Item(**data.model_dump())
    session.add(item)
    await session.commit()
    await session.refresh(item)
    response.headers["Location"] = f"/items/{item.id}"
    response.headers["ETag"] = f'"{item.version}"'
    return item


@router.get("/items", response_model=Page[ItemRead])
async def list_items(session: SessionDep, limit: int = 100) -> dict[str, Any]:
    statement = select(Item).where(Item.id > 0).order_by(Item.id).limit(limit + 1)
    items = (await session.scalars(statement)).all()
    more = len(items) > limit
    return {"items": items[:limit], "next_cursor": str(items[limit - 1].id) if more else None}


@router.get("/items/{item_id}", response_model=ItemRead)
async def read_item(item_id: int, session: SessionDep, response: Response) -> Item:
    item = await session.get(Item, item_id)
    if item is None:
        raise HTTPException(404)
    response.headers["ETag"] = f'"{item.version}"'
    return item


app.include_router(router)

"""What the benchmark adds to the service."""

from app.etags import etag
from app.features.items import queries
from app.features.items.schemas import ItemCreate, ItemRead
from app.features.no_rollback import NoRollbackDep
from app.routing import Router
from fastapi import Response, status

router = Router()


@router.get("/greetings/{name}")
async def greet(name: str) -> dict[str, str]:
    return {"greeting": f"Hello, {name}"}


@router.post("/once", status_code=status.HTTP_201_CREATED, response_model=ItemRead)
async def create_once(data: ItemCreate, db: NoRollbackDep, response: Response) -> object:
    item = (await db.execute(queries.CREATE, data.model_dump())).one()
    response.headers["Location"] = f"/items/{item.id}"
    response.headers["ETag"] = etag(ItemRead, item.version)
    return item

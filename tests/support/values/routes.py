import datetime
import decimal
import uuid
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.exc import StatementError

from app.dependencies import ReaderDep, SessionDep
from app.features.more.models import Value
from app.fields import BigInteger, Date, DateTime, Integer, Json, Normalized, Text, Time

router = APIRouter(prefix="/values")

Short = Annotated[Text, Field(max_length=60)]
TYPES: dict[str, Any] = {
    "text": Short,
    "name": Annotated[Text, Field(min_length=1, max_length=60), Normalized],
    "integer": Integer,
    "big_integer": BigInteger,
    "amount": Annotated[decimal.Decimal, Field(max_digits=12, decimal_places=2)],
    "number": FiniteFloat,
    "flag": bool,
    "date": Date,
    "time": Time,
    "moment": DateTime,
    "key": uuid.UUID,
    "json": Json,
}
ADAPTERS = {kind: TypeAdapter[Any](type_) for kind, type_ in TYPES.items()}
TABLE = Value.__table__


class Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    values: list[Any]


class Read(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    text: str | None
    name: str | None
    integer: int | None
    big_integer: int | None
    amount: decimal.Decimal | None
    number: float | None
    flag: bool | None
    date: datetime.date | None
    time: datetime.time | None
    moment: datetime.datetime | None
    key: uuid.UUID | None
    json_: Any | None = Field(validation_alias="json")


@router.get("/list", response_model=list[Read])
async def read_all(reader: ReaderDep) -> object:
    return (await reader.execute(select(TABLE).order_by(TABLE.c.id))).all()


@router.get("/last-id")
async def read_last_id(reader: ReaderDep) -> Any:
    row = (await reader.execute(select(func.max(TABLE.c.id).label("last")))).first()
    return row and row.last


@router.post("/{kind}")
async def create(kind: str, sent: Sent, session: SessionDep) -> list[Any]:
    """Store each value that its schema takes; return ids, or who refused it."""
    results: list[Any] = []
    statement = insert(TABLE).returning(TABLE.c.id)
    for value in sent.values:
        try:
            taken = ADAPTERS[kind].validate_python(value)
        except ValidationError:
            results.append("schema")
            continue
        try:
            async with session.begin_nested():
                results.append((await session.execute(statement, {kind: taken})).scalar_one())
        except StatementError as error:
            results.append(f"{type(error.orig).__name__}: {error.orig}")
    return results


@router.post("/{kind}/read")
async def read(kind: str, reader: ReaderDep) -> list[tuple[int, Any]]:
    column = TABLE.c[kind]
    statement = select(TABLE.c.id, column.label("value")).where(column.is_not(None))
    rows = (await reader.execute(statement.order_by(TABLE.c.id))).all()
    return [(row.id, ADAPTERS[kind].dump_python(row.value, mode="json")) for row in rows]


@router.post("/{kind}/find")
async def find(kind: str, sent: Sent, reader: ReaderDep) -> list[dict[str, list[int]]]:
    """Return the ids that each filter finds, for each value."""
    column = TABLE.c[kind]
    parameter = bindparam("value", type_=column.type)
    many = bindparam("values", type_=column.type, expanding=True)
    filters = {
        "=": select(TABLE.c.id).where(column == parameter),
        "<": select(TABLE.c.id).where(column < parameter),
        ">=": select(TABLE.c.id).where(column >= parameter),
        "page": select(TABLE.c.id).where(column > parameter).order_by(column, TABLE.c.id).limit(5),
    }
    one_of = select(TABLE.c.id).where(column.in_(many))
    found = []
    for value in sent.values:
        taken = ADAPTERS[kind].validate_python(value)
        ids = {
            sign: [row.id for row in (await reader.execute(statement, {"value": taken})).all()]
            for sign, statement in filters.items()
        }
        ids["in"] = [row.id for row in (await reader.execute(one_of, {"values": [taken, taken]})).all()]
        found.append(ids)
    return found


@router.get("/amount/above/{amount}")
async def find_above(amount: decimal.Decimal, reader: ReaderDep) -> int:
    """Take a number that the schema does not bound."""
    return len((await reader.execute(select(TABLE.c.id).where(TABLE.c.amount > amount))).all())


@router.get("/number/above/{number}")
async def find_above_number(number: float, reader: ReaderDep) -> int:
    return len((await reader.execute(select(TABLE.c.id).where(TABLE.c.number > number))).all())


@router.post("/orm/change")
async def change(session: SessionDep) -> list[datetime.datetime | None]:
    value = Value(flag=True)
    session.add(value)
    await session.flush()
    made = value.changed_at
    value.flag = False
    await session.flush()
    return [made, value.changed_at]


@router.get("/changed/until-now")
async def count_changed(reader: ReaderDep) -> list[int]:
    changed = [TABLE.c.changed_at <= func.now(), TABLE.c.changed_at > func.now()]
    return [len((await reader.execute(select(TABLE.c.id).where(condition))).all()) for condition in changed]

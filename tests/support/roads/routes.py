"""Each path by which a value could get into the log: a function that is given the value."""

import ast
import asyncio
import gc
import json
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Body, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from httpx2 import AsyncClient
from opentelemetry import trace
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import cast, func, insert, literal, select, text
from sqlalchemy.types import Integer

from app.dependencies import SessionDep
from app.features.more.models import Road

logger = logging.getLogger(__name__)

ADD = insert(Road.__table__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    value, road = os.environ.get("VALUE", ""), os.environ.get("ROAD")
    if road == "start":
        int(value)
    yield
    if road == "stop":
        int(value)


router = APIRouter(prefix="/roads", lifespan=lifespan)


class Named(BaseModel):
    number: int


# What an error says, raised in a handler


def int_of(value: str) -> None:
    int(value)


def key_of(value: str) -> None:
    {}[value]


def attribute_of(value: str) -> None:
    getattr(Named, value)


def argument_of(value: str) -> None:
    dict.fromkeys(**{value: 1})


def decoded(value: str) -> None:
    (value.encode() + b"\xff").decode()


def json_of(value: str) -> None:
    json.loads(f'{{"{value}": {value}}}')


def validated(value: str) -> None:
    TypeAdapter(dict[str, int]).validate_python({value: value})


def evaluated(value: str) -> None:
    ast.literal_eval(f"{value} {value}")


def opened(value: str) -> None:
    open(value)


def asserted(value: str) -> None:
    assert not value, value


def noted(value: str) -> None:
    error = RuntimeError(value)
    error.add_note(value)
    raise error


def chained(value: str) -> None:
    try:
        try:
            int_of(value)
        except ValueError as error:
            raise KeyError(value) from error
    finally:
        raise RuntimeError(value)


def grouped(value: str) -> None:
    raise ExceptionGroup(value, [ValueError(value), ExceptionGroup(value, [KeyError(value)])])


def named(value: str) -> None:
    raise type("Odd", (Exception,), {"__str__": lambda self: self.args[0]})(value)


def raised(value: str) -> None:
    raise TimeoutError(value)


# What the service's own code logs


def logged_exception(value: str) -> None:
    try:
        int_of(value)
    except ValueError:
        logger.exception("it failed")


def logged_argument(value: str) -> None:
    logger.error("it failed: %s, %r", ValueError(value), ValueError(value))
    logger.error("it failed: %(error)s", {"error": ValueError(value)})


def logged_error(value: str) -> None:
    logger.error(ValueError(value))


def logged_wrongly(value: str) -> None:
    logger.error("one too many: %d %d", value, value)
    logger.error("none", value)


def logged_extra(value: str) -> None:
    logger.error("more", extra={"error": ValueError(value)})


def logged_for_long(value: str) -> None:
    logger.error("é\n" * 50_000, extra={"much": "é\n" * 50_000, "more": ["more"] * 50_000})


def logged_stack(value: str) -> None:
    logger.error("here", stack_info=True)


def logged_unshowable(value: str) -> None:
    unshowable = type("Odd", (), {"__str__": lambda self: int(value), "__repr__": None})()
    logger.error("odd: %s", unshowable)
    logger.error("odd", extra={"odd": unshowable})


# What libraries log, and Python itself


def library(value: str) -> None:
    library = logging.getLogger("library.client")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        library.log(level, "token %s", value)
        library.log(level, f"token {value}")
        library.log(level, "failed", exc_info=ValueError(value), extra={"token": value})
    logging.warning(f"root {value}")


def warned(value: str) -> None:
    warnings.warn(value, stacklevel=1)


def serialized(value: str) -> None:
    Named.model_construct(number=value).model_dump_json()


def in_a_thread(value: str) -> None:
    thread = threading.Thread(target=int_of, args=(value,), name=value)
    thread.start()
    thread.join()


def collected(value: str) -> None:
    type("Odd", (), {"__del__": lambda self: int(value), "__repr__": lambda self: value})()
    gc.collect()


async def in_a_task(value: str) -> None:
    async def work() -> None:
        int_of(value)

    asyncio.create_task(work(), name=value)
    await asyncio.sleep(0.01)
    gc.collect()


async def in_a_future(value: str) -> None:
    asyncio.get_running_loop().create_future().set_exception(ValueError(value))
    gc.collect()


async def in_a_callback(value: str) -> None:
    asyncio.get_running_loop().call_soon(int_of, value)
    await asyncio.sleep(0.01)


async def pending(value: str) -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    asyncio.create_task(wait(), name=value)
    await asyncio.sleep(0)
    gc.collect()


async def in_a_span(value: str) -> None:
    with trace.get_tracer("mine").start_as_current_span("mine"):
        int_of(value)


SIMPLE: list[Callable[[str], Awaitable[None] | None]] = [
    int_of,
    key_of,
    attribute_of,
    argument_of,
    decoded,
    json_of,
    validated,
    evaluated,
    opened,
    asserted,
    noted,
    chained,
    grouped,
    named,
    raised,
    logged_exception,
    logged_argument,
    logged_error,
    logged_wrongly,
    logged_extra,
    logged_for_long,
    logged_stack,
    logged_unshowable,
    library,
    warned,
    serialized,
    in_a_thread,
    collected,
    in_a_task,
    in_a_future,
    in_a_callback,
    pending,
    in_a_span,
]

# What a database says

STATEMENTS = {
    "stored_twice": lambda value: (ADD, [{"name": value, "number": 1}] * 2),
    "out_of_range": lambda value: (ADD, {"name": value, "number": 2**40}),
    "of_another_type": lambda value: (ADD, {"name": value, "number": value}),
    "too_long": lambda value: (ADD, {"name": value * 9, "number": 1}),
    "without_a_column": lambda value: (ADD, {"name": value}),
    "not_unicode": lambda value: (ADD, {"name": value + "\ud800", "number": 1}),
    "converted": lambda value: (select(cast(func.trim(literal(value)), Integer) / 0), {}),
    "a_path": lambda value: (select(func.json_extract("{}", value)), {}),
    "a_pattern": lambda value: (select(func.regexp_count("a", f"[{value}")), {}),
    "raised_by_sql": lambda value: (text("SELECT raise_value(:value)"), {"value": value}),
    "no_such_column": lambda value: (
        text("SELECT missing FROM roads WHERE name = :v"),
        {"v": value},
    ),
    "no_such_parameter": lambda value: (text("SELECT :value, :other"), {"value": value}),
}


async def execute(sessionmaker: Any, name: str, value: str) -> None:
    async with sessionmaker.begin() as session:
        await session.execute(*STATEMENTS[name](value))


@router.get("")
async def read_roads() -> dict[str, list[str]]:
    return {"simple": [road.__name__ for road in SIMPLE], "statements": [*STATEMENTS]}


@router.post("/simple/{name}")
async def take_road(name: str, value: str = Body()) -> None:
    [road] = [road for road in SIMPLE if road.__name__ == name]
    found = road(value)
    if found is not None:
        await found


@router.post("/statement/{name}")
async def take_statement(name: str, session: SessionDep, value: str = Body()) -> None:
    await session.execute(*STATEMENTS[name](value))


@router.post("/later/{name}")
async def take_statement_later(
    name: str, tasks: BackgroundTasks, request: Request, value: str = Body()
) -> None:
    tasks.add_task(execute, request.app.state.sessionmaker, name, value)


@router.post("/logged/{name}")
async def log_statement(name: str, request: Request, value: str = Body()) -> None:
    try:
        await execute(request.app.state.sessionmaker, name, value)
    except Exception as error:
        logger.exception("it failed: %s", error)


@router.post("/stream")
async def stream(value: str = Body()) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield "first"
        int_of(value)

    return StreamingResponse(lines())


@router.post("/answer", response_model=Named)
async def answer(value: str = Body()) -> Any:
    return {"number": value}


@router.post("/call")
async def call(request: Request, value: str = Body()) -> None:
    secrets = {"Authorization": f"Bearer {value}", "Cookie": f"session={value}"}
    async with AsyncClient(base_url=str(request.base_url), headers=secrets) as client:
        await client.post("/health/live", params={"token": value}, json={"password": value})
        await client.get(f"http://{value}.invalid/")


@router.websocket("/socket")
async def socket(socket: WebSocket) -> None:
    await socket.accept()
    int_of(await socket.receive_text())

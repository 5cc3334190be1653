"""A WebSocket gets sessions, a request id, a line in the log and errors, as a request does."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketException
from sqlalchemy import column, insert, literal, select, table, text
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.dependencies import ReaderDep, SessionDep
from app.factory import create_app
from app.settings import ServiceSettings

NOTES = table("tested_notes", column("id"))
DENIAL = {"websocket.http.response": dict[str, str]()}
GONE = {"type": "websocket.disconnect", "code": 1001, "reason": ""}


def add_websockets(app: FastAPI) -> None:
    @app.websocket("/read")
    async def read(socket: WebSocket, reader: ReaderDep, number: int = 1) -> None:
        await socket.accept()
        for row in (await reader.execute(select(literal(number).label("number")))).all():
            await socket.send_json(row.number)

    @app.websocket("/write")
    async def write(socket: WebSocket, session: SessionDep) -> None:
        await socket.accept()
        await session.execute(insert(NOTES).values(id=1))
        async for _ in socket.iter_text():
            pass

    @app.websocket("/write/strictly")
    async def write_strictly(socket: WebSocket, session: SessionDep) -> None:
        await socket.accept()
        await session.execute(insert(NOTES).values(id=1))
        await socket.receive_text()

    @app.websocket("/{when}/{what}")
    async def fail(socket: WebSocket, when: str, what: str) -> None:
        if when == "accepted":
            await socket.accept()
        if what == "unavailable":
            raise TimeoutError
        if what == "forbidden":
            raise HTTPException(403, "secret")
        if what == "closed":
            raise WebSocketException(1008)
        raise RuntimeError("secret")


@pytest.fixture(scope="module")
async def app(shared_settings: ServiceSettings) -> AsyncIterator[FastAPI]:
    """The running service with WebSockets, built once for all tests that write nothing."""
    app = create_app(shared_settings)
    add_websockets(app)
    async with app.router.lifespan_context(app):
        yield app


async def connect(
    app: FastAPI, path: str, extensions: object = DENIAL, query: bytes = b""
) -> list[Any]:
    """Connect, and disconnect at once; return what the service sent."""
    scope: dict[str, Any] = {"type": "websocket", "path": path, "query_string": query}
    scope |= {"headers": [(b"x-request-id", b"order-7")], "extensions": extensions}
    coming: list[Any] = [{"type": "websocket.connect"}, GONE]
    sent: list[Any] = []

    async def receive() -> Any:
        return coming.pop(0)

    async def send(message: Any) -> None:
        assert not any(earlier["type"] == "websocket.close" for earlier in sent)
        sent.append(message)

    await app(scope, receive, send)
    return sent


def access_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "app.access"]


async def test_a_websocket_reads_has_an_id_and_is_logged_when_it_ends(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.access")

    accepted, sent = await connect(app, "/read")

    assert (b"x-request-id", b"order-7") in accepted["headers"]
    assert sent["text"] == "1"
    [line] = access_lines(caplog)
    assert line.startswith("WEBSOCKET /read 101 ")


@pytest.mark.parametrize(("path", "stored"), [("/write", 1), ("/write/strictly", 0)])
async def test_a_session_of_a_websocket_is_committed_when_its_handler_returns(
    settings: ServiceSettings, path: str, stored: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings)
    add_websockets(app)
    async with app.router.lifespan_context(app):
        async with app.state.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE tested_notes (id INTEGER PRIMARY KEY)"))

        await connect(app, path)

        async with app.state.engine.connect() as connection:
            assert len((await connection.execute(select(NOTES))).all()) == stored
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("error", "statuses"), [(HTTPException(401), [401]), (ClientDisconnect(), [])], ids=repr
)
async def test_middleware_of_a_feature_may_deny_a_websocket_or_find_it_gone(
    shared_settings: ServiceSettings,
    error: Exception,
    statuses: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(app: ASGIApp) -> ASGIApp:
        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            raise error

        return failing

    app = create_app(shared_settings, lambda app: app.add_middleware(fail))

    sent = await connect(app, "/", DENIAL)

    assert [message["status"] for message in sent if "status" in message] == statuses
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        ("unavailable", 503, 1013),
        ("forbidden", 403, 1008),
        ("broken", 500, 1011),
    ],
)
@pytest.mark.parametrize("extensions", [DENIAL, {}, None], ids=str)
async def test_an_error_denies_a_websocket_or_closes_it(
    app: FastAPI,
    what: str,
    status: int,
    code: int,
    extensions: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    close = {"type": "websocket.close", "code": code, "reason": "order-7"}

    before = await connect(app, f"/connecting/{what}", extensions)
    accepted, *after = await connect(app, f"/accepted/{what}", extensions)

    if extensions:
        start, _ = before
        assert start["status"] == status
        assert (b"content-type", b"application/problem+json") in start["headers"]
        assert (b"x-request-id", b"order-7") in start["headers"]
    else:
        assert before == [close]
    assert accepted["type"] == "websocket.accept"
    assert after == [close]
    assert [line.split()[2] for line in access_lines(caplog)] == [str(status)] * 2
    levels = [record.levelno for record in caplog.records]
    assert levels.count(logging.WARNING) == (2 if status == 503 else 0)
    assert levels.count(logging.ERROR) == (2 if status == 500 else 0)


async def test_an_invalid_websocket_is_denied_without_repeating_a_value(app: FastAPI) -> None:
    start, body = await connect(app, "/read", query=b"number=hunter2")

    assert start["status"] == 422
    assert b'"name":"number"' in body["body"]
    assert b"hunter2" not in body["body"]


@pytest.mark.parametrize(("path", "sent"), [("/accepted/closed", 2), ("/nowhere", 1)])
async def test_a_websocket_that_its_handler_closes_is_logged(
    app: FastAPI, path: str, sent: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    assert len(await connect(app, path)) == sent

    [line] = access_lines(caplog)
    assert line.split()[2] == ("403" if sent == 1 else "101")


@pytest.mark.parametrize("error", [OSError("the client has gone"), RuntimeError("it is closed")])
async def test_a_websocket_that_has_ended_meanwhile_is_no_error(
    app: FastAPI, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        raise error

    scope = {"type": "websocket", "path": "/read", "query_string": b"", "headers": []}
    await app(scope, receive, send)

    assert [record.name for record in caplog.records] == ["app.access"]

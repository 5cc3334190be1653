"""What HTTP and ASGI require of every path."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from httpx2 import AsyncClient
from starlette.routing import Mount, Router

from app.factory import create_app
from app.headers import DEFAULTS
from app.settings import ServiceSettings

OPTIONAL = {
    "raw_path": b"/health/live",
    "root_path": "",
    "scheme": "http",
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 2),
    "extensions": {},
    "state": {},
}


@pytest.fixture(scope="module")
async def app(shared_settings: ServiceSettings) -> AsyncIterator[FastAPI]:
    """The running service with more paths, in more ways than one.

    It is built once for all tests of this file, which change nothing.
    """
    app = create_app(shared_settings)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    @app.post("/posted")
    async def posted(request: Request) -> None:
        await request.body()

    @app.get("/with-a-tag")
    async def tagged(response: Response) -> str:
        response.headers.update({"ETag": '"1"', "X-Own": "kept", "Set-Cookie": "theme=dark"})
        return "a"

    @app.post("/changed", status_code=201, operation_id="post")
    @app.patch("/changed", status_code=200, operation_id="patch")
    @app.get("/changed", status_code=203, operation_id="get")
    async def changed(response: Response) -> str:
        response.headers["ETag"] = '"1"'
        return "a"

    @app.get("/kept")
    async def kept(response: Response) -> None:
        response.headers["Cache-Control"] = "max-age=60"
        response.headers["Content-Security-Policy"] = "default-src 'self'"

    @app.head("/counted", operation_id="head")
    @app.delete("/counted", operation_id="delete")
    async def counted() -> Response:
        return Response(headers={"X-Count": "7"})

    @app.get("/counted")
    async def count() -> int:
        raise AssertionError("HEAD has a handler of its own")

    async def lines() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"line\n"
        raise AssertionError("endless, for a test")

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        return StreamingResponse(lines())

    inner = FastAPI()
    inner.get("/a")(tagged)
    app.router.routes.append(Mount("/mounted", inner))
    app.router.routes.append(Mount("/bare", Router()))

    async with app.router.lifespan_context(app):
        yield app


@pytest.mark.parametrize(
    "path",
    [
        "/health/live",
        "/health/ready",
        "/docs",
        "/openapi.json",
        "/with-a-tag",
        "/with-a-tag/",
        "/mounted/a",
        "/nowhere",
        "/mounted/nowhere",
        "/bare/nowhere",
        "/posted",
        "/broken",
    ],
)
async def test_head_is_get_without_the_body(
    client: AsyncClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.access")
    got = await client.get(path, headers={"X-Request-ID": "1"})

    head = await client.head(path, headers={"X-Request-ID": "1"})

    assert (head.status_code, head.headers) == (got.status_code, got.headers)
    assert head.content == b""
    lines = [record.getMessage() for record in caplog.records if record.name == "app.access"]
    methods = [line.split()[0] for line in lines]
    assert methods == ([] if path.startswith("/health") else ["GET", "HEAD"])


async def test_a_route_may_answer_head_itself(client: AsyncClient) -> None:
    assert (await client.head("/counted")).headers["x-count"] == "7"


async def test_head_ends_where_get_never_does(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await client.head("/endless")).status_code == 200
    assert "unhandled" not in caplog.text


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/health/live", "GET, HEAD"),
        ("/posted", "POST"),
        ("/counted", "GET, HEAD, DELETE"),
        ("/docs", "GET, HEAD"),
    ],
)
async def test_allow_names_head_where_it_is_answered(
    client: AsyncClient, path: str, allowed: str
) -> None:
    assert (await client.patch(path)).headers["allow"] == allowed


async def test_head_is_not_in_the_document(app: FastAPI) -> None:
    assert app.openapi()["paths"]["/with-a-tag"].keys() == {"get"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [
        ('"1"', 304),
        ('W/"1"', 304),
        ('"0", "1"', 304),
        ("*", 304),
        ('"2"', 200),
        ("1", 200),
        ("", 200),
    ],
)
async def test_a_client_with_the_current_representation_gets_304(
    client: AsyncClient, method: str, if_none_match: str, status: int
) -> None:
    headers = {"If-None-Match": if_none_match}

    response = await client.request(method, "/with-a-tag", headers=headers)

    assert response.status_code == status
    assert response.headers["etag"] == '"1"'
    assert response.headers["cache-control"] == "private, no-cache"
    assert response.headers["x-request-id"]
    if status == 304:
        assert response.content == b""
        assert not {"content-length", "content-type"} & response.headers.keys()
    assert response.headers["x-own"] == "kept"
    assert response.headers["set-cookie"] == "theme=dark"


@pytest.mark.parametrize(("method", "status"), [("POST", 201), ("PATCH", 200), ("GET", 203)])
async def test_only_a_200_that_is_read_becomes_a_304(
    client: AsyncClient, method: str, status: int
) -> None:
    response = await client.request(method, "/changed", headers={"If-None-Match": '"1"'})

    assert (response.status_code, response.json()) == (status, "a")


@pytest.mark.parametrize(
    ("method", "path", "kept"),
    [
        ("GET", "/with-a-tag", "private, no-cache"),
        ("GET", "/kept", "max-age=60"),
        ("POST", "/posted", "no-store"),
        ("GET", "/health/live", "no-store"),
        ("GET", "/nowhere", "no-store"),
        ("GET", "/broken", "no-store"),
    ],
)
async def test_a_response_without_a_tag_is_not_stored(
    client: AsyncClient, method: str, path: str, kept: str
) -> None:
    response = await client.request(method, path, headers={"If-None-Match": '"0"'})

    assert response.headers["cache-control"] == kept


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("GET", "/health/live", 200, {}),
        ("HEAD", "/with-a-tag", 200, {}),
        ("GET", "/with-a-tag", 304, {"If-None-Match": "*"}),
        ("GET", "/openapi.json", 200, {}),
        ("GET", "/static-offline-docs/swagger-ui.css", 200, {}),
        ("GET", "/mounted/a", 200, {}),
        ("GET", "/nowhere", 404, {}),
        ("GET", "/bare/nowhere", 404, {}),
        ("OPTIONS", "/posted", 405, {}),
        ("POST", "/posted", 413, {"Content-Length": "9999999999"}),
        ("GET", "/with-a-tag?unknown=1", 422, {}),
        ("GET", "/broken", 500, {}),
    ],
)
async def test_every_response_says_what_browsers_may_do_with_it(
    client: AsyncClient, method: str, path: str, status: int, headers: dict[str, str]
) -> None:
    response = await client.request(method, path, headers=headers)

    assert response.status_code == status
    for name, value in DEFAULTS.items():
        [given] = response.headers.get_list(name.decode())
        assert given == value.decode() or name == b"cache-control"


async def test_a_handler_may_say_otherwise(client: AsyncClient) -> None:
    response = await client.get("/kept")

    assert response.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_trailing_slash_leads_nowhere(client: AsyncClient) -> None:
    response = await client.get("/with-a-tag/", headers={"Host": "evil.example"})

    assert response.status_code == 404
    assert "evil" not in f"{response.headers}{response.text}"


@pytest.mark.parametrize("missing", [*OPTIONAL, ""])
async def test_what_asgi_leaves_optional_may_be_missing(
    app: FastAPI, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.access")
    given = {key: value for key, value in OPTIONAL.items() if missing and key != missing}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    for path in ("/with-a-tag", "/with-a-tag/", "/nöw here\n", "/docs"):
        scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"}
        scope |= {"method": "GET", "path": path, "query_string": b"", "headers": []}
        raw = {"raw_path": path.encode()} if "raw_path" in given and path.isprintable() else {}
        await app(scope | given | raw, receive, send)

    statuses = [message["status"] for message in sent if "status" in message]
    assert statuses == [200, 404, 404, 200]

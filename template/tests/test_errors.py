import asyncio
import datetime
import errno
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Body, Cookie, Depends, FastAPI, Header, HTTPException, Query
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyQuery
from httpx2 import ASGITransport, AsyncClient, Response
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from pydantic import Json as JsonText
from pydantic_core import PydanticCustomError
from sqlalchemy import literal, select
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app import VERSION
from app.database import BigIntegerKey, UTCDateTime
from app.database.revisions import VERSIONS
from app.dependencies import ReaderDep
from app.etags import IfMatch
from app.factory import create_app
from app.fields import Id, Integer, Json, Time
from app.openapi.responses import describe_error
from app.pagination import MAX_LIMIT, Cursor, Limit
from app.problems import PHRASES, Problem
from app.settings import ServiceSettings, load_settings

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def settings(shared_settings: ServiceSettings) -> ServiceSettings:
    return shared_settings


def refuse(value: str) -> str:
    raise ValueError("not mine")


class Login(BaseModel):
    password: int


class Count(BaseModel):
    count: Annotated[str, AfterValidator(int)]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: list[int] = Field([], alias="a/b~")


class Dog(BaseModel):
    kind: Literal["dog"]


class Size(BaseModel):
    width: int

    @model_validator(mode="after")
    def check(self) -> "Size":
        raise PydanticCustomError("too_wide", "This is too wide")


@pytest.fixture(scope="module")
async def app(shared_settings: ServiceSettings) -> AsyncIterator[FastAPI]:
    """The running service with a few more routes, for what no real route should do.

    It is built once for all tests of this file, which add none.
    """
    app = create_app(shared_settings)

    @app.post("/login")
    async def login(login: Login) -> None: ...

    @app.post("/counts")
    async def count(count: Count) -> None: ...

    @app.post("/json")
    async def keep(data: Annotated[Json, Body()]) -> None: ...

    @app.post("/text")
    async def parse(data: Annotated[JsonText[Any], Body()]) -> None: ...

    @app.post("/texts")
    async def parse_each(data: Annotated[dict[str, JsonText[Any]], Body()]) -> None: ...

    @app.post("/pets")
    async def buy(pet: Annotated[Cat | Dog, Body(discriminator="kind")]) -> None: ...

    @app.post("/embedded")
    async def embed(login: Annotated[Login, Body(embed=True)]) -> None: ...

    @app.post("/several")
    async def combine(login: Login, times: Annotated[int, Body()] = 1) -> None: ...

    key = APIKeyQuery(name="key", auto_error=False)

    @app.get("/found/{number}", dependencies=[Depends(key)])
    async def find(
        number: Id,
        limit: Limit = MAX_LIMIT,
        offset: Integer = 0,
        at: Time | None = None,
        cursor: Cursor = None,
        tags: Annotated[list[str] | None, Query()] = None,
        own: Annotated[str, AfterValidator(refuse)] = "",
        x_count: Annotated[int, Header()] = 1,
        count: Annotated[int, Cookie()] = 1,
    ) -> list[str] | None:
        return tags

    @app.post("/changed", operation_id="post")
    @app.patch("/changed", operation_id="patch")
    @app.put("/changed", operation_id="put")
    async def change(login: Login) -> None: ...

    @app.post("/hidden/{number}", include_in_schema=False, dependencies=[Depends(key)])
    async def hide(number: Id, login: Login, limit: int = 1) -> None: ...

    @app.delete("/guarded")
    async def delete(if_match: IfMatch) -> None: ...

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret")

    @app.put("/slow", operation_id="put_slow")
    @app.get("/slow")
    async def slow() -> None:
        raise TimeoutError

    @app.put("/awaiting", operation_id="put_awaiting")
    @app.get("/awaiting")
    async def wait() -> None:
        task = asyncio.create_task(asyncio.sleep(30))
        task.cancel()
        await task

    @app.get("/raised")
    async def raised() -> None:
        raise app.state.raised  # a test says what

    @app.get("/stored")
    async def store(reader: ReaderDep) -> None:
        await reader.execute(select(app.state.stored))

    @app.get("/sizes/{width}")
    async def read_size(width: str) -> None:
        try:
            Size(width=width)  # type: ignore[arg-type]
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    inner = APIRouter(prefix="/inner")
    inner.get("/{number}")(lambda number: None)
    for prefix in ("/v1", "/v2"):
        app.include_router(inner, prefix=prefix, include_in_schema=False)

    async with app.router.lifespan_context(app):
        yield app


def check_problem(response: Response, status: int) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    return problem


async def test_an_unknown_path_is_a_problem(client: AsyncClient) -> None:
    problem = check_problem(await client.get("/nowhere"), 404)

    assert (problem["type"], problem["title"]) == ("about:blank", "Not Found")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/health/live", "GET, HEAD"), ("/slow", "GET, HEAD, PUT")]
)
async def test_a_wrong_method_is_a_problem_that_names_the_right_ones(
    client: AsyncClient, path: str, allowed: str
) -> None:
    response = await client.delete(path)

    check_problem(response, 405)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("path", "body", "pointer", "code"),
    [
        ("/login", {"password": "hunter2"}, "/password", "int_parsing"),
        ("/login", {}, "/password", "missing"),
        ("/counts", {"count": "hunter2"}, "/count", "value_error"),
        ("/login", [], "", "model_attributes_type"),
        ("/embedded", {"login": {"password": 1}, "a/b": "hunter2"}, "/a~1b", "extra_forbidden"),
        ("/several", {"login": {"password": 1}, "more": "hunter2"}, "/more", "extra_forbidden"),
        ("/several", {"login": {}, "times": 2}, "/login/password", "missing"),
        ("/embedded", [], "/login", "missing"),
        ("/pets", {"kind": "hunter2"}, "", "union_tag_invalid"),
        ("/pets", {"kind": "cat", "a/b~": ["hunter2"]}, "/a~1b~0/0", "int_parsing"),
        ("/pets", {"kind": "cat", "a/b~": [1, "", 2]}, "/a~1b~0/1", "int_parsing"),
    ],
)
async def test_invalid_data_is_named_and_never_repeated(
    client: AsyncClient, path: str, body: Any, pointer: str, code: str
) -> None:
    response = await client.post(path, json=body)

    problem = check_problem(response, 422)
    assert problem["type"] == "/problems/invalid-request"
    [error] = problem["errors"]
    assert (error["in"], error["pointer"], error["code"]) == ("body", pointer, code)
    assert "hunter2" not in response.text


@pytest.mark.parametrize(
    ("path", "headers", "where", "name", "code"),
    [
        ("/found/x", {}, "path", "number", "int_parsing"),
        ("/found/1?limit=x", {}, "query", "limit", "int_parsing"),
        ("/found/1?limits=1", {}, "query", "limits", "unknown_parameter"),
        ("/found/1?limit=1&limit=2", {}, "query", "limit", "repeated_parameter"),
        ("/found/1", {"X-Count": "hunter2"}, "header", "x-count", "int_parsing"),
        ("/found/1", {"Cookie": "count=hunter2"}, "cookie", "count", "int_parsing"),
    ],
)
async def test_an_invalid_parameter_is_named(
    client: AsyncClient, path: str, headers: dict[str, str], where: str, name: str, code: str
) -> None:
    response = await client.get(path, headers=headers)

    [error] = check_problem(response, 422)["errors"]
    assert (error["in"], error["name"], error["code"]) == (where, name, code)
    assert "hunter2" not in response.text


async def test_a_body_of_parameters_has_no_other_fields(app: FastAPI, client: AsyncClient) -> None:
    for path, more in (("/embedded", {}), ("/several", {}), ("/several", {"times": 2})):
        response = await client.post(path, json={"login": {"password": 1}} | more)
        assert response.status_code == 200
    schemas = app.openapi()["components"]["schemas"]
    closed = {name for name, schema in schemas.items() if "additionalProperties" in schema}
    assert {"Body_embed", "Body_combine"} <= closed


async def test_a_body_without_the_member_that_it_belongs_in_is_told_so(client: AsyncClient) -> None:
    for path in ("/embedded", "/several"):
        response = await client.post(path, json={"password": 1})

        errors = {(error["pointer"], error["code"]) for error in response.json()["errors"]}
        assert errors == {("/login", "missing"), ("/password", "extra_forbidden")}


async def test_a_list_may_be_repeated(client: AsyncClient) -> None:
    response = await client.get("/found/1?tags=a&tags=b&limit=1&key=c")

    assert response.json() == ["a", "b"]


@pytest.mark.parametrize("number", ["1", "9223372036854775807"])
async def test_an_id_has_one_spelling(client: AsyncClient, number: str) -> None:
    assert (await client.get(f"/found/{number}")).status_code == 200
    for other in (f"0{number}", f"{number}.0", f"+{number}", f"%20{number}", f"{number}_0"):
        assert (await client.get(f"/found/{other}")).status_code == 422


@pytest.mark.parametrize("name", ["limit", "offset"])
async def test_an_integer_of_the_query_has_one_spelling(client: AsyncClient, name: str) -> None:
    assert (await client.get(f"/found/1?{name}=10")).status_code == 200
    for other in ("01", "%2B1", "1_0", "%201", "1.0", "1%20"):
        assert (other, (await client.get(f"/found/1?{name}={other}")).status_code) == (other, 422)


@pytest.mark.parametrize(
    ("path", "code", "detail"),
    [
        ("/found/1?cursor=x", "invalid_cursor", "This cursor was not issued by the service"),
        ("/found/1?at=10:00Z", "time_with_offset", "A time must not have a UTC offset"),
        ("/found/1?at=36000", "number_as_time", "This must be written as in ISO 8601"),
        ("/found/1?at=3.6e4", "number_as_time", "This must be written as in ISO 8601"),
        ("/found/1?own=x", "value_error", "not mine"),
    ],
)
async def test_a_refused_value_has_a_code_of_its_own(
    client: AsyncClient, path: str, code: str, detail: str
) -> None:
    [error] = check_problem(await client.get(path), 422)["errors"]

    assert (error["code"], error["detail"]) == (code, detail)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'"\\u0000"', "unstorable_text"),
        (b"[1e999]", "finite_number"),
        (b"9223372036854775808", "integer_too_large"),
        (b"[%s0]" % (b"0," * 4_000), "too_many_values"),
    ],
)
async def test_json_that_no_database_stores_has_a_code_of_its_own(
    client: AsyncClient, content: bytes, code: str
) -> None:
    headers = {"Content-Type": "application/json"}

    response = await client.post("/json", content=content, headers=headers)

    [error] = check_problem(response, 422)["errors"]
    assert error["code"] == code


@pytest.mark.parametrize(
    ("method", "header"), [("POST", "Accept-Post"), ("PATCH", "Accept-Patch"), ("PUT", "Accept")]
)
async def test_another_media_type_is_refused_and_the_right_one_is_named(
    client: AsyncClient, method: str, header: str
) -> None:
    async def send(media_type: str, content: bytes) -> Response:
        headers = {"Content-Type": media_type}
        return await client.request(method, "/changed", content=content, headers=headers)

    response = await send("text/plain", b'{"password": 1}')

    check_problem(response, 415)
    assert response.headers[header] == "application/json"
    assert (await send("application/merge-patch+json; charset=utf-8", b"{}")).status_code == 422
    assert (await send("text/plain", b"")).status_code == 422  # nothing was sent


async def test_a_hidden_operation_is_as_strict_as_any_other(client: AsyncClient) -> None:
    login = {"password": 1}

    allowed = await client.post("/hidden/1?limit=1&key=a", json=login)
    unknown = await client.post("/hidden/1?limits=1", json=login)
    many = await client.post(
        "/hidden/1?" + "&".join(f"{n:0200}" + "=1" for n in range(30)), json=login
    )
    repeated = await client.post("/hidden/1?limit=1&limit=2", json=login)
    text = await client.post("/hidden/1", content="{}", headers={"Content-Type": "text/plain"})

    assert allowed.status_code == 200
    assert check_problem(unknown, 422)["errors"][0]["code"] == "unknown_parameter"
    assert [len(error["name"]) for error in check_problem(many, 422)["errors"]] == [100] * 20
    assert check_problem(repeated, 422)["errors"][0]["code"] == "repeated_parameter"
    assert check_problem(text, 415)
    assert text.headers["accept-post"] == "application/json"


async def test_a_probe_may_have_any_query(client: AsyncClient) -> None:
    assert (await client.get("/health/live?at=1")).status_code == 200


async def test_a_precondition_may_be_required(client: AsyncClient) -> None:
    missing = await client.delete("/guarded")
    given = await client.delete("/guarded", headers={"If-Match": "*"})

    assert check_problem(missing, 428)["type"] == "/problems/precondition-required"
    assert given.status_code == 200


@pytest.mark.parametrize(
    ("status", "detail", "members"),
    [
        (404, None, {"title": "Not Found"}),
        (404, "No such order.", {"detail": "No such order."}),
        (409, {"code": "sold_out", "status": 1}, {"code": "sold_out"}),
        (409, {"detail": "Sold out."}, {"detail": "Sold out.", "type": "/problems/conflict"}),
        (409, {"title": None, "detail": None}, {"title": "Conflict", "status": 409}),
        (409, ["sold out"], {"detail": "['sold out']"}),
        (409, {1: "sold out"}, {"1": "sold out"}),
        (499, "Gone.", {"title": "Error", "detail": "Gone."}),
    ],
)
async def test_what_a_handler_raises_is_a_problem_of_its_status(
    app: FastAPI, client: AsyncClient, status: int, detail: Any, members: dict[str, str]
) -> None:
    app.state.raised = HTTPException(status, detail)

    problem = check_problem(await client.get("/raised"), status)

    assert problem.items() >= members.items()


async def test_errors_of_a_model_that_a_handler_validates_name_its_fields(
    client: AsyncClient,
) -> None:
    of_a_field = check_problem(await client.get("/sizes/hunter2"), 422)
    of_all = check_problem(await client.get("/sizes/7"), 422)

    [error] = of_a_field["errors"]
    assert (error["name"], error["code"], "in" in error) == ("width", "int_parsing", False)
    [error] = of_all["errors"]
    assert (error.get("name"), error["code"]) == (None, "too_wide")


async def test_a_custom_problem_inherits_nothing(app: FastAPI, client: AsyncClient) -> None:
    own = {"type": "/problems/sold-out", "title": "Sold Out"}

    app.state.raised = HTTPException(409, own)
    titled = check_problem(await client.get("/raised"), 409)
    app.state.raised = HTTPException(409, {"type": own["type"]})
    untitled = check_problem(await client.get("/raised"), 409)

    assert titled == own | {"status": 409, "request_id": titled["request_id"]}
    assert (untitled["title"], "detail" in untitled) == ("Conflict", False)


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (416, "Range Not Satisfiable"),
        (422, "Unprocessable Content"),
    ],
)
async def test_a_status_has_one_name_whatever_python_calls_it(status: int, title: str) -> None:
    assert describe_error(status, Problem)["description"] == PHRASES[status] == title


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(
    app: FastAPI, client: AsyncClient, status: int
) -> None:
    app.state.raised = HTTPException(status, headers={"ETag": '"1"'})

    response = await client.get("/raised")

    assert (response.status_code, response.content) == (status, b"")
    assert response.headers["etag"] == '"1"'


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime.datetime(2026, 1, 1), UTCDateTime),
        (datetime.datetime.fromisoformat("0001-01-01T00:00:00+14:00"), UTCDateTime),
        (2**64, BigIntegerKey),
    ],
    ids=str,
)
async def test_a_value_that_no_column_can_hold_is_the_clients_error(
    app: FastAPI, client: AsyncClient, value: Any, kind: Any
) -> None:
    app.state.stored = literal(value, kind)

    check_problem(await client.get("/stored"), 422)


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff", "application/json", 400),
        (b"", "application/json", 422),
        (b'{"password": 1}', "text/plain", 415),
        (b'{"password": 1}', "", 415),
        (b"[" * 10_000, "application/json", 400),
        (b"1" * 10_000, "application/json", 400),
    ],
)
async def test_a_body_that_is_not_json_is_the_clients_error(
    client: AsyncClient, content: bytes, content_type: str, status: int
) -> None:
    response = await client.post("/login", content=content, headers={"Content-Type": content_type})

    check_problem(response, status)


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [("/text", "{", ""), ("/texts", {"a": "{"}, "/a")],
)
async def test_a_text_that_is_not_json_is_named(
    client: AsyncClient, path: str, body: Any, pointer: str
) -> None:
    response = await client.post(path, json=body)

    check_problem(response, 422)
    [error] = response.json()["errors"]
    assert (error["code"], error["pointer"]) == ("json_invalid", pointer)


@pytest.mark.parametrize(
    ("failure", "status", "logged"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 503, "unavailable: temporary files: "),
        (PermissionError(errno.EACCES, "Permission denied"), 503, "unavailable: temporary files: "),
        (MemoryError(), 503, "unavailable: memory: "),
        (RuntimeError("can't start new thread"), 500, "unhandled error"),
        (ConnectionResetError(), 400, ""),
        (ClientDisconnect(), 400, ""),
    ],
    ids=repr,
)
async def test_a_body_that_the_server_cannot_read_is_its_own_error_and_logged(
    app: FastAPI,
    client: AsyncClient,
    failure: Exception,
    status: int,
    logged: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> Any:
        raise failure

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, fail, send)

    async with AsyncClient(transport=ASGITransport(failing), base_url="http://test") as other:
        response = await other.post("/login", json={"password": 1})

    check_problem(response, status)
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage()[: len(logged)] for record in told] == [logged] * bool(logged)
    if status == 503:
        assert response.headers["retry-after"] == "1"
        assert vars(told[0])["reason"] in {"temporary files", "memory"}


async def test_a_body_over_the_limit_is_refused_when_it_is_announced(
    client: AsyncClient, settings: ServiceSettings
) -> None:
    headers = {"Content-Length": str(settings.max_body_size + 1)}

    response = await client.post("/login", content=b"", headers=headers)

    check_problem(response, 413)


async def test_a_body_over_the_limit_is_refused_when_it_comes_in_chunks(
    client: AsyncClient, settings: ServiceSettings
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(settings.max_body_size // 1000 + 1):
            yield b" " * 1000

    response = await client.post(
        "/login", content=chunks(), headers={"Content-Type": "application/json"}
    )

    check_problem(response, 413)


async def test_an_unhandled_error_is_logged_once_and_not_shown(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.get("/broken")

    check_problem(response, 500)
    assert "secret" not in response.text
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "unhandled error"
    ]


async def test_what_middleware_of_a_feature_raises_is_a_problem_of_its_status(
    settings: ServiceSettings,
) -> None:
    def read_bodies(app: ASGIApp) -> ASGIApp:
        async def reading(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await receive()
                raise HTTPException(402, {"code": "unpaid"}, {"X-Price": "1"})
            await app(scope, receive, send)

        return reading

    app = create_app(settings, lambda app: app.add_middleware(read_bodies))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        large = await client.post("/", content=b"a" * (settings.max_body_size + 1))
        small = await client.post("/", content=b"a")

    check_problem(large, 413)
    assert check_problem(small, 402)["code"] == "unpaid"
    assert small.headers["X-Price"] == "1"


async def test_a_task_that_is_cancelled_elsewhere_is_an_unhandled_error(
    client: AsyncClient,
) -> None:
    answers = [await client.request(method, "/awaiting") for method in ("GET", "PUT")]

    for answer in answers:
        check_problem(answer, 500)


async def test_a_timeout_is_unavailability(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.get("/slow")

    check_problem(response, 503)
    assert "unavailable: timed out" in caplog.text
    assert response.headers["retry-after"] == "1"


async def test_an_exhausted_pool_is_unavailability(settings: ServiceSettings) -> None:
    app = create_app(
        settings.model_copy(
            update={
                "database_pool_size": 1,
                "database_max_overflow": 0,
                "database_pool_timeout": 0.1,
            }
        )
    )

    @app.get("/read")
    async def read(reader: ReaderDep) -> None:
        await reader.execute(VERSIONS)

    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        async with app.state.engine.connect():
            exhausted = await client.get("/read")
        recovered = await client.get("/read")

    check_problem(exhausted, 503)
    assert exhausted.headers["retry-after"] == "1"
    assert recovered.status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("api.example.com", 200),
        ("API.example.com:8000", 200),
        ("shop.test", 200),
        ("example.com", 400),
        ("api.example.com.evil", 400),
        ("evil%2f.example.com", 400),
        ("evil#.example.com", 400),
        ("evil", 400),
        ("", 400),
    ],
)
async def test_only_allowed_hosts_are_served_but_for_probes(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, host: str, status: int
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.driver_url.render_as_string(hide_password=False))
    monkeypatch.setenv("ALLOWED_HOSTS", "*.Example.com, Shop.test")
    app = create_app(load_settings(ServiceSettings))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/openapi.json", headers={"Host": host})
        others = [
            await client.get(path, headers={"Host": host}) for path in ("/healthy", "/health/a")
        ]
        probe = await client.get("/health/live", headers={"Host": host})
        refused = await client.post("/health/ready", headers={"Host": host})

    assert response.status_code == status
    assert {other.status_code for other in others} == {404 if status == 200 else 400}
    if status == 400:
        check_problem(response, status)
    assert probe.status_code == 200
    assert refused.status_code == 405  # by its method alone


async def test_a_websocket_of_another_host_is_refused(settings: ServiceSettings) -> None:
    app = create_app(settings.model_copy(update={"allowed_hosts": ("api.example.com",)}))
    scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [(b"host", b"evil")]}
    scope |= {"scheme": "ws", "extensions": {"websocket.http.response": {}}}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, pytest.fail, send)

    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 400)


async def test_statements_are_logged_once_and_without_values_when_asked(
    settings: ServiceSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings.model_copy(update={"database_echo": True}))
    statement = select(literal("hunter2"))

    try:
        async with app.router.lifespan_context(app):
            await app.state.reader.execute(statement)
    finally:
        logging.getLogger("sqlalchemy.engine").setLevel(logging.NOTSET)

    log = capsys.readouterr().err
    assert log.count("SELECT ") == 1
    assert "hunter2" not in log


async def test_browsers_may_call_from_the_origins_that_are_named(settings: ServiceSettings) -> None:
    origin = "https://app.example"
    app = create_app(settings.model_copy(update={"cors_origins": (origin,)}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        allowed = await client.get("/nowhere", headers={"Origin": origin})
        other = await client.get("/nowhere", headers={"Origin": "https://evil.example"})

    assert allowed.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-origin" not in other.headers


async def test_the_documentation_can_be_turned_off(settings: ServiceSettings) -> None:
    app = create_app(settings.model_copy(update={"docs_enabled": False}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        for path in ("/docs", "/openapi.json"):
            check_problem(await client.get(path), 404)


async def test_the_documentation_comes_from_the_service_alone(client: AsyncClient) -> None:
    page = (await client.get("/docs")).text
    parts = re.findall(r"(?:src|href|url)(?:=|: )[\"']([^\"']+)", page)

    assert len(parts) == 4
    for part in parts:
        assert part.startswith("/")
        assert (await client.get(part)).status_code == 200
    assert "://" not in page
    check_problem(await client.get("/redoc"), 404)  # its page shows a picture of another host


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}, TRACE_ID),
        ({"X-Request-ID": "order-7"}, "order-7"),
        (
            {"X-Request-ID": "order-7", "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"},
            TRACE_ID,
        ),
        ({"X-Request-ID": "order-7", "traceparent": "00-0-0-0"}, "order-7"),
        ({"traceparent": f"01-{TRACE_ID}-00f067aa0ba902b7-01-more"}, TRACE_ID),
        ({"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01-more"}, None),
        ({"traceparent": f"01-{TRACE_ID}-00f067aa0ba902b7-01more"}, None),
        ({"traceparent": f"ff-{TRACE_ID}-00f067aa0ba902b7-01"}, None),
        ({"X-Request-ID": "two words\x7f"}, None),
        ({"X-Request-ID": "a" * 129}, None),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({}, None),
    ],
)
async def test_a_request_keeps_a_valid_id_and_gets_one_otherwise(
    client: AsyncClient, headers: dict[str, str], expected: str | None
) -> None:
    given = (await client.get("/health/live", headers=headers)).headers["x-request-id"]

    if expected:
        assert given == expected
    else:
        assert (len(given), given != TRACE_ID) == (32, True)


async def test_each_request_but_a_probe_is_one_line_without_its_query(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    await client.get("/health/live")
    await client.get("/health/ready")
    await client.get("/now%0Ahere", params={"token": "hunter2"})

    lines = [record.getMessage() for record in caplog.records if record.name == "app.access"]
    assert len(lines) == 1
    assert lines[0].startswith("GET /now%0Ahere 404 ")


async def test_a_request_is_logged_by_the_names_of_opentelemetry(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    for method, path in (("GET", "/v2/inner/7"), ("HEAD", "/v1/inner/7"), ("GET", "/nowhere")):
        await client.request(method, path)
    await client.head("/broken")
    behind = ASGITransport(app, root_path="/shop")
    async with AsyncClient(transport=behind, base_url="http://test") as proxied:
        await proxied.get("/shop/v2/inner/7")

    lines = [vars(record) for record in caplog.records if record.name == "app.access"]
    assert [line.get("http.route") for line in lines] == [
        "/v2/inner/{number}",
        "/v1/inner/{number}",
        None,
        "/broken",
        "/v2/inner/{number}",
    ]
    assert [line["url.path"] for line in lines] == [
        "/v2/inner/7",
        "/v1/inner/7",
        "/nowhere",
        "/broken",
        "/shop/v2/inner/7",
    ]
    assert [line["http.request.method"] for line in lines] == ["GET", "HEAD", "GET", "HEAD", "GET"]
    assert [line["http.response.status_code"] for line in lines] == [200, 200, 404, 500, 200]
    assert {line["client.address"] for line in lines} == {"127.0.0.1"}
    assert all(0 < line["http.server.request.duration"] < 60 for line in lines)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_each_line_carries_the_request_id(
    settings: ServiceSettings, log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings.model_copy(update={"log_format": log_format}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        await client.get("/nowhere", headers={"X-Request-ID": "order-7"})

    [line] = [line for line in capsys.readouterr().err.splitlines() if "app.access" in line]
    assert "order-7" in line
    if log_format == "json":
        record = json.loads(line)
        assert (record["request_id"], record["service.version"]) == ("order-7", VERSION)

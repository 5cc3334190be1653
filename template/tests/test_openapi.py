"""The document says what is sent, for every route, without any declaration in it."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from fastapi import Depends, FastAPI, Query, Request
from fastapi.security import HTTPBearer
from httpx2 import ASGITransport, AsyncClient
from pydantic import BaseModel, Field, create_model

from app import VERSION
from app.etags import IfMatch, Versioned, etag
from app.factory import create_app
from app.fields import BigInteger, Id, Integer
from app.pagination import MAX_LIMIT, Cursor, Limit, Page
from app.settings import ServiceSettings

T = TypeVar("T")

ALWAYS = {"400", "422", "500", "503"}


class ThingCreate(BaseModel):
    size: Integer
    total: BigInteger


class ThingRead(Versioned):
    id: Id


class ThingReadLater(Versioned):
    id: Id
    name: str = ""


@pytest.fixture(scope="module")
async def app(shared_settings: ServiceSettings) -> FastAPI:
    """The service with some things, built once for all tests of this file, which only read."""
    app = create_app(shared_settings)

    @app.get("/things")
    async def list_things(limit: Limit = MAX_LIMIT, cursor: Cursor = None) -> Page[ThingRead]:
        return Page(items=[ThingRead(version=7, id=1)], next_cursor=None)

    @app.post("/things", status_code=201)
    async def create_thing(data: ThingCreate) -> ThingRead:
        raise NotImplementedError

    @app.get("/things/{thing_id}", responses={403: {}})
    async def read_thing(thing_id: Id) -> ThingRead:
        raise NotImplementedError

    @app.get("/thing", dependencies=[Depends(HTTPBearer())])
    async def find_thing() -> ThingRead | None: ...

    @app.put("/things/{thing_id}")
    async def replace_thing(thing_id: Id, data: ThingCreate, if_match: IfMatch = None) -> ThingRead:
        raise NotImplementedError

    @app.delete("/things/{thing_id}", status_code=204)
    async def delete_thing(thing_id: Id, if_match: IfMatch) -> None: ...

    return app


def operations(app: FastAPI) -> dict[str, Any]:
    return {
        operation["operationId"]: operation
        for path in app.openapi()["paths"].values()
        for operation in path.values()
    }


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("list_things", {"200"}),
        ("create_thing", {"201", "409", "413", "415"}),
        ("read_thing", {"200", "304", "403", "404"}),
        ("find_thing", {"200", "304", "401"}),
        ("replace_thing", {"200", "404", "409", "412", "413", "415"}),
        ("delete_thing", {"204", "404", "409", "412", "428"}),
    ],
)
async def test_each_operation_is_documented_with_the_statuses_that_its_kind_has(
    app: FastAPI, name: str, codes: set[str]
) -> None:
    assert operations(app)[name]["responses"].keys() == codes | ALWAYS


async def test_each_error_is_documented_as_a_problem_with_an_example(app: FastAPI) -> None:
    document = app.openapi()
    components = document["components"]

    for operation in operations(app).values():
        for code, response in operation["responses"].items():
            if code >= "400":
                name = response["$ref"].removeprefix("#/components/responses/")
                assert components["responses"][name]["content"].keys() == {
                    "application/problem+json"
                }
    assert not {"HTTPValidationError", "ValidationError"} & components["schemas"].keys()
    required = set(components["schemas"]["Problem"]["required"])
    for response in components["responses"].values():
        content = response["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        for example in content["examples"].values():
            assert example["value"].keys() >= required
    assert components["responses"]["Problem503"]["content"]["application/problem+json"][
        "examples"
    ].keys() == {"unavailable", "outcome-unknown"}


@pytest.mark.parametrize(
    ("name", "code", "headers"),
    [
        ("list_things", "200", set()),
        ("create_thing", "201", {"ETag", "Location"}),
        ("read_thing", "200", {"ETag"}),
        ("read_thing", "304", {"ETag"}),
        ("find_thing", "200", {"ETag"}),
        ("delete_thing", "204", set()),
    ],
)
async def test_headers_are_documented_where_they_are_sent(
    app: FastAPI, name: str, code: str, headers: set[str]
) -> None:
    always = {"X-Request-ID", "Cache-Control"}
    assert operations(app)[name]["responses"][code]["headers"].keys() == always | headers


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        (401, {"WWW-Authenticate"}),
        (415, {"Accept", "Accept-Post", "Accept-Patch"}),
        (503, {"Retry-After"}),
    ],
)
async def test_headers_of_an_error_are_documented(
    app: FastAPI, code: int, headers: set[str]
) -> None:
    components = app.openapi()["components"]

    always = {"X-Request-ID", "Cache-Control"}
    assert components["responses"][f"Problem{code}"]["headers"].keys() == always | headers
    assert all(components["headers"][name]["description"] for name in headers)
    assert components["headers"]["Retry-After"]["schema"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("name", "documented"), [("read_thing", 1), ("find_thing", 1), ("list_things", 0)]
)
async def test_if_none_match_is_documented_where_304_is(
    app: FastAPI, name: str, documented: int
) -> None:
    operation = operations(app)[name]

    names = [parameter["name"] for parameter in operation.get("parameters", ())]
    assert names.count("If-None-Match") == documented == ("304" in operation["responses"])


async def test_the_401_of_a_scheme_is_sent_with_the_documented_header(client: AsyncClient) -> None:
    response = await client.get("/thing")

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("operation", "name", "required"),
    [
        ("list_things", "cursor", False),
        ("replace_thing", "If-Match", False),
        ("delete_thing", "If-Match", True),
    ],
)
async def test_a_parameter_of_rest_is_documented_as_a_text_with_an_example(
    app: FastAPI, operation: str, name: str, required: bool
) -> None:
    [parameter] = [
        parameter
        for parameter in operations(app)[operation]["parameters"]
        if parameter["name"] == name
    ]

    schema = parameter["schema"]
    assert (parameter["required"], schema["type"]) == (required, "string")
    assert not {"anyOf", "default"} & schema.keys()
    assert parameter["description"]
    assert schema["examples"]


async def test_integers_are_documented_with_their_size(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]

    fields = schemas["ThingCreate"]["properties"] | schemas["ThingRead"]["properties"]
    assert {name: fields[name]["format"] for name in ("size", "total", "id")} == {
        "size": "int32",
        "total": "int64",
        "id": "int64",
    }
    assert fields["id"]["maximum"] == fields["total"]["maximum"] == 2**63 - 1
    assert json.dumps(fields["total"]["minimum"]) == str(-(2**63))
    limit = operations(app)["list_things"]["parameters"][0]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, MAX_LIMIT, MAX_LIMIT)


async def test_a_page_is_called_after_what_is_on_it(app: FastAPI) -> None:
    response = operations(app)["list_things"]["responses"]["200"]

    schema = response["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ThingReadPage"}
    assert "ThingReadPage" in app.openapi()["components"]["schemas"]


async def test_the_document_has_the_services_version_and_no_probes(app: FastAPI) -> None:
    assert app.openapi()["info"]["version"] == VERSION
    assert not any(path.startswith("/health") for path in app.openapi()["paths"])


async def test_the_document_is_the_same_each_time(app: FastAPI) -> None:
    assert json.dumps(app.openapi()) == json.dumps(app.openapi())


async def test_two_operations_of_one_name_are_refused_by_name(
    shared_settings: ServiceSettings,
) -> None:
    def add_features(app: FastAPI) -> None:
        @app.get("/things/{thing_id}")
        @app.get("/others/{thing_id}")
        async def read_thing(thing_id: Id) -> None: ...

    with pytest.raises(ValueError, match="^GET /others/{thing_id} and GET /things/{thing_id} are"):
        create_app(shared_settings, add_features)


async def test_a_list_of_the_query_that_would_be_read_from_a_body_is_refused_by_name(
    shared_settings: ServiceSettings,
) -> None:
    def add_features(app: FastAPI) -> None:
        @app.get("/things")
        async def list_things(tag: Annotated[list[str], Query()] | None = None) -> None: ...

    with pytest.raises(ValueError, match="^GET /things takes tag from a body"):
        create_app(shared_settings, add_features)


@pytest.mark.parametrize("name", ["Problem", "FieldError", "ThingReadPage"])
async def test_two_models_of_one_name_are_refused_by_name(
    shared_settings: ServiceSettings, name: str
) -> None:
    app = create_app(shared_settings)
    model = create_model(name, own=(int, ...))

    @app.get("/things")
    async def list_things() -> Page[ThingRead]:
        raise NotImplementedError

    app.add_api_route("/own", lambda: None, response_model=model)

    with pytest.raises(ValueError, match=f"^two models are called {name} in the document"):
        app.openapi()


async def test_an_item_of_a_list_has_its_entity_tag(app: FastAPI, client: AsyncClient) -> None:
    [thing] = (await client.get("/things")).json()["items"]

    assert thing == {"id": 1, "etag": etag(ThingRead, 7)}


async def test_another_form_has_another_entity_tag() -> None:
    assert etag(ThingRead, 7) != etag(ThingReadLater, 7)
    assert etag(ThingRead, 7).startswith('"7-')


async def test_a_document_that_a_feature_extends_is_completed(
    shared_settings: ServiceSettings,
) -> None:
    def add_features(app: FastAPI) -> None:
        make = app.openapi

        def extended() -> dict[str, Any]:
            document = make()
            document["info"]["x-logo"] = "/logo.svg"
            document["paths"]["/extended"]["parameters"] = []
            headers = {"X-Own": {"schema": {"type": "string"}}}
            responses = {"Own": {"description": "Own"}}
            return document | {"components": {"headers": headers, "responses": responses}}

        app.get("/extended")(lambda: None)
        app.openapi = extended  # type: ignore[method-assign]

    document = create_app(shared_settings, add_features).openapi()

    assert document["info"]["x-logo"] == "/logo.svg"
    assert {"Own", "Problem503"} <= document["components"]["responses"].keys()
    assert {"X-Own", "X-Request-ID"} <= document["components"]["headers"].keys()


async def test_what_openapi_leaves_optional_may_be_missing(
    shared_settings: ServiceSettings,
) -> None:
    own: dict[str, Any] = {
        "requestBody": {"content": {"application/octet-stream": {}}},
        "parameters": [
            {"$ref": "#/components/parameters/own"},
            {"name": "If-Match", "in": "header"},
            {"name": "filter", "in": "query", "content": {"application/json": {}}},
        ],
    }

    def add_features(app: FastAPI) -> None:
        @app.post("/raw", openapi_extra=own)
        async def store(request: Request) -> int:
            return len(await request.body())

    app = create_app(shared_settings, add_features)
    headers = {"Content-Type": "application/octet-stream"}
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        stored = await client.post("/raw?filter=1", content=b"abc", headers=headers)

    assert (stored.status_code, stored.text) == (200, "3")
    assert "412" in app.openapi()["paths"]["/raw"]["post"]["responses"]


class Box(BaseModel, Generic[T]):
    kind: Literal["box"] = "box"
    thing: T


class Bag(Versioned, Generic[T]):
    kind: Literal["bag"] = "bag"
    thing: T

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return f"{params[0].__name__.title()}Bag"  # as pages are named


def references(part: Any) -> Iterator[str]:
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for child in parts:
        yield from references(child)
    if isinstance(part, str) and part.startswith("#/components/"):
        yield part


async def test_whatever_the_document_refers_to_is_in_it(shared_settings: ServiceSettings) -> None:
    packed = Annotated[Box[int] | Bag[int], Field(discriminator="kind")]

    def add_features(app: FastAPI) -> None:
        pages = (packed, Page[Box[int] | ThingRead], Page[Box[str] | ThingRead])
        for name, model in zip(("packed", "pages", "others"), pages, strict=True):
            app.add_api_route(f"/{name}", lambda: None, response_model=model, name=name)

    document = create_app(shared_settings, add_features).openapi()

    for reference in references(document):
        found = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in found, reference
            found = found[name]
    assert "304" in document["paths"]["/packed"]["get"]["responses"]

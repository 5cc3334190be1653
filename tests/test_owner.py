"""The service stays whole whatever its owner does in the places that are the owner's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.databases import Database
from tests.support.pages import check_whole
from tests.support.repository import replace
from tests.support.services import FIRST, Service

SECRET = "JWT_SECRET"
AUTH = '''\
"""Who may call: all but the probes and the login ask for a token."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.logging import request_id

OPEN = ("/health/live", "/health/ready", "/login")


def ask_for_token(app: ASGIApp, secret: str) -> ASGIApp:
    assert secret

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", ()))
        if scope["type"] == "lifespan" or scope["path"] in OPEN or b"authorization" in given:
            await app(scope, receive, send)
        else:
            problem = {"error": "who are you?", "request_id": request_id.get()}
            await JSONResponse(problem, 401)(scope, receive, send)

    return check


async def refuse(request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": "not like that"}, 422)


async def fail(request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": "our fault"}, 500)


@asynccontextmanager
async def client(app: FastAPI) -> AsyncGenerator[None]:
    app.state.secret = app.state.settings.jwt_secret.get_secret_value()
    yield


router = APIRouter(lifespan=client)


@router.post("/login")
async def login(request: Request) -> int:
    return len(request.app.state.secret)


@router.get("/")
async def welcome() -> str:
    return "mine"


@router.get("/broken")
async def list_broken() -> list[str]:
    return []


@router.get("/secret/{number}")
async def read_secret(number: str) -> str:
    return number
'''
MODELS = """\
from sqlalchemy import Identity
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, BigIntegerKey


class Parent(Base):
    __tablename__ = "parents"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(), primary_key=True)
"""
CREATE = """\
op.create_table(
    "parents",
    sa.Column("id", database.BigIntegerKey(), sa.Identity(), nullable=False),
    sa.PrimaryKeyConstraint("id", name=op.f("pk_parents")),
)
"""
REGISTRATION = '''\
"""What the service is for, feature by feature. Yours: an update leaves it alone."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError

from app.features import auth
from app.features.items.routes import router as items


def add_features(app: FastAPI) -> None:
    """Register routers, and whatever else of FastAPI or logging the features need."""
    secret = app.state.settings.jwt_secret.get_secret_value()
    app.add_middleware(auth.ask_for_token, secret=secret)
    app.add_exception_handler(RequestValidationError, auth.refuse)
    app.add_exception_handler(Exception, auth.fail)
    app.include_router(auth.router)
    app.include_router(items)
'''
TESTS = """\
import pytest
from httpx2 import ASGITransport, AsyncClient

from app.factory import create_app
from app.features.registration import add_features
from app.settings import Settings


async def test_a_login_needs_no_token_and_knows_the_secret(client: AsyncClient) -> None:
    del client.headers["Authorization"]

    assert (await client.get("/items")).status_code == 401
    assert (await client.post("/login")).json() == len("hunter2")


async def test_a_refusal_has_the_id_and_the_line_of_its_request(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    del client.headers["Authorization"]

    with caplog.at_level("INFO", "app.access"):
        refused = await client.get("/items", headers={"X-Request-ID": "mine"})

    assert refused.status_code == 401
    assert refused.headers["X-Request-ID"] == refused.json()["request_id"] == "mine"
    assert "GET /items 401" in caplog.text


async def test_a_preflight_needs_no_token(settings: Settings) -> None:
    origins = {"cors_origins": ("https://a.example",)}
    app = create_app(settings.model_copy(update=origins), add_features)
    headers = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "Authorization",
    }

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        preflight = await client.options("/items", headers=headers)
        refused = await client.get("/items", headers={"Origin": "https://a.example"})

    assert preflight.status_code == 200
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://a.example"
"""
CLIENT = """

@pytest.fixture
def client(client: AsyncClient) -> AsyncClient:
    client.headers["Authorization"] = "Bearer token"
    return client
"""


def require_secret(service: Service) -> None:
    with (service.folder / "app/features/settings.py").open("a") as file:
        file.write("\n    jwt_secret: SecretStr\n")
    settings = service.folder / "app/features/settings.py"
    imported = "from pydantic_settings import BaseSettings\n"
    replace(settings, imported, f"from pydantic import SecretStr\n{imported}")
    with (service.folder / ".env.example").open("a") as file:
        file.write(f"#{SECRET}=\n")


@pytest.fixture
def owned(service: Service, tmp_path: Path) -> Service:
    """A service that needs a secret of its owner's."""
    copy = service.copy(tmp_path / "service")
    require_secret(copy)
    return copy


def test_an_owner_may_have_tokens_handlers_paths_and_secrets_of_his_own(owned: Service) -> None:
    features, tests = owned.folder / "app/features", owned.folder / "tests/features"
    (features / "auth.py").write_text(AUTH)
    (features / "registration.py").write_text(REGISTRATION)
    (tests / "test_auth.py").write_text(TESTS)
    (features / "families").mkdir()
    (features / "families/__init__.py").touch()
    (features / "families/models.py").write_text(MODELS)
    lines = ["from app import database", *CREATE.splitlines()]
    owned.add_revision("parents", FIRST, lines, 'op.drop_table("parents")')
    conftest = tests / "conftest.py"
    imported = "from fastapi import FastAPI\n"
    replace(conftest, imported, f"{imported}from httpx2 import AsyncClient\n")
    with conftest.open("a") as file:
        file.write(CLIENT)

    owned.run("uv", "run", "--no-sync", "poe", "fix")
    refused = owned.run("uv", "run", "--no-sync", "poe", "openapi", check=False)
    assert refused.returncode == 1
    assert "jwt_secret: set it in REQUIRED of tests/features/conftest.py." in refused.stdout
    assert "Traceback" not in refused.stdout

    none = "REQUIRED: dict[str, Any] = {}"
    replace(conftest, none, none.replace("{}", '{"jwt_secret": "hunter2"}'))
    owned.run("uv", "run", "--no-sync", "poe", "openapi")
    check_whole(owned)


def test_a_secret_that_is_missing_is_named_by_what_needs_it_and_by_nothing_else(
    owned: Service, database: Database
) -> None:
    def run(*words: str, check: bool = False) -> tuple[int, str]:
        command = ("uv", "run", "--no-sync", *words)
        done = owned.run(*command, variables=database.variables, check=check)
        assert "Traceback" not in done.stdout
        return done.returncode, done.stdout

    run("alembic", "upgrade", "head", check=True)
    for words in (("python", "-c", "import app.main"), ("poe", "doctor"), ("poe", "dev")):
        code, said = run(*words)
        assert (words, code) == (words, 1)
        assert f"  {SECRET}: " in said
        assert "See .env.example and app/features/settings.py.\n" in said

    (owned.folder / ".env").write_text(f"{SECRET}=hunter2\n")
    run("python", "-c", "import app.main", check=True)
    _, said = run("poe", "doctor", check=True)
    assert f"{SECRET}=********** from .env" in said


def test_a_worker_that_takes_the_queries_of_a_feature_loads_no_route(service: Service) -> None:
    loaded = "import app.features.items.queries, sys; print(*sys.modules)"
    modules = service.run(".venv/bin/python", "-c", loaded).stdout.split()

    assert "app.features.items.queries" in modules
    assert "app.features.items.routes" not in modules


def services(folder: Path) -> Iterator[dict[str, object]]:
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    yield from (compose["services"][name] for name in ("migrate", "app"))


def test_compose_passes_what_is_in_env_but_for_the_database(service: Service) -> None:
    for composed in services(service.folder):
        assert composed["env_file"] == [{"path": ".env", "required": False}]
        given = composed["environment"]
        assert isinstance(given, dict)
        # What is there in development, such as a file beside the service, is not in a container.
        assert given["DATABASE_URL"] != "" or given["DATABASE_HOST"] == "db"

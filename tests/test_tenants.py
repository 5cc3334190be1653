"""The page on tenants: no row of one gets to another, whatever forgets to ask for it."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support import watcher
from tests.support.databases import (
    Database,
    PostgreSQLDatabase,
    SQLiteDatabase,
    execute,
)
from tests.support.pages import check, type_page
from tests.support.services import Server, Service
from tests.support.watcher import left_in

# What forgets the tenant, in each way to reach the database.
FORGETFUL = """
from fastapi import HTTPException
from sqlalchemy import bindparam, func, insert, select, update

from app.dependencies import ReaderDep, SessionDep
from app.features.notes.models import Note
from app.features.tenants.sessions import TenantSessionDep
from app.routing import Router

router = Router(prefix="/forgetful")

TENANTS = select(func.count(Note.tenant_id.distinct()), func.min(Note.tenant_id))
STEAL = update(Note.__table__).values(title=Note.title).returning(Note.tenant_id)
CREATE = insert(Note.__table__).returning(Note.id)


@router.get("/session")
async def by_session(session: TenantSessionDep) -> list[int | None]:
    return list((await session.execute(TENANTS)).one())


@router.get("/reader")
async def by_reader(reader: ReaderDep) -> list[int | None]:
    return list((await reader.execute(TENANTS)).one())


@router.get("/plain")
async def by_plain_session(session: SessionDep) -> list[int | None]:
    return list((await session.execute(TENANTS)).one())


@router.post("/steal")
async def steal(session: TenantSessionDep) -> list[int]:
    return list((await session.execute(STEAL)).scalars())


@router.post("/give/{tenant}")
async def give(session: TenantSessionDep, tenant: int) -> int:
    return (await session.execute(CREATE, {"tenant_id": tenant, "title": "given"})).scalar_one()


@router.post("/fail")
async def fail(session: TenantSessionDep) -> None:
    await session.execute(TENANTS)
    raise HTTPException(418)
"""


def call(
    server: Server, tenant: str, method: str, path: str, body: object = None
) -> tuple[int, object]:
    headers = {"Authorization": f"Bearer {tenant}"}
    answer = server.client.request(method, path, headers=headers, json=body)
    return answer.status_code, answer.json() if answer.content else None


def use_by_turns(server: Server) -> None:
    """Be two tenants at once, on few connections, whose requests fail now and then."""
    for tenant in ("one", "two"):
        for title in ("a", "b"):
            assert call(server, tenant, "POST", "/notes", {"title": title})[0] in (201, 409)

    def work(number: int) -> None:
        tenant, own = (("one", 1), ("two", 2))[number % 2]
        assert call(server, tenant, "GET", "/forgetful/session") == (200, [1, own])
        if number % 3 == 0:
            assert call(server, tenant, "POST", "/forgetful/fail")[0] == 418
        if number % 5 == 0:
            assert call(server, tenant, "POST", "/notes", {"title": "a"})[0] == 409
        status, page = call(server, tenant, "GET", "/notes")
        assert status == 200
        assert isinstance(page, dict)
        assert len(page["items"]) == 2

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(60)))


def be_two_tenants(service: Service, database: Database) -> None:
    few = {"DATABASE_POOL_SIZE": "2", "DATABASE_MAX_OVERFLOW": "0"}
    with watcher.serve_watched(service, left_in(database), **database.variables, **few) as watched:
        server = watched.server
        for key in ("", "three", "one two", sha256(b"one").hexdigest(), "' OR 1=1 --"):
            assert call(server, key or "x", "GET", "/notes")[0] == 401
        assert server.client.get("/notes").status_code == 401
        if isinstance(database, SQLiteDatabase):  # where nothing but the filter holds
            assert call(server, "one", "POST", "/notes", {"title": "a"})[0] == 201
            assert call(server, "two", "GET", "/notes")[1] == {"items": [], "next_cursor": None}
            assert call(server, "two", "GET", "/forgetful/session")[1] == [1, 1]
            return
        use_by_turns(server)  # as a superuser
        assert call(server, "one", "GET", "/forgetful/reader") == (200, [2, 1])
        assert call(server, "one", "POST", "/forgetful/give/2")[0] == 503  # permission denied
        assert call(server, "two", "POST", "/forgetful/steal") == (200, [2, 2])

    assert isinstance(database, PostgreSQLDatabase)
    for statement in (
        "CREATE ROLE app_service LOGIN",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app_service",
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO app_service",
        "GRANT app_tenant TO app_service",
    ):
        execute(database, statement)
    variables = {"DATABASE_URL": replaced_user(database.variables["DATABASE_URL"])}
    for owner in ("postgres", "app_service"):
        execute(database, f"ALTER TABLE notes OWNER TO {owner}")
        with service.serve(**variables, **few) as server:
            nothing = (200, [0, None])
            for path in ("/forgetful/reader", "/forgetful/plain"):
                assert call(server, "one", "GET", path) == nothing
            use_by_turns(server)
            for path in ("/forgetful/reader", "/forgetful/plain"):
                for _ in range(4):  # on connections that were a tenant's
                    assert call(server, "one", "GET", path) == nothing
            assert "Traceback" not in server.log()
    dump = [str(database.server.bin_path / "pg_dump"), "--data-only", variables["DATABASE_URL"]]
    refused = subprocess.run(dump, capture_output=True, text=True, check=False)
    assert "row-level security" in refused.stderr


def replaced_user(url: str) -> str:
    before, _, after = url.partition("postgres:@")
    assert after, url
    return f"{before}app_service:@{after}"


@pytest.mark.long
def test_no_row_of_a_tenant_gets_to_another(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    type_page("tenants", copy, migrated.variables)
    check(copy)
    copy.extend(routes=FORGETFUL)
    for name in ("one", "two"):
        digest = sha256(name.encode()).hexdigest()
        execute(migrated, f"INSERT INTO tenants (name, key_digest) VALUES ('{name}', '{digest}')")

    be_two_tenants(copy, migrated)

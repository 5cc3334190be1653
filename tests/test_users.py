"""The pages on users and on repeated requests: what strangers, users and their races can't do."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest

from tests.support import watcher
from tests.support.databases import (
    Database,
    PostgreSQLDatabase,
    SQLiteDatabase,
    execute,
    open_database,
)
from tests.support.pages import block_text, blocks, check, edit, page_text, type_page
from tests.support.repository import replace
from tests.support.services import Service
from tests.support.watcher import left_in

PASSWORD = "correct horse battery"
CONFLICT = "test_a_second_item_of_the_same_name_is_a_conflict"
# They pass with the page on users, and, on SQLite, with all of the pages.
WITHOUT_THE_EXAMPLES_TESTS = {"PYTEST_ADDOPTS": "--ignore=tests/features/test_items.py"}

# Run in the service, as its own tests are: what has to happen at a certain moment.
RACES = '''
import asyncio
import threading
from typing import Any

import pytest
from argon2.exceptions import VerifyMismatchError
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import delete, select, update

from app.dependencies import SessionDep
from app.features.users import passwords
from app.features.users.caller import FOR_STRANGERS, LockedCallerDep, OptionalCallerDep
from app.features.users.models import Token, User
from app.routing import Router
from tests.features.conftest import PASSWORD, log_in

router = Router(prefix="/raced")


@router.get("/optional", openapi_extra=FOR_STRANGERS)
async def read_optional(caller: OptionalCallerDep) -> str:
    return caller.name if caller else "nobody"


@router.post("/locked")
async def grow(caller: LockedCallerDep, session: SessionDep) -> None:
    change = update(User.__table__).where(User.id == caller.id)
    await session.execute(change.values(name=caller.name + "x"))


class Held:
    """A hasher that goes on when it may, and knows how many wait for it."""

    def __init__(self) -> None:
        self.gate, self.lock, self.running = threading.Event(), threading.Lock(), 0

    def hash(self, password: str) -> str:
        with self.lock:
            self.running += 1
        assert self.gate.wait(30)
        return "hash"

    def verify(self, password_hash: str, password: str) -> bool:
        self.hash(password)
        raise VerifyMismatchError


def post(client: AsyncClient, name: str, password: str = "wrong") -> Any:
    return client.post("/tokens", json={"name": name, "password": password})


async def test_few_are_hashed_at_once_and_the_loop_goes_on(
    app: FastAPI, client: AsyncClient
) -> None:
    app.state.passwords.hasher = held = Held()
    threads = app.state.passwords._threads
    count = passwords.AT_ONCE + passwords.MAX_WAITING
    names = ["anna", *(f"user{number}" for number in range(count - 1))]
    first = [asyncio.create_task(post(client, name)) for name in names]
    async with asyncio.timeout(30):
        while threads.statistics().tasks_waiting < passwords.MAX_WAITING:
            await asyncio.sleep(0.01)

        user = {"name": "carl", "password": PASSWORD}
        more = [await post(client, name) for name in ("anna", "nobody")]
        more.append(await client.post("/users", json=user))
        told = [(answer.status_code, answer.headers["Retry-After"]) for answer in more]
        assert told == [(503, "1")] * 3
        assert (await client.get("/users/me")).json()["name"] == "anna"
        while held.running < passwords.AT_ONCE:
            await asyncio.sleep(0.01)
        assert held.running == passwords.AT_ONCE
        held.gate.set()
        assert {(await answer).status_code for answer in first} == {401}
    assert held.running == count  # an unknown name costs a hash, too


async def test_more_than_the_bound_are_refused_however_many_come_at_once(
    app: FastAPI, client: AsyncClient
) -> None:
    app.state.passwords.hasher = held = Held()
    count = passwords.AT_ONCE + passwords.MAX_WAITING
    users = [{"name": f"user{number}", "password": PASSWORD} for number in range(3 * count)]
    sent = [asyncio.create_task(client.post("/users", json=user)) for user in users]
    async with asyncio.timeout(30):
        while sum(task.done() for task in sent) < 2 * count:
            await asyncio.sleep(0.01)
        assert {task.result().status_code for task in sent if task.done()} == {503}
        held.gate.set()
        answers = await asyncio.gather(*sent)
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [201] * count + [503] * 2 * count
    assert held.running == count


async def test_right_passwords_are_no_failures_however_many_come_at_once(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "MAX_FAILURES", 2)
    assert (await post(client, "anna")).status_code == 401
    count = passwords.AT_ONCE + passwords.MAX_WAITING
    answers = await asyncio.gather(*(post(client, "anna", PASSWORD) for _ in range(count)))
    assert {answer.status_code for answer in answers} == {201}
    # the wrong one before them is forgotten, and so are their turns
    assert [(await post(client, "anna")).status_code for _ in range(3)] == [401, 401, 429]


async def test_no_more_are_tried_at_once_than_one_after_the_other(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "MAX_FAILURES", 4)
    for name in ("anna", "nobody"):
        answers = await asyncio.gather(*(post(client, name) for _ in range(20)))
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses) == [401] * 4 + [429] * 16
    assert (await post(client, "anna", PASSWORD)).status_code == 429
    monkeypatch.setattr(passwords.time, "monotonic", lambda: 1e9)
    assert (await post(client, "anna", PASSWORD)).status_code == 201


async def test_a_login_with_the_old_password_leaves_no_token_behind_the_new_one(
    app: FastAPI, client: AsyncClient
) -> None:
    verify, change = app.state.passwords.verify, {"password": PASSWORD, "new_password": "b" * 12}

    async def verify_and_wait(*given: Any) -> bool:
        app.state.passwords.verify = verify
        right: bool = await verify(*given)
        assert (await client.put("/users/me/password", json=change)).status_code == 200
        return right

    app.state.passwords.verify = verify_and_wait
    assert (await post(client, "anna", PASSWORD)).status_code == 401
    async with app.state.sessionmaker() as session:
        assert len((await session.scalars(select(Token.user_id))).all()) == 1  # of the change


async def test_of_two_changes_of_a_password_one_is_made(client: AsyncClient) -> None:
    changes = [{"password": PASSWORD, "new_password": letter * 12} for letter in "abcd"]
    answers = await asyncio.gather(
        *(client.put("/users/me/password", json=change) for change in changes)
    )
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]
    [made] = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    for number, change in enumerate(changes):
        login = await post(client, "anna", change["new_password"])
        assert login.status_code == (201 if number == made else 401)


async def test_a_token_that_ends_while_its_caller_is_waited_for_is_refused(
    app: FastAPI, client: AsyncClient
) -> None:
    app.include_router(router)
    async with app.state.sessionmaker() as session:  # as that of a new password
        await session.execute(update(User.__table__).values(name=User.name))
        waiting = asyncio.create_task(client.post("/raced/locked"))
        await asyncio.sleep(0.5)
        await session.execute(delete(Token.__table__))
        await session.commit()
    assert (await waiting).status_code == 401
    async with app.state.sessionmaker() as session:
        assert await session.scalar(select(User.name)) == "anna"


async def test_requests_of_one_caller_take_turns(app: FastAPI, client: AsyncClient) -> None:
    app.include_router(router)
    async with log_in(app, "bert") as other:
        sent = [user.post("/raced/locked") for user in (client, other) for _ in range(6)]
        assert {answer.status_code for answer in await asyncio.gather(*sent)} == {200}
        assert (await other.get("/users/me")).json()["name"] == "bertxxxxxx"
    assert (await client.get("/users/me")).json()["name"] == "annaxxxxxx"


async def test_a_caller_may_be_left_out_but_not_be_wrong(
    app: FastAPI, client: AsyncClient
) -> None:
    app.include_router(router)
    assert (await client.get("/raced/optional")).json() == "anna"
    documented = app.openapi()["paths"]["/raced/optional"]["get"]
    assert {} in documented["security"]
    assert {"token": []} in documented["security"]
    assert "401" in documented["responses"]
    for header, status in (("", 200), ("Basic YTpi", 401), ("Bearer", 401), ("Bearer x", 401)):
        answer = await client.get("/raced/optional", headers={"Authorization": header})
        assert (header, answer.status_code) == (header, status)
'''


REPEATED = """
import asyncio
import datetime
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.features.idempotency import once
from app.features.payments import queries
from tests.features.conftest import log_in
from tests.features.test_payments import KEY, count, pay


async def test_of_many_at_once_one_is_done(app: FastAPI, client: AsyncClient) -> None:
    async with log_in(app, "bert") as other:
        sent = [pay(user) for user in (client, other) for _ in range(8)]
        answers = await asyncio.gather(*sent)
        assert {status for status, _ in answers} == {201}
        assert len(set(answers[:8])) == len(set(answers[8:])) == 1
        assert answers[0] != answers[8]
        assert (await count(client), await count(other)) == (1, 1)


async def test_of_two_requests_with_one_key_the_other_is_refused(client: AsyncClient) -> None:
    answers = await asyncio.gather(*(pay(client, cents) for cents in (5, 6) * 4))
    assert sorted(status for status, _ in answers) == [201] * 4 + [422] * 4
    assert await count(client) == 1


@pytest.mark.parametrize("place", ["work", "answer", "commit"])
async def test_what_fails_keeps_nothing(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async def fail(*given: Any, **more: Any) -> None:
        raise TimeoutError

    target: Any
    target, name = {
        "work": (queries, "create_payment"),
        "answer": (once.Once, "answer"),
        "commit": (AsyncSession, "commit"),
    }[place]
    with monkeypatch.context() as broken:
        broken.setattr(target, name, fail)
        assert (await pay(client))[0] == 503
    assert await count(client) == 0
    assert (await pay(client, cents=6))[0] == 201
    assert await count(client) == 1


async def test_a_key_is_kept_for_its_time(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pay(client)
    monkeypatch.setattr(once, "KEPT", datetime.timedelta(-1))
    assert (await pay(client, cents=6))[0] == 201
    assert await count(client) == 2


async def test_a_key_is_any_text_and_not_too_long(client: AsyncClient) -> None:
    for key, status in (("", 422), ("a" * 256, 422), ("a" * 255, 201), ("\\'%", 201)):
        headers = {"Idempotency-Key": key}
        answer = await client.post("/payments", json={"cents": 1}, headers=headers)
        assert (key, answer.status_code) == (key, status)
    headers = KEY | {"Authorization": ""}
    assert (await client.post("/payments", json={"cents": 1}, headers=headers)).status_code == 401
"""


def bearer(token: str) -> dict[bytes, bytes]:
    return {b"Authorization": b"Bearer " + token.encode("latin-1")}


def stored(database: Database) -> str:
    """Return all that is stored of users."""
    statement = "SELECT * FROM {} ORDER BY 1"
    if isinstance(database, PostgreSQLDatabase):
        return "".join(database.query(statement.format(name)) for name in ("users", "tokens"))
    assert isinstance(database, SQLiteDatabase)
    with closing(sqlite3.connect(database.path)) as connection:
        names = ("users", "tokens")
        return str([connection.execute(statement.format(name)).fetchall() for name in names])


def be_strangers(service: Service, database: Database) -> None:
    variables = {**database.variables, "DATABASE_ECHO": "true"}
    with watcher.serve_watched(service, left_in(database), **variables) as watched:
        http = watched.server.client

        def register(name: str, password: str = PASSWORD) -> httpx2.Response:
            return http.post("/users", json={"name": name, "password": password})

        def log_in(name: str, password: str = PASSWORD) -> httpx2.Response:
            return http.post("/tokens", json={"name": name, "password": password})

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(register, ["anna"] * 6))
        [anna] = [answer.json() for answer in answers if answer.status_code == 201]
        assert [answer.status_code for answer in answers].count(409) == 5
        for name in ("", "Anna", "ann\u0430", "anna\n", "a b", "a" * 51, "%", "\x00", "\ud800"):
            assert (
                name,
                http.post(
                    "/users",
                    content=f'{{"name": {json_text(name)}, "password": "{PASSWORD}"}}',
                    headers={"Content-Type": "application/json"},
                ).status_code,
            ) == (name, 422)
        for password in ("", "short", "a" * 201, "\ud800" * 12, "\x00" * 12):
            assert (
                http.post(
                    "/users",
                    content=f'{{"name": "carl", "password": {json_text(password)}}}',
                    headers={"Content-Type": "application/json"},
                ).status_code
                == 422
            )
        # the same letters by another keyboard, and characters that no name could have
        assert register("carl", "Cafe\u0301 \t \U0001f6e0 \u202e \ufb01").status_code == 201
        assert log_in("carl", "Caf\u00e9 \t \U0001f6e0 \u202e fi").status_code == 201

        tokens = [log_in("anna").json()["token"] for _ in range(2)]
        for token in tokens:
            assert http.get("/users/me", headers=bearer(token)).json() == anna
        assert http.get("/items", headers=bearer(tokens[0])).status_code == 200
        digest = sha256(tokens[0].encode()).hexdigest()
        forged = ["a", digest, tokens[0][:-1], tokens[0] + "a", tokens[0] + " " + tokens[1]]
        forged += ["%", "' OR 1=1 --", "a" * 5_000, "\xff", tokens[0].swapcase(), "null"]
        for token in forged:
            refused = http.get("/items", headers=bearer(token))
            assert (token, refused.status_code) == (token, 401)
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        for header in (f"Token {tokens[0]}", tokens[0], f"Basic {tokens[0]}"):
            assert http.get("/items", headers={"Authorization": header}).status_code == 401
        assert http.get(f"/items?token={tokens[0]}").status_code == 422

        assert http.delete("/tokens/current", headers=bearer(tokens[0])).status_code == 204
        assert http.delete("/tokens/current", headers=bearer(tokens[0])).status_code == 401
        assert http.get("/users/me", headers=bearer(tokens[1])).status_code == 200
        text = stored(database) + watched.server.log()
        for secret in (*tokens, PASSWORD):
            assert secret not in text
        assert digest not in stored(database)
        assert "$argon2id$" not in watched.server.log()

        execute(database, "UPDATE tokens SET expires_at = '2026-01-01 00:00:00.000000'")
        assert http.get("/users/me", headers=bearer(tokens[1])).status_code == 401
        rows = stored(database).count("2026-01-01")
        token = log_in("anna").json()["token"]
        assert stored(database).count("2026-01-01") == rows - 1  # carl's is left
        execute(database, "DELETE FROM users WHERE name = 'anna'")
        if isinstance(database, PostgreSQLDatabase):
            assert http.get("/users/me", headers=bearer(token)).status_code == 401

        document = http.get("/openapi.json").json()
        assert document["components"]["securitySchemes"] == {
            "token": {"type": "http", "scheme": "bearer"}
        }
        assert {"401", "429"} <= document["paths"]["/tokens"]["post"]["responses"].keys()
        assert document["paths"]["/items"]["get"]["security"] == [{"token": []}]
        too_many = document["components"]["responses"]["Problem429"]
        assert "Retry-After" in too_many["headers"]


def find_by_slug(service: Service) -> None:
    """Find a note to change as the page finds one by its slug, which here is its text."""
    page = blocks(page_text("how-to/rows-of-a-user.md"))
    code = [block.text for block in page if block.language == "python" and not block.title]
    query, dependency = (text.replace("slug", "text").replace("Slug", "Text") for text in code)
    notes = service.folder / "app/features/notes"
    with (notes / "queries.py").open("a") as queries:
        queries.write(f"\n\n{query}")
    text = (notes / "routes.py").read_text()
    before, after = text.index("async def own_note("), text.index("\n\nOwnNote = ")
    text = text[:before] + dependency + text[after:]
    text = text.replace("import NoteCreate, NoteRead,", "import NoteCreate, NoteRead, NoteText,")
    for method in ("patch(", "delete(\n    "):
        assert f'@router.{method}"/{{note_id}}"' in text
        text = text.replace(f'@router.{method}"/{{note_id}}"', f'@router.{method}"/{{text}}"')
    (notes / "routes.py").write_text(text)


def take_the_form_of_clients(service: Service, database: Database) -> None:
    """Type the page that rewrites the users of two others."""
    schemas = "app/features/schemas.py"
    (service.folder / schemas).write_text(block_text(page_text("how-to/shape-the-api.md"), schemas))
    type_page("shape-users", service, database.variables | WITHOUT_THE_EXAMPLES_TESTS)
    check(service)
    with service.serve(**database.variables) as server:
        http = server.client
        user = {"username": "emil", "email": "emil@example.com", "password": PASSWORD}
        token = http.post("/api/users", json={"user": user}).json()["user"]["token"]
        put = {"user": {"username": "fred", "bio": "Spanners."}}
        changed = http.put("/api/user", json=put, headers=bearer(token)).json()["user"]
        assert changed == {"email": user["email"], "token": token} | put["user"]
        [profile] = http.get("/api/profiles/fred").json().values()
        assert profile == put["user"]
    replace(service.folder / "app/features/users/caller.py", '"bearer"', '"token"')
    service.run(".venv/bin/pytest", "-q", "tests/features/test_users.py")


def be_one_of_many_pages(service: Service, database: Database) -> None:
    """Type more pages into a service with users: what each of them registers and tests goes on."""
    tests = service.folder / "tests/features"
    registration = service.folder / "app/features/registration.py"

    def test_features(*more: str) -> str:
        command = (".venv/bin/pytest", "-q", "tests/features", *more)
        return service.run(*command, check=False).stdout

    variables = database.variables | WITHOUT_THE_EXAMPLES_TESTS
    for page in ("rows-of-a-user", "shape-the-api"):
        type_page(page, service, variables)
    if service.database == "postgresql":  # what is left are registrations, the same on both
        service.run("uv", "run", "--no-sync", "poe", "fix")
        return check(service)
    type_page("filter-and-upsert", service, variables)
    found = test_features("-k", "open_by_mistake")
    assert "if strangers may call it, add it to OPEN" in found
    for line in ("include_router(articles", 'include_router(posts, prefix="/api"'):
        replace(registration, line, f"{line}, dependencies=[Depends(get_caller)]")
    type_page("error-format", service, database.variables)
    # The example's own test of a conflict fails: the page shows what becomes of it.
    found = test_features("--deselect", f"tests/features/test_items.py::{CONFLICT}")
    assert " passed" in found, found
    assert " failed" not in found, found

    find_by_slug(service)

    shown = blocks(page_text("how-to/error-format.md"))
    texts = [block.text for block in shown if block.language == "diff"]
    for file, text in zip((tests.parents[1] / "app/features/errors.py", registration), texts):
        edit(file, text)
    replace(registration, "\n\nfrom app", "\nfrom sqlalchemy.exc import IntegrityError\n\nfrom app")
    check(service)
    with service.serve(**database.variables) as server:
        http = server.client
        login = {"email": "Emil@example.com", "password": PASSWORD}
        assert http.post("/users", json=login | {"name": "emil"}).status_code == 201
        taken = http.post("/users", json=login | {"name": "fred"})
        assert taken.status_code == 422
        assert taken.json() == {"errors": {"email": ["has already been taken"]}}
        short = http.post("/users", json={"email": "a", "password": "short"})
        assert short.json()["errors"]["name"] == ["is missing"]
        assert short.json()["errors"]["password"] == ["is too short"]
        headers = bearer(http.post("/tokens", json=login).json()["token"])
        other = {"email": "gerd@example.com", "password": PASSWORD}
        assert http.post("/users", json=other | {"name": "gerd"}).status_code == 201
        others = bearer(http.post("/tokens", json=other).json()["token"])
        assert http.post("/notes", json={"text": "a"}, headers=headers).status_code == 201
        for path, user, status in (("a", others, 403), ("b", headers, 404), ("a", headers, 200)):
            changed = http.patch(f"/notes/{path}", json={"text": "c"}, headers=user)
            assert changed.status_code == status
        nobody = http.put("/people/98/follows/99", headers=headers)
        assert nobody.status_code == 409
        wrong = http.post("/api/posts", json={"post": {}, "more": 1}, headers=headers)
        assert (wrong.status_code, [*wrong.json()["errors"]]) == (422, ["more"])
        document = http.get("/openapi.json").json()
        assert {"409", "422"} <= document["paths"]["/users"]["post"]["responses"].keys()
        schemas = document["components"]["schemas"]
        assert schemas["Body_create_post"]["additionalProperties"] is False
        assert {"PostAnswer", "PostList"} <= schemas.keys()


def json_text(text: str) -> str:
    """Return a JSON string of any text, half a character too."""
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text) + '"'


def take_another_scheme(service: Service, database: Database) -> None:
    replace(service.folder / "app/features/users/caller.py", '"bearer"', '"token"')
    with service.serve(**database.variables) as server:
        http = server.client
        login = {"email": "dora@example.com", "password": PASSWORD}
        assert http.post("/users", json=login | {"name": "dora"}).status_code == 201
        token = http.post("/tokens", json=login).json()["token"]
        for header, status in ((f"Token {token}", 200), (f"Bearer {token}", 401)):
            assert http.get("/items", headers={"Authorization": header}).status_code == status
        assert http.get("/items").headers["WWW-Authenticate"] == "Token"
        [scheme] = http.get("/openapi.json").json()["components"]["securitySchemes"].values()
        assert scheme == {"type": "http", "scheme": "token"}


@pytest.mark.long
def test_a_token_is_its_users_alone_and_a_key_stands_for_one_request(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    type_page("users", copy, migrated.variables)
    copy.run(".venv/bin/ruff", "check")
    with_more = copy.copy(tmp_path / "with-more")
    type_page("idempotency", copy, migrated.variables)
    check(copy)

    tests = {"test_races.py": RACES, "test_repeated.py": REPEATED}
    for name, text in tests.items():
        (copy.folder / "tests/features" / name).write_text(text)
    names = [f"tests/features/{name}" for name in tests]
    copy.run(".venv/bin/pytest", "-q", *names)
    for name in names:
        (copy.folder / name).unlink()

    be_strangers(copy, migrated)

    with open_another(with_more, tmp_path / "profiles") as database:
        type_page("profiles", with_more, database.variables | WITHOUT_THE_EXAMPLES_TESTS)
        # The form of what clients see, and of their header, is the same on both.
        if with_more.database == "postgresql":
            with open_another(with_more, tmp_path / "form") as other:
                take_the_form_of_clients(with_more.copy(tmp_path / "with-form"), other)
        be_one_of_many_pages(with_more, database)
        if with_more.database == "sqlite":
            take_another_scheme(with_more, database)


@contextmanager
def open_another(service: Service, folder: Path) -> Iterator[Database]:
    """Open a database of the service's own, at its newest migration."""
    folder.mkdir()
    with open_database(service.database, folder) as database:
        service.migrate(database)
        yield database

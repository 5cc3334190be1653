"""The pages on users and on repeated requests: what strangers, users and their races can't do."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
)
from tests.support.pages import check, type_page
from tests.support.repository import replace
from tests.support.services import Service
from tests.support.watcher import left_in

PASSWORD = "correct horse battery"

# Run in the service, as its own tests are: what has to happen at a certain moment.
RACES = '''
import asyncio
import threading
from typing import Any

import pytest
from argon2.exceptions import VerifyMismatchError
from fastapi import FastAPI
from httpx2 import AsyncClient
from sqlalchemy import select, update

from app.dependencies import SessionDep
from app.features.users import passwords
from app.features.users.caller import LockedCallerDep, OptionalCallerDep
from app.features.users.models import Token, User
from app.routing import Router
from tests.features.conftest import PASSWORD, log_in

router = Router(prefix="/raced")


@router.get("/optional")
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
        assert (await client.put("/users/me/password", json=change)).status_code == 204
        return right

    app.state.passwords.verify = verify_and_wait
    assert (await post(client, "anna", PASSWORD)).status_code == 401
    async with app.state.sessionmaker() as session:
        assert (await session.scalars(select(Token.user_id))).all() == []


async def test_of_two_changes_of_a_password_one_is_made(client: AsyncClient) -> None:
    changes = [{"password": PASSWORD, "new_password": letter * 12} for letter in "abcd"]
    answers = await asyncio.gather(
        *(client.put("/users/me/password", json=change) for change in changes)
    )
    assert sorted(answer.status_code for answer in answers) == [204, 401, 401, 401]
    [made] = [number for number, answer in enumerate(answers) if answer.status_code == 204]
    for number, change in enumerate(changes):
        login = await post(client, "anna", change["new_password"])
        assert login.status_code == (201 if number == made else 401)


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
    for header, status in (("", 200), ("Basic YTpi", 200), ("Bearer", 200), ("Bearer x", 401)):
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
            statuses = [answer.status_code for answer in pool.map(register, ["anna"] * 6)]
        assert sorted(statuses) == [201] + [409] * 5
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
            assert http.get("/users/me", headers=bearer(token)).json() == {"id": 1, "name": "anna"}
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


def json_text(text: str) -> str:
    """Return a JSON string of any text, half a character too."""
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text) + '"'


def take_another_scheme(service: Service, database: Database) -> None:
    replace(service.folder / "app/features/users/caller.py", '"bearer"', '"token"')
    with service.serve(**database.variables) as server:
        http = server.client
        login = {"name": "dora", "password": PASSWORD}
        assert http.post("/users", json=login).status_code == 201
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
    type_page("idempotency", copy, migrated.variables)
    check(copy)

    tests = {"test_races.py": RACES, "test_repeated.py": REPEATED}
    for name, text in tests.items():
        (copy.folder / "tests/features" / name).write_text(text)
    names = [f"tests/features/{name}" for name in tests]
    copy.run(".venv/bin/pytest", "-q", *names)

    be_strangers(copy, migrated)
    if copy.database == "sqlite":  # which makes no difference to a header
        take_another_scheme(copy, migrated)

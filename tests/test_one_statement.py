"""The page on writes of one statement: what is lost with the transaction, and what is not."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.benchmark import measure
from tests.support import watcher
from tests.support.answers import is_outcome_unknown, unavailable
from tests.support.databases import Database, SQLiteDatabase, execute
from tests.support.pages import follow
from tests.support.processes import wait_for
from tests.support.proxied import ProxiedDatabase
from tests.support.proxy import Trap
from tests.support.services import Service
from tests.support.watcher import Watcher, left_in

MORE = """
import asyncio
from typing import Any

from fastapi import HTTPException
from sqlalchemy import BigInteger, column, func, insert, select, table

from app.dependencies import ReaderDep, SessionDep
from app.features.no_rollback import NoRollbackDep
from app.features.votes.models import Vote
from app.features.votes.routes import CREATE, VoteCreate, VoteRead
from app.fields import Id
from app.routing import Router

router = Router()
VOTES = select(func.count()).select_from(Vote)
LINKS = table("links", column("item_id", BigInteger))
LINK = insert(LINKS).returning(LINKS.c.item_id)


@router.get("/votes/count")
async def count_votes(reader: ReaderDep) -> int:
    return (await reader.execute(VOTES)).scalar_one()


@router.post("/votes/refused")
async def refuse(data: VoteCreate, db: NoRollbackDep) -> None:
    await db.execute(CREATE, data.model_dump())
    raise HTTPException(422)


@router.post("/votes/unanswerable", response_model=VoteRead)
async def fail(data: VoteCreate, db: NoRollbackDep) -> Any:
    await db.execute(CREATE, data.model_dump())
    return {"id": "none"}


@router.post("/votes/slow")
async def hold_the_transaction(data: VoteCreate, session: SessionDep) -> None:
    await session.execute(CREATE, data.model_dump())
    await asyncio.sleep(3)


@router.post("/links/{item_id}")
async def link(item_id: Id, db: NoRollbackDep) -> int:
    return (await db.execute(LINK, {"item_id": item_id})).scalar_one()
"""
DEFERRED = "CREATE TABLE links (item_id bigint REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED)"


def check_what_stays(watched: Watcher) -> None:
    """Nothing that fails later undoes a vote, and a vote that fails is none."""
    http = watched.server.client
    for path, status in (("", 201), ("/refused", 422), ("/unanswerable", 500)):
        answer = http.post(f"/votes{path}", json={"voter": f"of {path}"})
        assert answer.status_code == status
        if status == 500:
            watched.excuse(answer)
    assert http.get("/votes/count").json() == 3

    again = http.post("/votes", json={"voter": "of "})
    assert again.status_code == 409
    assert again.json()["errors"][0]["code"] == "unique"
    assert http.post("/links/99").status_code == 409
    assert http.post("/votes", json={"voter": "x\0"}).status_code == 422
    assert http.get("/votes/count").json() == 3


def test_a_write_without_a_transaction_keeps_what_it_can(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    follow("one-statement", copy, migrated.variables)
    copy.extend(routes=MORE)
    execute(migrated, DEFERRED)

    with watcher.serve_watched(copy, left_in(migrated), **migrated.variables) as watched:
        http = watched.server.client
        check_what_stays(watched)

        def vote(number: int, path: str = "") -> int:
            answer = http.post(f"/votes{path}", json={"voter": str(number)})
            return answer.status_code

        with ThreadPoolExecutor(21) as pool:
            slow = pool.submit(vote, 0, "/slow")
            wait_for(lambda: http.get("/health/watched").json()["in use"] == 1)
            time.sleep(0.1)  # for its statement
            votes = [pool.submit(vote, number) for number in range(1, 21)]
            if service.database == "sqlite":  # they leave the pool to readers
                time.sleep(0.3)
                assert http.get("/health/watched").json()["in use"] == 1
                assert not any(vote.done() for vote in votes)
            assert slow.result() == 200
            assert {vote.result() for vote in votes} == {201}
        assert http.get("/votes/count").json() == 24

        body = b'{"voter": "of one who leaves"}'
        head = b"POST /votes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        port = http.base_url.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: http.get("/health/watched").json()["in use"] == 0)

        migrated.take_away()
        answer = http.post("/votes", json={"voter": "Bert"})
        assert unavailable(answer)
        assert not is_outcome_unknown(answer)
        migrated.give_back()


@pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
def test_a_write_without_a_transaction_is_one_round_trip(
    service: Service, proxied: ProxiedDatabase, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    measure.extend(copy)
    with watcher.serve_watched(copy, proxied.left, DATABASE_URL=proxied.url) as watched:
        http = watched.server.client
        assert measure.used_by(http, lambda: proxied.proxy.round_trips)["once"] == 1

        # One that gets no answer may be stored, which a POST is told.
        before = proxied.number("SELECT count(*) FROM items")
        proxied.proxy.trap = Trap(to_server=False, messages=0, action="cut")
        answer = http.post("/once", json={"name": "Spanner"})
        assert unavailable(answer)
        assert is_outcome_unknown(answer)
        assert proxied.number("SELECT count(*) FROM items") == before + 1


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_a_write_without_a_transaction_is_four_calls_to_the_drivers_thread(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    assert isinstance(migrated, SQLiteDatabase)
    copy = service.copy(tmp_path / "service")
    measure.extend(copy)

    hops = measure.thread_hops(copy, migrated, ("service",))["service"]

    assert (hops["post"], hops["once"]) == (6, 4)

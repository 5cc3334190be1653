"""How often a request waits for the database: a count that no change may let grow unnoticed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tests.benchmark import measure
from tests.support.databases import Database, PostgreSQLDatabase, SQLiteDatabase
from tests.support.proxy import Proxy, open_proxy
from tests.support.services import Service

ITEM = {"name": "Spanner"}


@contextmanager
def serve_through_a_proxy(
    service: Service, database: Database
) -> Iterator[tuple[httpx2.Client, Proxy]]:
    assert isinstance(database, PostgreSQLDatabase)
    with (
        open_proxy(database.socket) as proxy,
        measure.serve_measured(service, "service", database, proxy) as server,
    ):
        yield server.client, proxy


@pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
def test_a_read_is_one_round_trip_and_a_write_three(service: Service, migrated: Database) -> None:
    with serve_through_a_proxy(service, migrated) as (http, proxy):
        trips = measure.used_by(http, lambda: proxy.round_trips)

    assert trips == {
        "get": 1,
        "list": 1,
        "post": 3,
        "get after 2 s": 2,  # an idle connection is pinged
        "patch": 3,
        "delete": 3,
    }


@pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
def test_a_list_is_one_round_trip_whatever_its_length(service: Service, migrated: Database) -> None:
    with serve_through_a_proxy(service, migrated) as (http, proxy):
        for length in (0, 1, 100):
            while len(http.get("/items").json()["items"]) < length:
                measure.post(http)
            before = proxy.round_trips
            http.get("/items").raise_for_status()
            assert proxy.round_trips - before == 1


@pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
def test_connections_in_use_are_not_pinged(service: Service, migrated: Database) -> None:
    with serve_through_a_proxy(service, migrated) as (http, proxy):
        path, end = measure.post(http), time.monotonic() + 3
        http.get(path)
        requests, before = 0, proxy.round_trips
        while time.monotonic() < end:
            http.get(path).raise_for_status()
            requests += 1

    assert requests <= proxy.round_trips - before <= requests + 1  # if the machine paused


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_a_read_is_three_calls_to_the_drivers_thread(service: Service, migrated: Database) -> None:
    assert isinstance(migrated, SQLiteDatabase)

    hops = measure.thread_hops(service, migrated, ("service",))["service"]

    assert hops == {"get": 3, "list": 3, "post": 6, "get after 2 s": 3, "patch": 6, "delete": 6}

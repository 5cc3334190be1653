"""Both services as real processes on real databases, driven over HTTP and stopped by signals."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support import watcher
from tests.support.answers import unavailable
from tests.support.databases import Database, open_database
from tests.support.random_client import SEED
from tests.support.services import Server, Service
from tests.support.watcher import left_in

UVICORN = (
    "uv",
    "run",
    "--no-sync",
    "python",
    "-m",
    "app.server",
    "--timeout-graceful-shutdown",
    "10",
)


ENDLESS = """
import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

router = APIRouter()


async def lines(first: bool) -> AsyncIterator[str]:
    while True:
        if first:
            yield "line"
        await asyncio.sleep(0.01)


@router.get("/endless")
async def endless(first: bool) -> StreamingResponse:
    return StreamingResponse(lines(first))
"""


UPLOAD = """
from typing import Annotated

from fastapi import APIRouter, Form, UploadFile

router = APIRouter()


@router.post("/form")
async def form(name: Annotated[str, Form()] = "") -> str:
    return name


@router.post("/upload")
async def upload(file: UploadFile) -> int:
    return len(await file.read())
"""


@pytest.fixture(scope="module")
def running(
    service: Service,
    files_of_migrated: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server for requests that store nothing."""
    name, folder = service.database, tmp_path_factory.mktemp("running")
    with (
        open_database(name, folder, files_of_migrated(name)) as database,
        service.serve(**database.variables) as server,
    ):
        yield server


def stop_cleanly(server: Server, by: int = signal.SIGTERM) -> None:
    assert server.stop(by) in (0, -by, 128 + by)
    log = server.log()
    assert "engine disposed of" in log
    assert "Traceback" not in log
    assert "Warning" not in log


@pytest.mark.fast
def test_every_endpoint_answers(service: Service, migrated: Database) -> None:
    with service.serve(PYTHONWARNINGS="default", **migrated.variables) as server:
        http = server.client
        assert http.get("/health/ready").json() == {"status": "ready"}
        assert http.get("/docs").status_code == 200
        assert http.get("/openapi.json").json()["info"]["title"] == "My Service"

        created = http.post("/items", json={"name": "Spanner"})
        url = created.headers["location"]
        assert (created.status_code, created.headers["etag"]) == (201, created.json()["etag"])
        assert http.get(url).json() == created.json()
        assert http.get("/items").json()["items"] == [created.json()]
        assert http.post("/items", json={"name": "Spanner"}).status_code == 409
        known = {"If-Match": created.headers["etag"]}
        changed = http.patch(url, json={"name": "Hammer"}, headers=known)
        assert (changed.status_code, changed.headers["etag"]) == (200, changed.json()["etag"])
        assert http.get(url, headers={"If-None-Match": changed.headers["etag"]}).status_code == 304
        assert http.delete(url, headers=known).status_code == 412
        assert http.delete(url).status_code == 204
        assert http.get(url).status_code == 404

        stop_cleanly(server)
    assert migrated.connections() == 0


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("item_id", ["0", "-1", str(2**63), str(2**70), "%00", "x", "1.5", "01"])
def test_bad_ids_are_the_clients_error(running: Server, method: str, item_id: str) -> None:
    response = running.client.request(method, f"/items/{item_id}", json={"name": "a"})

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"name": "a\\u0000b"}', "application/json", 422),
        (b'{"name": "\\ud800"}', "application/json", 422),
        (b'{"name": "%s"}' % (b"a" * 201), "application/json", 422),
        (b'{"name": "a", "more": "hunter2"}', "application/json", 422),
        (b'{"name": "hunter2"', "application/json", 422),
        (b'{"name": "hunter2"}', "text/plain", 415),
        (b"name=hunter2", "application/x-www-form-urlencoded", 415),
        (b"\xff\xfe", "application/json", 422),
        (b" " * 2_000_000, "application/json", 413),
    ],
)
def test_bad_bodies_are_the_clients_error(
    running: Server, content: bytes, content_type: str, status: int
) -> None:
    response = running.client.post(
        "/items", content=content, headers={"Content-Type": content_type}
    )

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in response.text


@pytest.mark.parametrize("cursor", ["", "1", "x" * 5000, "AAAAAAAAAAA", "%00", "é"])
def test_a_cursor_that_nobody_issued_is_the_clients_error(running: Server, cursor: str) -> None:
    assert running.client.get("/items", params={"cursor": cursor}).status_code == 422


def test_head_ends_where_get_never_does(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    copy.extend(routes=ENDLESS)
    with copy.serve(*UVICORN, **migrated.variables) as server:
        http = server.client
        http.timeout = httpx2.Timeout(5)
        for path in ("/endless?first=true", "/endless?first=false", "/items", "/nowhere", "/docs"):
            head = http.head(path)
            assert (head.status_code, head.content) == (404 if path == "/nowhere" else 200, b"")
        got, head = http.get("/items"), http.head("/items")
        assert head.headers["content-length"] == got.headers["content-length"]
        assert http.delete("/items").headers["allow"] == "GET, HEAD, POST"

        stop_cleanly(server)  # in time, since nothing streams any more
    assert server.log().count("HEAD /endless 200 ") == 2


def test_a_form_is_sent_as_one_and_one_that_cannot_be_stored_is_the_servers_error(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    copy.extend(routes=UPLOAD)
    serve = "uv run --no-sync --with python-multipart python -m app.server"
    command = ("sh", "-c", f'ulimit -f 1000 && exec {serve} "$@"', "sh")  # no file over 512,000
    variables = migrated.variables | {"MAX_BODY_SIZE": "5000000"}
    with copy.serve(*command, **variables) as server:
        small, large = (
            server.client.post("/upload", files={"file": ("a", b"a" * size)})
            for size in (1_000, 2_000_000)
        )
        assert small.json() == 1_000
        assert unavailable(large)
        urlencoded = "application/x-www-form-urlencoded"
        for path, media_type, content, status in (
            ("/form", urlencoded, b"name=a", 200),
            ("/form", "multipart/form-data; boundary=b", b"--b--", 200),
            ("/form", "", b"", 200),
            ("/form", "application/json", b'{"name": "a"}', 415),
            ("/form", "text/plain", b"name=a", 415),
            ("/form", "", b"name=a", 415),
            ("/upload", "multipart/form-data; boundary=b", b"--b--", 422),
            ("/upload", urlencoded, b"file=a", 415),
            ("/upload", "application/json", b'{"file": "a"}', 415),
        ):
            headers = {"Content-Type": media_type} if media_type else {}
            response = server.client.post(path, content=content, headers=headers)
            assert (path, media_type, response.status_code) == (path, media_type, status)
            if status == 415:
                types = [urlencoded] * (path == "/form") + ["multipart/form-data"]
                assert response.headers["accept-post"] == ", ".join(types)
    assert "unavailable: temporary files: [Errno 27] File too large" in server.log()


def test_random_requests_get_what_the_openapi_document_promises(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    with watcher.serve_watched(service, left_in(migrated), **migrated.variables) as watched:
        server = watched.server
        tried = subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run"),
                f"{server.client.base_url}/openapi.json",
                *("--seed", str(SEED), "--max-examples", "25", "--no-color"),
                # Valid by the document and refused nevertheless: a stale tag, an unknown cursor.
                *("--exclude-checks", "positive_data_acceptance"),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=300,
        )
    assert tried.returncode == 0, tried.stdout
    assert re.search(r"Tested: 5\b", tried.stdout), tried.stdout


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_request_that_runs_when_sigterm_comes_is_answered(
    service: Service, migrated: Database, by: int
) -> None:
    with (
        service.serve(*UVICORN, **migrated.variables) as server,
        ThreadPoolExecutor() as pool,
        migrated.block_writes(seconds=2),
    ):
        posted = pool.submit(server.client.post, "/items", json={"name": "Spanner"})
        time.sleep(0.5)

        stop_cleanly(server, by)

        assert posted.result().status_code == 201
    assert migrated.connections() == 0


def test_a_service_without_its_database_starts_and_heals(
    service: Service, migrated: Database
) -> None:
    migrated.take_away()
    with service.serve(**migrated.variables) as server:
        http = server.client
        assert http.get("/health/live").status_code == 200
        assert http.get("/health/ready").status_code == 503
        for response in (http.get("/items"), http.post("/items", json={"name": "a"})):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"

        migrated.give_back()

        assert http.get("/health/ready").status_code == 200
        assert http.post("/items", json={"name": "a"}).status_code == 201
        stop_cleanly(server)


def test_a_service_is_ready_once_it_is_migrated(service: Service, database: Database) -> None:
    with service.serve(**database.variables) as server:
        assert server.client.get("/health/ready").status_code == 503

        service.migrate(database)

        assert server.client.get("/health/ready").status_code == 200


def test_the_log_is_json_when_asked(service: Service, migrated: Database) -> None:
    with service.serve(LOG_FORMAT="json", **migrated.variables) as server:
        server.client.get("/items?limit=1", headers={"X-Request-ID": "order-7"})
        server.client.get("/items?token=hunter2")
        server.stop(signal.SIGTERM)

    lines = [json.loads(line) for line in server.log().splitlines()]
    access, refused = [line for line in lines if line["logger"] == "app.access"]
    assert (access["request_id"], access["url.path"]) == ("order-7", "/items")
    assert access["http.route"] == refused["http.route"] == "/items"
    assert access["http.response.status_code"] == 200
    assert refused["http.response.status_code"] == 422
    assert {line["service.version"] for line in lines} == {"0.1.0"}
    assert "hunter2" not in server.log()


def test_each_worker_has_an_engine_of_its_own(service: Service, migrated: Database) -> None:
    with service.serve(*UVICORN, "--workers", "2", **migrated.variables) as server:
        assert server.client.get("/health/ready").status_code == 200

        server.stop(signal.SIGTERM)

    assert server.log().count("engine disposed of") == 2
    assert migrated.connections() == 0

"""What a page of docs/how-to adds to a service works as it stands there, on both databases."""

import http.server
import json
import re
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services import Database, Server, Service, wait_for
from tests.test_docs import BLOCK, DOCS

TITLE = re.compile(r'title="([^"]+)"')


def check_relationships(server: Server) -> None:
    http = server.client
    for name, titles in (("Anna", ["One", "Two"]), ("Bert", [])):
        assert http.post("/authors", json={"name": name, "titles": titles}).status_code == 201
    anna, bert = http.get("/authors").json()
    assert [book["title"] for book in anna["books"]] == ["One", "Two"]
    assert bert["books"] == []
    statements = server.log().count("FROM books")
    http.get("/authors").raise_for_status()
    assert server.log().count("FROM books") - statements == 1


def check_read_modify_write(server: Server) -> None:
    http = server.client
    with ThreadPoolExecutor(8) as pool:
        for kind, statuses in (("computed", {200}), ("locked", {200}), ("versioned", {200, 409})):
            assert http.put(f"/counters/{kind}").status_code == 201

            def add(_: int, kind: str = kind) -> int:
                return http.post(f"/counters/{kind}/{kind}").status_code

            answers = list(pool.map(add, range(40)))
            assert set(answers) <= statuses
            value = http.post(f"/counters/{kind}/computed").json()
            assert value == answers.count(200) + 1


def check_after_the_commit(server: Server) -> None:
    http = server.client
    created = http.post("/orders", json={"article": "Spanner"})
    assert created.status_code == 201
    path = f"/orders/{created.json()['id']}"
    wait_for(lambda: http.get(path).json() == {"article": "Spanner", "confirmed": True})


def check_streaming(server: Server) -> None:
    http = server.client
    for number in range(501):
        http.post("/items", json={"name": f"item {number}"}).raise_for_status()
    with http.stream("GET", "/export/items.csv") as response:
        lines = list(response.iter_lines())
    assert [line.split(",")[1] for line in lines if line] == [f"item {n}" for n in range(501)]


def check_second_resource(server: Server) -> None:
    assert server.client.get("/weather").json() == {"weather": "sunny"}
    server.stop(signal.SIGTERM)
    assert 0 < server.log().index("client closed") < server.log().index("disposed of")


PAGES: dict[str, Callable[[Server], None]] = {
    "relationships": check_relationships,
    "read-modify-write": check_read_modify_write,
    "after-the-commit": check_after_the_commit,
    "streaming": check_streaming,
    "second-resource": check_second_resource,
}


@contextmanager
def weather() -> Iterator[str]:
    """Serve what a page's service asks for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps("sunny").encode())

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_it_stands(
    page: str, service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    variables = {**migrated.variables, "DATABASE_ECHO": "true"}
    for language, title, text in BLOCK.findall((DOCS / f"how-to/{page}.md").read_text()):
        if file := TITLE.search(title):
            (copy.folder / file[1]).parent.mkdir(exist_ok=True)
            (copy.folder / file[1]).write_text(text)
        elif language == "sh":
            for command in text.splitlines():
                if not command.startswith("uv add"):  # it is there, for the tests
                    program, *words = shlex.split(command.removeprefix("uv run "))
                    copy.run(f".venv/bin/{program}", *words, variables=variables)

    copy.run(".venv/bin/ruff", "format", "--check", "app")
    copy.run(".venv/bin/ruff", "check", "app")
    copy.run(".venv/bin/python", "engine_rules.py")
    copy.run(".venv/bin/mypy", "app")
    with (
        weather() as url,
        copy.serve(".venv/bin/uvicorn", "app.main:app", WEATHER_URL=url, **variables) as server,
    ):
        PAGES[page](server)

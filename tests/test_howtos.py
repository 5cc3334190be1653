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

import httpx2
import pytest

from tests.services import Database, Server, Service, unavailable, wait_for
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
def answering(body: object) -> Iterator[tuple[str, list[str]]]:
    """Serve what a page's service asks for; yield the address, and the paths that were asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}", asked
        other.shutdown()


def apply(page: str, service: Service, variables: dict[str, str]) -> None:
    """Do to a service what a page says; a file or command of the other database is passed over."""
    other = {"sqlite": "PostgreSQL", "postgresql": "SQLite"}[service.database]
    for language, attributes, text in BLOCK.findall((DOCS / f"how-to/{page}.md").read_text()):
        [title] = TITLE.findall(attributes) or [""]
        if title.startswith(other):
            continue
        if language == "sh":
            for command in text.splitlines():
                type_command(command, service, variables)
        elif title:
            file = service.folder / title.split(": ")[-1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)

    service.run(".venv/bin/ruff", "format", "--check", "app", "migrations")
    service.run(".venv/bin/ruff", "check", "app", "migrations")
    service.run(".venv/bin/python", "engine_rules.py")
    service.run(".venv/bin/mypy", "app", "migrations")


def type_command(command: str, service: Service, variables: dict[str, str]) -> None:
    if command == "uv add httpx2":
        return  # it is there, for the tests
    if command.startswith("uv add"):
        (service.folder / ".venv").unlink()  # the other services' too
        service.run("uv", "sync", "--quiet")
    program, *words = shlex.split(command.replace("uv run", "uv run --no-sync"))
    service.run(program, *words, variables=variables)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_it_stands(
    page: str, service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    variables = {**migrated.variables, "DATABASE_ECHO": "true"}
    apply(page, copy, variables)

    with (
        answering("sunny") as (url, _),
        copy.serve(".venv/bin/uvicorn", "app.main:app", WEATHER_URL=url, **variables) as server,
    ):
        PAGES[page](server)


KEYS = """
import json, sys, time
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

ours, foreign = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
public = RSAAlgorithm.to_jwk(ours.public_key(), as_dict=True)
good = {"iss": sys.argv[1], "aud": "my-service", "sub": "anna", "scope": "openid items"}
good["exp"] = time.time() + 600


def token(key=ours, algorithm="RS256", kid="1", **claims):
    claims = {name: value for name, value in {**good, **claims}.items() if value is not None}
    return jwt.encode(claims, key, algorithm, {"kid": kid})


tokens = {
    "good": token(),
    "without scope": token(scope=None),
    "expired": token(exp=time.time() - 1),
    "endless": token(exp=None),
    "nobody's": token(sub=None),
    "for another": token(aud="other"),
    "from another": token(iss="https://other.example.com"),
    "signed by another": token(foreign),
    "of an unknown key": token(kid="2"),
    "signed with a secret": token("no key of anybody's, but long enough", "HS256"),
    "unsigned": token(None, "none"),
    "garbage": "a.b.c",
}
print(json.dumps({"keys": {"keys": [{**public, "kid": "1", "use": "sig"}]}, "tokens": tokens}))
"""


def test_tokens_of_the_provider_open_what_their_scopes_name(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    variables = migrated.variables
    apply("oidc", copy, variables)
    made = json.loads(copy.run(".venv/bin/python", "-c", KEYS, "https://issuer.example").stdout)
    tokens: dict[str, str] = made["tokens"]
    provider = {"OIDC_ISSUER": "https://issuer.example"}

    with (
        answering(made["keys"]) as (url, asked),
        copy.serve(OIDC_JWKS_URL=url, **provider, **variables) as server,
    ):
        assert not asked

        def read(path: str, token: str) -> httpx2.Response:
            return server.client.get(path, headers={"Authorization": f"Bearer {token}"})

        assert read("/me", tokens["good"]).json() == "anna"
        assert read("/items", tokens["good"]).status_code == 200
        assert read("/me", tokens["without scope"]).status_code == 200
        refused = read("/items", tokens["without scope"])
        assert (refused.status_code, refused.json()["title"]) == (403, "Forbidden")
        assert refused.headers["WWW-Authenticate"].endswith('scope="items"')
        nobody = server.client.get("/items")
        assert (nobody.status_code, nobody.json()["status"]) == (401, 401)
        assert nobody.headers["WWW-Authenticate"] == "Bearer"
        for kind in tokens.keys() - {"good", "without scope"}:
            refused = read("/me", tokens[kind])
            assert (kind, refused.status_code) == (kind, 401)
            assert refused.json()["detail"] == "The access token is not valid."
            assert refused.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        assert len(asked) == 1
        assert not any(token in server.log() for token in tokens.values())

    with copy.serve(OIDC_JWKS_URL=url, **provider, **variables) as server:
        assert unavailable(read("/me", tokens["good"]))

"""The pages on lists, upserts and errors: real rows, asked for and stored by many at once."""

import random
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import watcher
from tests.support.databases import Database, PostgreSQLDatabase, execute, transaction
from tests.support.pages import blocks, check, page_text, type_page
from tests.support.processes import wait_for
from tests.support.services import Service
from tests.support.watcher import left_in

WAITING = (
    "SELECT 'waiting=' || count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
)

NAME_PARAMETERS = """
import sys
from app.features.errors import field_of
from app.problems import FieldError

for name in sys.argv[1:]:
    print(field_of(FieldError(place="query", name=name, code="", detail="")))
"""


def walk(http: httpx2.Client, **query: Any) -> Iterator[dict[str, Any]]:
    while True:
        page = http.get("/articles", params=query).raise_for_status().json()
        yield page
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]


def titles(http: httpx2.Client, **query: Any) -> list[str]:
    return [item["title"] for page in walk(http, **query) for item in page["items"]]


def ask_for_articles(service: Service, database: Database) -> None:
    variables = {**database.variables, "DATABASE_ECHO": "true"}
    with watcher.serve_watched(service, left_in(database), **variables) as watched:
        http = watched.server.client

        def create(title: str, author: str, *tags: str) -> int:
            article = {"title": title, "author": author, "tags": tags}
            created = http.post("/articles", json=article, extensions={"right": True})
            assert created.status_code == 201, created.text
            assert created.json()["author"]["name"] == author
            assert created.json()["tags"] == sorted(tags)
            return int(created.json()["id"])

        # many who add the same author and the same tags, in any order
        seeded = random.Random(1)
        tags = [f"tag {number}" for number in range(10)]
        with ThreadPoolExecutor(8) as pool:
            orders = [seeded.sample(tags, len(tags)) for _ in range(24)]
            ids = list(pool.map(lambda order: create("B", "anna", *order), orders))
        authors = {item["author"]["id"] for page in walk(http) for item in page["items"]}
        assert len(authors) == 1
        [anna] = authors
        create("A", "bert", "tag 1")
        create("C", "bert")
        [bert] = {
            item["author"]["id"] for page in walk(http, author="bert") for item in page["items"]
        }

        # every row once, however many share a title, in either order
        assert titles(http, sort="title", limit=5) == ["A"] + ["B"] * 24 + ["C"]
        assert titles(http, limit=5) == ["C", "A"] + ["B"] * 24
        found = [item["id"] for page in walk(http, limit=5) for item in page["items"]]
        assert found == sorted(found, reverse=True)
        assert set(found) >= set(ids)
        # the row behind which a page begins may be gone
        pages = walk(http, sort="title", limit=1)
        assert next(pages)["items"][0]["title"] == "A"
        execute(
            database,
            "DELETE FROM article_tags WHERE article_id IN (SELECT id FROM articles WHERE title = 'A')",
        )
        execute(database, "DELETE FROM articles WHERE title = 'A'")
        assert next(pages)["items"][0]["title"] == "B"

        for query, expected, total in (
            ({"tag": "tag 1"}, ["B"] * 24, 24),
            ({"tag": "tag 1", "author": "bert"}, [], 0),
            ({"author": "bert", "sort": "title"}, ["C"], 1),
            ({"feed_of": bert}, [], 0),
            ({"tag": "'"}, [], 0),
        ):
            assert titles(http, **query, limit=100) == expected
            assert http.get("/articles", params=query).json()["total"] == total
        for _ in range(2):
            assert http.put(f"/people/{bert}/follows/{anna}").status_code == 204
        assert titles(http, feed_of=bert) == ["B"] * 24
        assert http.put(f"/people/{bert}/follows/99").status_code == 409

        # one row of those who rate at once, and the last rating stays
        rating = f"/articles/{ids[0]}/ratings/{bert}"
        with ThreadPoolExecutor(6) as pool:
            rated = pool.map(lambda stars: http.put(rating, json=stars).json(), [1, 2, 3] * 4)
            assert sorted(rated) == sorted([1, 2, 3] * 4)
        assert http.put(rating, json=5).json() == 5
        for viewer, expected_rated in ((bert, True), (anna, False), (None, False)):
            query = {} if viewer is None else {"viewer": viewer}
            article = http.get(f"/articles/{ids[0]}", params=query).json()
            assert (article["ratings"], article["rated"]) == (1, expected_rated)
        for path, status in (("/articles/99/ratings/1", 409), (rating, 422)):
            assert http.put(path, json=3 if status == 409 else 6).status_code == status

        # a savepoint takes back one statement, and the transaction goes on
        refused = http.post("/people/import", json=["carl", "anna", "dora", "carl"])
        assert refused.json() == {"anna": ["name"], "carl": ["name"]}
        create("D", "dora")

        # who adds tags waits for another's with none of its own that the other may wait for
        if isinstance(database, PostgreSQLDatabase):
            held = transaction(database, "INSERT INTO tags (name) VALUES ('new a')")
            with ThreadPoolExecutor(1) as pool, held:
                sent = pool.submit(create, "E", "bert", "new b", "new a")
                wait_for(lambda: "waiting=1" in database.query(WAITING))
                added = "INSERT INTO tags (name) VALUES ('new b') RETURNING 'added=' || name"
                assert "added=new b" in database.query(f"SET lock_timeout = '1s'; {added}")
            sent.result()

        for key in ("[1]", '["B", 0]', '["B"]', '["B", 1, 2]', "[]", "{}", "", "\xff", "[" * 500):
            cursor = urlsafe_b64encode(key.encode("latin-1")).decode()
            for text in (cursor, cursor + "=", key):
                answer = http.get("/articles", params={"sort": "title", "cursor": text})
                assert (key, answer.status_code) == (key, 422)

        statements = watched.server.log().count("SELECT ")
        http.get("/articles").raise_for_status()
        assert watched.server.log().count("SELECT articles.id") > 0
        assert (
            3 <= watched.server.log().count("SELECT ") - statements <= 5
        )  # three, with subqueries


def be_refused_in_another_form(service: Service, database: Database) -> None:
    example = service.folder / "tests/features/test_items.py"
    [test] = [
        block.text
        for block in blocks(page_text("how-to/error-format.md"))
        if not block.title and block.language == "python"
    ]
    [name] = [line for line in test.splitlines() if line.startswith("async def")]
    before, _, after = example.read_text().partition(name)
    example.write_text(before + test + "\n\n" + after.partition("\n\n\n")[2])
    service.run(".venv/bin/ruff", "format", "--check", "tests")
    service.run(".venv/bin/pytest", "-q", "tests/features")

    named = service.run(".venv/bin/python", "-c", NAME_PARAMETERS, "tag.1", "tag", "sort.by")
    assert named.stdout.split() == ["tag", "tag", "sort.by"]

    variables = {**database.variables, "ALLOWED_HOSTS": "127.0.0.1", "MAX_BODY_SIZE": "1000"}
    with service.serve(**variables) as server:
        http = server.client
        assert http.post("/items", json={"name": "Spanner"}).status_code == 201
        answers = [
            http.get("/nowhere"),
            http.get("/items/99"),
            http.put("/items"),
            http.get("/items", headers={"Host": "evil.example"}),
            http.post("/items", json={"name": "Spanner"}),
            http.post("/items", json={"name": 1, "more": 1}),
            http.post("/items", content=b"{", headers={"Content-Type": "application/json"}),
            http.post("/items", content=b"a", headers={"Content-Type": "text/plain"}),
            http.post("/items", json={"name": "a" * 1_000}),
            http.patch("/items/1", json={}, headers={"If-Match": '"9-00000000"'}),
        ]
        head = http.head("/items/99")
        for url, sent, expected in (
            ("/articles", {"title": "A", "author": "anna", "tags": ["a", ""]}, {"tags"}),
            ("/people/import", ["anna", ""], {"body"}),
            ("/articles", {"title": "A", "author": "anna", "a/b": 1, "": 1}, {"a/b", ""}),
        ):
            assert http.post(url, json=sent).json()["errors"].keys() == expected
        database.take_away()
        answers.append(http.get("/items"))
        answers.append(http.get("/health/ready"))
        database.give_back()

        assert [answer.status_code for answer in answers] == [
            404,
            404,
            405,
            400,
            409,
            422,
            422,
            415,
            413,
            412,
            503,
            503,
        ]
        for answer in answers:
            assert answer.headers["Content-Type"] == "application/json"
            errors = answer.json().pop("errors")
            assert answer.json() == {"errors": errors}
            assert errors
            assert all(isinstance(text, str) for texts in errors.values() for text in texts)
            assert answer.headers["X-Request-ID"]
            assert answer.headers["Cache-Control"] == "no-store"
        assert answers[4].json() == {"errors": {"name": ["This is already taken."]}}
        assert answers[5].json()["errors"].keys() == {"name", "more"}
        assert answers[2].headers["Allow"] == "GET, HEAD, POST"
        assert answers[-2].headers["Retry-After"] == "1"
        assert (head.status_code, head.content) == (404, b"")
        assert head.headers["Content-Length"] == answers[1].headers["Content-Length"]

        document = http.get("/openapi.json").json()
        assert "Problem" not in document["components"]["schemas"]
        for name, response in document["components"]["responses"].items():
            [(kind, content)] = response["content"].items()
            assert (name, kind) == (name, "application/json")
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorList"}
            for example_of_it in content["examples"].values():
                assert example_of_it["value"].keys() == {"errors"}


@pytest.mark.long
def test_lists_and_upserts_are_alike_and_every_error_has_the_form_of_ones_own(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    type_page("filter-and-upsert", copy, migrated.variables)
    copy.run(".venv/bin/ruff", "check")
    ask_for_articles(copy, migrated)

    type_page("error-format", copy, migrated.variables)
    check(copy)
    be_refused_in_another_form(copy, migrated)

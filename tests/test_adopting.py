"""A service that knows nothing of the template moves into it, as the page says."""

import sqlite3
from pathlib import Path

import pytest

from tests.support.pages import Typist, blocks, check, page_text, shows
from tests.support.services import Service


@pytest.mark.long
def test_a_foreign_service_moves_in_and_keeps_its_rows(template: Path, tmp_path: Path) -> None:
    (tmp_path / "copier-fastapi-sqlalchemy").symlink_to(template)
    (tmp_path / "old/shop").mkdir(parents=True)
    with sqlite3.connect(tmp_path / "old/shop.db") as connection:  # as create_all makes it
        connection.execute(
            "CREATE TABLE orders (id INTEGER NOT NULL, article VARCHAR(100) NOT NULL,"
            " PRIMARY KEY (id))"
        )
        connection.execute("INSERT INTO orders VALUES (7, 'Spanner')")
    connection.close()
    # Of the template's own tests, those that see what was moved.
    tests = "uv run pytest tests/test_migrations.py tests/test_openapi.py"
    typist = Typist(tmp_path, instead={"^uv run poe check$": tests})
    printed = ""

    for block in blocks(page_text("how-to/adopt.md")):
        if block.language == "sh":
            printed = ""
            for command in block.text.splitlines():
                found = typist.folder.name == "look"  # a lint that finds something exits with 1
                done = typist.try_typing(command)
                assert found or done.returncode == 0, done.stdout
                printed += done.stdout
        elif block.language == "text":
            assert shows(printed, block.text), printed
        else:
            typist.write(block.title, block.text)

    assert typist.folder.name == "shop"
    shop = Service(typist.folder, "sqlite")
    check(shop)
    with shop.serve(**typist.variables) as server:
        assert server.client.get("/health/ready").status_code == 200
        assert server.client.get("/orders/7").json() == {"id": 7, "article": "Spanner"}
        created = server.client.post("/orders", json={"article": "Wrench"})
        assert (created.status_code, created.json()["id"]) == (201, 8)
        assert server.client.get("/orders/8").json()["article"] == "Wrench"

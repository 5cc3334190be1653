"""A service that knows nothing of the template moves into it, as the page says."""

import re
import sqlite3
from pathlib import Path

from tests.services import Service
from tests.test_docs import BLOCK, DOCS, shows


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
    folder = tmp_path
    variables: dict[str, str] = {}
    said = ""

    for language, title, text in BLOCK.findall((DOCS / "how-to/adopt.md").read_text()):
        file = "".join(re.findall('title="(.*)"', title))
        if language == "sh":
            said = ""
            for command in text.strip().replace("uvx copier", "copier").splitlines():
                if command.startswith("cd "):
                    folder = (folder / command.removeprefix("cd ")).resolve()
                elif command.startswith("export "):
                    name, _, value = command.removeprefix("export ").partition("=")
                    variables[name] = value
                else:
                    found = folder.name == "look"  # a lint that finds something ends with 1
                    done = Service(folder, "").run(
                        "sh", "-c", command, variables=variables, check=not found
                    )
                    said += done.stdout
        elif language == "text":
            assert shows(said, text), said
        else:
            (folder / file).write_text(text)

    assert folder.name == "shop"
    with Service(folder, "sqlite").serve(**variables) as server:
        assert server.client.get("/health/ready").status_code == 200
        assert server.client.get("/orders/7").json() == {"id": 7, "article": "Spanner"}
        created = server.client.post("/orders", json={"article": "Wrench"})
        assert (created.status_code, created.json()["id"]) == (201, 8)
        assert server.client.get("/orders/8").json()["article"] == "Wrench"

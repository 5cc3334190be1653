"""The commands that a user types, as a user types them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import Database, SQLiteDatabase, execute
from tests.support.pages import page_text
from tests.support.processes import (
    START_TIMEOUT,
    environment,
    free_port,
    open_client,
    wait_until_nothing_runs,
    wait_until_served,
)
from tests.support.repository import REPOSITORY, git, names_of_tests
from tests.support.services import Service

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # uv is not there


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_poe_dev_serves_a_migrated_database_and_leaves_nothing_running(
    service: Service, stop: signal.Signals
) -> None:
    with service.serve("uv", "run", "poe", "dev") as server:
        assert server.client.get("/health/ready").status_code == 200
        assert server.client.get("/docs").status_code == 200
        name = f"After {stop.name}"
        assert server.client.post("/items", json={"name": name}).status_code == 201

        server.stop(stop)
    wait_until_nothing_runs(service.folder)
    assert "Traceback" not in server.log()
    lines = server.log().splitlines()
    [shown] = [number for number, line in enumerate(lines) if line.startswith("Database: ")]
    source = "by default" if service.database == "sqlite" else ".postgres/"
    assert lines[shown].endswith(f"({source})")
    assert lines[shown + 1] == f"Documentation: {server.client.base_url}/docs"
    assert not any("INFO" in line for line in lines[:shown])

    with service.serve("uv", "run", "poe", "dev") as server:
        names = [item["name"] for item in server.client.get("/items").json()["items"]]
        # As a terminal's Ctrl-C, which reaches every process of the group.
        os.killpg(server.process.pid, signal.SIGINT)
        server.process.wait(START_TIMEOUT)
    assert name in names
    assert "ERROR" not in server.log()
    wait_until_nothing_runs(service.folder)


URLS = """
import json, sys

from scripts.address import find_url

for options in json.loads(sys.argv[1]):
    print(find_url(options))
"""


def test_poe_dev_says_where_it_serves_or_nothing_if_only_the_server_knows(service: Service) -> None:
    port = str(free_port())
    known = {
        ("--port", port): f"http://127.0.0.1:{port}",
        ("--host", "::1", "--port", port): f"http://[::1]:{port}",
        ("--ssl-certfile", "some.pem", "--port", port): f"https://127.0.0.1:{port}",
        ("--port", "0"): "None",
        ("--host", "", "--port", port): "None",
        ("--uds", "some.sock"): "None",
    }

    said = service.run(".venv/bin/python", "-c", URLS, json.dumps([*known])).stdout

    assert said.splitlines() == [*known.values()]


def test_a_killed_poe_dev_leaves_nothing_that_serves(service: Service) -> None:
    with service.serve(".venv/bin/python", "-m", "scripts.dev") as server:
        server.stop(signal.SIGKILL)

        wait_until_nothing_runs(service.folder)


def test_alembic_takes_the_database_of_the_environment(
    service: Service, database: Database
) -> None:
    def alembic(*arguments: str, check: bool = True) -> str:
        command = ("uv", "run", "alembic", *arguments)
        return service.run(*command, variables=database.variables, check=check).stdout

    assert "(head)" not in alembic("current", check=False)  # SQLite's file is not there yet
    alembic("upgrade", "head")
    assert "(head)" in alembic("current")


TYPED_ELSEWHERE = {
    "uv run poe dev": "test_poe_dev_serves_a_migrated_database_and_leaves_nothing_running",
    "uv run poe dev --port 8001": "test_the_tutorial_works_as_it_stands_on_the_page",
    "uv run poe feature …": "test_features_with_fields_of_every_type_pass_their_checks_and_answer",
    "uv run poe check": "test_a_fresh_service_passes_its_checks",
    "uv run poe openapi": "test_a_change_of_what_clients_rely_on_is_refused_until_it_is_accepted",
    "uvx pre-commit install": "test_a_commit_is_checked_by_the_same_tools",
    "uv run pytest": "test_a_fresh_service_passes_its_checks",
    "uv run python -m app.server": "test_every_endpoint_answers",
    "docker compose up --build": "test_process_1_answers_what_it_has_and_ends_on_sigterm",
    "uv run poe update": "test_an_update_by_hand_goes_as_the_page_says",
    "uvx copier update --skip-answered": "test_an_update_says_what_it_did_and_how_to_take_it_back",
}


def test_every_command_of_the_reference_is_typed(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    page = page_text("reference/commands.md")
    commands = re.findall(r"^\| `((?:uv|python|docker).*?)` \| \S", page, re.MULTILINE)
    copy = service.copy(tmp_path / "service")

    assert TYPED_ELSEWHERE.keys() < set(commands)
    assert set(TYPED_ELSEWHERE.values()) <= names_of_tests()
    said = {}
    # Last, since most of them need the database at the newest migration.
    for command in sorted(dict.fromkeys(commands), key=lambda command: "downgrade" in command):
        if command not in TYPED_ELSEWHERE and "…" not in command:
            typed = command.replace("python", "uv run python")
            typed = typed.replace("uv run", "uv run --no-sync")
            said[command] = copy.run("sh", "-c", typed, variables=migrated.variables).stdout

    assert "(head)" in said["uv run alembic current"]
    assert "No new upgrade operations" in said["uv run alembic check"]
    assert "CREATE TABLE items" in said["uv run alembic upgrade head --sql"]


def test_the_doctor_says_what_is_wrong_and_how_to_fix_it(
    service: Service, database: Database
) -> None:
    url = database.variables["DATABASE_URL"].replace("postgres:@", "postgres:hunter2@")

    def doctor(*options: str) -> tuple[int, str]:
        done = service.run(
            *("uv", "run", "poe", "doctor", *options),
            variables={"DATABASE_URL": url, "LOG_LEVEL": "debug"},
            check=False,
        )
        assert "hunter2" not in done.stdout
        assert "Traceback" not in done.stdout
        return done.returncode, done.stdout

    if isinstance(database, SQLiteDatabase):
        code, missing = doctor()
        assert code == 1
        assert "does not answer" in missing
        database.make()
    code, unmigrated = doctor()
    assert code == 1
    assert "WRONG schema    behind: uv run alembic upgrade head brings" in unmigrated
    assert ("not in WAL mode" in unmigrated) == (service.database == "sqlite")

    service.migrate(database)
    code, well = doctor()
    assert code == 0
    assert len(well.splitlines()) <= 10
    assert "LOG_LEVEL=DEBUG from the environment" in well
    assert re.search(r"database  \S+ \(the environment\)", well)
    assert "template  9000.0.0" in well

    code, many = doctor("--processes", "1000")
    if service.database == "postgresql":
        assert code == 1
        assert "this service may open 15000 of its 97 connections; lower DATABASE_POOL_SIZE" in many
    else:
        assert code == 0

    database.take_away()
    code, away = doctor()
    assert code == 1
    assert "does not answer" in away


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"DATABASE_URL": "mysql://user:hunter2@host/name"}, "DATABASE_URL"),
        ({"DATABASE_POOL_SIZE": "hunter2"}, "DATABASE_POOL_SIZE"),
        ({"LOG_LEVEL": "hunter2"}, "LOG_LEVEL"),
    ],
)
@pytest.mark.parametrize("command", [("python", "-m", "app.server"), ("alembic", "current")])
def test_a_wrong_setting_ends_with_one_message(
    service: Service,
    database: Database,
    command: tuple[str, ...],
    variables: dict[str, str],
    name: str,
) -> None:
    done = service.run("uv", "run", *command, variables=database.variables | variables, check=False)

    assert done.returncode not in (0, -signal.SIGTERM)
    assert f"  {name}: " in done.stdout
    assert "Traceback" not in done.stdout
    assert "hunter2" not in done.stdout


def test_an_unknown_revision_is_reported(service: Service, migrated: Database) -> None:
    execute(migrated, "UPDATE alembic_version SET version_num = 'elsewhere'")

    doctor = service.run(".venv/bin/python", "-m", "app.doctor", variables=migrated.variables)
    dev = service.run(
        ".venv/bin/python", "-m", "scripts.dev", variables=migrated.variables, check=False
    )

    assert "look  schema    ahead, at a revision that is not here" in doctor.stdout
    assert dev.returncode == 1
    assert (
        "at revision elsewhere, which is not among these migrations" in dev.stdout.splitlines()[-1]
    )
    assert "Traceback" not in dev.stdout


def test_only_a_postgresql_service_must_be_told_where_its_database_is(
    service: Service, tmp_path: Path
) -> None:
    done = service.run("uv", "run", "--no-sync", "python", "-c", "import app.main", check=False)

    if service.database == "sqlite":
        assert (done.returncode, done.stdout) == (0, "")
    else:
        assert done.returncode == 1
        assert "DATABASE_URL: missing" in done.stdout
        assert "Traceback" not in done.stdout
        copy = service.copy(tmp_path / "service")
        command = ("uv", "run", "--no-sync", "alembic", "upgrade", "head")
        refused = copy.run(*command, check=False)
        assert refused.returncode == 1
        assert "uv run poe dev makes a server" in refused.stdout
        assert "DATABASE_URL: missing" in refused.stdout
        assert "Traceback" not in refused.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["new", "--folder", "{full}"], "is not empty"),
        (["new", "--folder", "{full}/new", "--port", "{taken}"], "name another with --port"),
        (["new", "oracle"], "invalid choice: 'oracle'"),
        (["new", "--prot=8001"], "unknown: --prot=8001"),
        ([], "required: command"),
    ],
)
def test_a_wrong_argument_is_reported_and_nothing_is_written(
    tmp_path: Path, words: list[str], told: str
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        words = [word.format(full=tmp_path, taken=taken) for word in words]
        done = subprocess.run(
            [sys.executable, REPOSITORY / "dev.py", *words],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode != 0
    assert told in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_command_generates_and_serves_a_service(
    template: Path, database_name: str, tmp_path: Path
) -> None:
    """In a clone, with Python and git and nothing else on the path."""
    clone = tmp_path / "clone"
    git(template, "clone", "--quiet", str(template), str(clone))
    port = free_port()
    log_file = tmp_path / "log"
    words = [database_name] if database_name != "sqlite" else []
    python = Path(sys.base_prefix) / "bin" / "python3"

    with (
        log_file.open("wb") as log,
        open_client(f"http://127.0.0.1:{port}") as client,
        subprocess.Popen(
            [python, "dev.py", "new", *words, "--port", str(port)],
            cwd=clone,
            env=environment(PATH=SYSTEM_PATH),
            stdout=log,
            stderr=log,
        ) as process,
    ):
        wait_until_served(client, process, log_file)
        assert client.get("/health/ready").status_code == 200
        assert client.get("/docs").status_code == 200
        process.send_signal(signal.SIGINT)
        process.wait(START_TIMEOUT)

    assert (tmp_path / "my-service/.copier-answers.yml").is_file()
    wait_until_nothing_runs(tmp_path / "my-service")

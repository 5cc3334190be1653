"""The documentation is true: tables are compared with the code, the tutorial is typed."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.benchmark import report
from tests.support.databases import Database
from tests.support.pages import DOCS, Typist, blocks, page_text, shows, table
from tests.support.pictures import COLOURS, FOLDER, draw, record
from tests.support.processes import (
    START_TIMEOUT,
    environment,
    free_port,
    open_client,
    wait_until_served,
)
from tests.support.releases import NEXT, WORKING_TREE, check_clean, update
from tests.support.repository import REPOSITORY, commit, git, names_of_tests, text_files
from tests.support.services import Service, render, render_repository

pytestmark = pytest.mark.fast

PAGES = sorted([*DOCS.rglob("*.md"), *REPOSITORY.glob("*.md")])
SECTIONS = ("how-to", "reference", "explanation")
EXAMPLE_ID = "e0d7cd0510c7eb84e7e7722075ce9763"


def test_every_setting_is_documented_with_its_default(service: Service) -> None:
    program = (
        "from app.settings import Settings\n"
        "for name, field in Settings.model_fields.items():\n"
        "    value = field.default\n"
        "    print(name.upper(), value if not isinstance(value, tuple) else ','.join(value))\n"
    )
    printed = service.run("uv", "run", "--no-sync", "python", "-c", program).stdout
    defaults = dict(line.split(" ", 1) for line in printed.splitlines())
    other = {"sqlite": "PostgreSQL", "postgresql": "SQLite"}[service.database]
    rows = {name: cells for name, cells in table("reference/settings.md").items() if name.isupper()}

    assert {name for name, cells in rows.items() if cells[0] != other} == defaults.keys()
    for name, default in defaults.items():
        documented = rows[name][3].strip("`").lower()
        if name != "DATABASE_URL":
            assert documented.replace("empty", "") == default.lower(), name
        elif service.database == "sqlite":
            assert default in documented


def names_in(nodes: Iterable[ast.AST | None]) -> set[str]:
    found = (part for node in nodes if node for part in ast.walk(node))
    return {part.id for part in found if isinstance(part, ast.Name)}


def test_every_request_body_of_a_page_refuses_unknown_fields() -> None:
    found, open_bodies = set(), set()
    for path in PAGES:
        code = [
            textwrap.dedent(block.text)
            for block in blocks(path.read_text())
            if block.language == "python" and not block.title.startswith("old/")
        ]
        nodes = [node for text in code for node in ast.parse(text).body]
        classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
        handlers = [
            node for node in nodes if isinstance(node, ast.AsyncFunctionDef) and node.decorator_list
        ]
        given = names_in(part.annotation for node in handlers for part in node.args.args)
        for name in (names := [*given & classes.keys()]):  # grows while it is iterated
            fields = (node for node in classes[name].body if isinstance(node, ast.AnnAssign))
            names += (names_in(node.annotation for node in fields) & classes.keys()) - {*names}
            text, base = "", name
            while base in classes:
                text += ast.unparse(classes[base])
                base = next(iter(names_in(classes[base].bases)), "")
            if base == "BaseModel":
                found.add(name)
                if "extra='forbid'" not in text:
                    open_bodies.add(f"{path.name}: {name}")
    assert len(found) > 10
    assert open_bodies == set()


def test_every_status_is_met_with_the_members_of_the_reference(
    service: Service, migrated: Database
) -> None:
    page = page_text("reference/errors.md")
    documented = table("reference/errors.md")
    item = {"name": "Spanner"}

    with service.serve(**migrated.variables, MAX_BODY_SIZE="1000") as server:
        http = server.client
        path = http.post("/items", json=item).headers["location"]
        refused = http.post("/items", json={"name": ""})
        met = [
            refused,
            http.get("/items?limits=5"),
            http.post("/items", content=b"\xff", headers={"Content-Type": "application/json"}),
            http.get("/nowhere"),
            http.put("/items"),
            http.post("/items", json=item),
            http.patch(path, json=item, headers={"If-Match": '"2"'}),
            http.post("/items", json={"name": "a" * 1000}),
            http.post("/items", content=b"<item/>", headers={"Content-Type": "text/xml"}),
        ]
        migrated.take_away()
        met.append(http.get("/items"))
        migrated.give_back()

    # 500 would be a defect, and the example does not require a tag; a service's own tests do both.
    assert {str(response.status_code) for response in met} | {"428", "500"} == {
        name for name in documented if name.isdigit()
    }
    assert {name for response in met for name in response.json()} == {
        name for name in documented if name.isidentifier()
    }

    program = (
        "from app.problems import KINDS, UNKNOWN, make_problem\n"
        "for code, kind in [*KINDS.items(), (503, UNKNOWN)]:\n"
        "    print(make_problem(code, kind).model_dump_json(exclude_none=True))\n"
    )
    made = service.run("uv", "run", "--no-sync", "python", "-c", program).stdout.splitlines()
    kinds = {(kind["type"], str(kind["status"])): kind for kind in map(json.loads, made)}
    rows = {(name, cells[0]) for name, cells in documented.items() if name.startswith("/problems/")}
    assert rows == kinds.keys()
    for response in met:
        if response.json()["type"] != "about:blank" or response.status_code == 404:
            assert re.sub(r"[0-9a-f]{32}", EXAMPLE_ID, response.text) in page
    for kind in kinds.values():
        line = json.dumps(kind | {"request_id": EXAMPLE_ID}, separators=(",", ":"))[:-1]
        assert line in page


def test_the_line_of_a_request_has_the_documented_names(
    service: Service, migrated: Database
) -> None:
    rows = table("reference/log.md")

    with service.serve(LOG_FORMAT="json", **migrated.variables) as server:
        server.client.get("/items")
        server.stop(signal.SIGTERM)

    lines = [json.loads(line) for line in server.log().splitlines()]
    [line] = [line for line in lines if line["logger"] == "app.access"]
    assert list(line) == [
        name for name, cells in rows.items() if cells[0] in ("all", "a request's")
    ]
    everywhere = {name for name, cells in rows.items() if cells[0] == "all"}
    assert all(everywhere <= line.keys() for line in lines)


def test_every_file_is_documented_with_its_owner(template: Path, tmp_path: Path) -> None:
    files = text_files(render(template, tmp_path / "service"))

    assert table("reference/files.md").keys() == files.keys()


def test_an_update_does_to_each_file_what_is_due_to_its_owner(
    template: Path, database_name: str, tmp_path: Path
) -> None:
    owners = {name: cells[0] for name, cells in table("reference/files.md").items()}
    template = Path(shutil.copytree(template, tmp_path / "template"))
    service = render_repository(
        template, tmp_path / "service", release=WORKING_TREE, database=database_name
    )
    deleted = {"app/features/items/schemas.py", "app/features/settings.py", "tests/test_health.py"}
    mine = {}
    for name, text in text_files(service).items():
        mine[name] = f"# mine\n{text}" if text and owners[name] != "Copier" else text
        (service / name).write_text(mine[name])
    for name in deleted:
        (service / name).unlink()
    others = {"uv.lock": "locked\n", "migrations/versions/own.py": "own\n", "app/own.py": "own\n"}
    for name, text in others.items():
        (service / name).write_text(text)
    commit(service, "Edit every file")
    (service / ".env").write_text("LOG_LEVEL=DEBUG\n")
    for file in (template / "template").rglob("*"):
        if (
            file.is_file()
            and "{%" not in file.name
            and "template/variants/" not in file.read_text()
        ):
            file.write_text(f"{file.read_text()}# newer\n")
    commit(template, "Change every file")
    git(template, "tag", NEXT)

    update(service, NEXT)

    check_clean(service)
    after = text_files(service)
    assert after.pop(".copier-answers.yml").count(NEXT) == 1
    assert after.pop(".env") == "LOG_LEVEL=DEBUG\n"
    assert after == others | {
        name: mine[name] if owner == "service" else f"{mine[name]}# newer\n"
        for name, owner in owners.items()
        if owner != "Copier" and name not in deleted
    }


def test_every_question_is_documented_with_its_default(template: Path, tmp_path: Path) -> None:
    folder = render(template, tmp_path / "service")
    answers = yaml.safe_load((folder / ".copier-answers.yml").read_text())
    rows = table("reference/questions.md")

    asked = {name for name in answers if not name.startswith("_")} - {"checksum"}
    assert asked <= rows.keys()
    for name in asked - {"project_slug"}:
        assert rows[name][0] == f"`{answers[name]}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_fast_run_is_what_the_contributors_guide_says() -> None:
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text()
    _, _, section = guide.partition("| in `--fast` |")
    documented = set(re.findall(r"^\| `(?:tests/)?(test_\w+)", section, re.MULTILINE))
    command = [sys.executable, "-m", "pytest", "--fast", "--collect-only", "--quiet"]
    found = subprocess.run(
        [*command, "--numprocesses", "0", "--verbosity=-1", "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tests = re.findall(r"^tests/(test_\w+)\.py::(test_\w+)", found, re.MULTILINE)

    assert len(tests) > 200
    assert {name if name in documented else module for module, name in tests} == documented
    assert not {name for _, name in tests} & {"test_the_tutorial_works_as_it_stands_on_the_page"}


def test_every_helper_of_the_tests_is_listed_and_no_test_module_is_one() -> None:
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text()
    modules = [*(REPOSITORY / "tests").glob("test_*.py")]
    imported = re.compile(r"^(?:from|import) tests\.test_|^from tests import test_", re.MULTILINE)

    assert [file.name for file in modules if imported.search(file.read_text())] == []
    for file in (REPOSITORY / "tests/support").glob("[!_]*"):
        assert f"`{file.name}{'/' * file.is_dir()}`" in guide, file
    for module in modules:
        assert f"| `tests/{module.name}` |" in guide, module


KINDS = ["Breaking", "Added", "Changed", "Fixed", "Removed"]


def wrong_in(changelog: str) -> Iterator[str]:
    """Yield what has another form than "Releases" says. A fork's are above, and its own affair."""
    _, found, upstream = changelog.partition("## Unreleased\n")
    for release in f"{found}{upstream}".split("\n## "):
        head, *sections = release.split("\n### ")
        title, *before = filter(None, head.splitlines())
        kinds = [section.partition("\n")[0] for section in sections]
        if before and "Unreleased" not in title:
            yield f"{title}: text ahead of its kinds"
        if kinds != [kind for kind in KINDS if kind in kinds]:
            yield f"{title}: {kinds}"
        for section in sections:
            for entry in section.split("\n- ")[1:]:
                if entry.count("\n\n  *Update:* ") != 1:
                    yield f"{title}: no one update of: {entry}"


def test_the_changelog_has_the_form_that_the_contributors_guide_says() -> None:
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text()
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    entry = "- One.\n\n  *Update:* nothing to do.\n"
    release = f"## 0.1.0 - 2027-01-31\n\n### Breaking\n\n{entry}{entry}\n### Fixed\n\n{entry}"
    wrong = [
        release.replace("\n\n###", "\n\nUntil then.\n\n###", 1),
        release.replace("Fixed", "Repaired"),
        release.replace("Breaking", "Removed"),
        release.replace("\n\n  *Update:* nothing to do.", "", 1),
    ]

    assert re.findall(r"`### (\w+)`", guide.partition("\n## Releases\n")[2]) == KINDS
    assert [*wrong_in(changelog)] == []
    assert [*wrong_in(f"## Unreleased\n\nUntil then.\n\n{release}")] == []
    assert [len([*wrong_in(f"## Unreleased\n\n{each}")]) for each in wrong] == [1, 1, 1, 1]


def test_the_tables_of_the_benchmark_are_its_figures() -> None:
    page = page_text("explanation/performance.md")
    figures = json.loads((DOCS / "explanation/benchmark.json").read_text())

    assert report.with_tables(page, report.tables(figures)) == page
    readme = report.README.read_text()
    assert report.with_tables(readme, {"cost": report.cost(figures)}) == readme


def test_every_hazard_names_tests_that_exist_or_says_why_there_is_none() -> None:
    page = page_text("explanation/hazards.md")
    rows = re.findall(r"^\| H(\d+) \|.*\| (.+?) \|$", page, re.MULTILINE)
    tests = names_of_tests()

    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    for _, shown in rows:
        names = re.findall(r"`(test_\w+)`", shown)
        assert names or re.match(r"none: \w", shown), shown
        assert set(names) <= tests


def test_each_file_of_app_and_all_that_it_defines_has_a_reason(service: Service) -> None:
    page = page_text("explanation/why-each-file.md")
    app = service.folder / "app"
    modules = [file for file in sorted(app.rglob("*.py")) if app / "features" not in file.parents]

    assert table("explanation/why-each-file.md").keys() == {
        file.relative_to(service.folder).as_posix() for file in modules
    }
    for file in modules:
        [row] = re.findall(
            rf"^\| `{file.relative_to(service.folder)}` \| (.+) \|$", page, re.MULTILINE
        )
        reasons = set(re.findall(r"`(\w+)[^`]*`", row))
        assert defined_in(ast.parse(file.read_text())) <= reasons, file
    hazards, rules = page_text("explanation/hazards.md"), page_text("reference/engine-rules.md")
    for kind, number in re.findall(r"\b([HE])(\d+)\b", page):
        assert f"\n| {kind}{number} |" in {"H": hazards, "E": rules}[kind], kind + number


def defined_in(module: ast.Module) -> set[str]:
    """Return the functions and classes of a module, and its constants but the plainest."""
    found = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= names_of_tests()


def test_every_time_limit_is_explained_with_its_default(
    template: Path, database_name: str, tmp_path: Path
) -> None:
    files = text_files(render(template, tmp_path / "service", database=database_name))
    page = page_text("explanation/timeouts.md")
    other = {"sqlite": "PostgreSQL", "postgresql": "SQLite"}[database_name]
    explained = {}
    for name, database, seconds, file in re.findall(
        r"^\| `([^`]+)` \| (\w+) \| ([\d.]+) s \| `([^`]+)` \|", page, re.MULTILINE
    ):
        if database != other:
            found = re.search(rf"{name}\W[^\d\n]*([\d._]+)", files[file], re.IGNORECASE)
            assert found, name
            own = name.startswith(("idle_", "client_"))  # PostgreSQL's, in milliseconds
            assert float(found[1]) / (1000 if own else 1) == float(seconds), name
            explained[name] = float(seconds)
    limits = re.compile(
        r"^ *(database_\w+_timeout): |^([A-Z_]+_TIMEOUT|PING_AFTER) = ", re.MULTILINE
    )
    defined = {
        (setting or constant).upper()
        for name, text in files.items()
        if name.startswith(("app/", "migrations/"))
        for setting, constant in limits.findall(text)
    }

    assert defined <= explained.keys()
    ends = ("GRACEFUL_TIMEOUT", "DISPOSE_TIMEOUT", "SHUTDOWN_TIMEOUT")
    assert sum(explained[name] for name in ends) < explained["stop_grace_period"]


def messages(module: Path) -> Iterator[str]:
    """Yield each message of level WARNING or above that a module logs, `…` for what differs."""
    texts: dict[str, list[str]] = {}  # by the names that they are given
    said: list[ast.expr] = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names, values = (
                    each.elts if isinstance(each, ast.Tuple) else [each]
                    for each in (target, node.value)
                )
                for name, value in zip(names, values, strict=False):
                    if isinstance(value, ast.Constant):
                        texts.setdefault(ast.unparse(name), []).append(str(value.value))
        elif isinstance(node, ast.Call) and re.search(
            r"logger\.(warning|error|exception|critical)$", ast.unparse(node.func)
        ):
            said.append(node.args[0])
    found = texts.get("record.msg", [])  # in the place of another's message
    for text in said:
        found += [str(text.value)] if isinstance(text, ast.Constant) else texts[ast.unparse(text)]
    yield from (re.sub(r"%(\.\d)?\w", "…", text) for text in found)


def test_whatever_the_log_warns_of_has_a_row_that_says_what_to_do() -> None:
    modules = [
        module
        for module in (REPOSITORY / "template").rglob("*.py")
        if {"app", "migrations"} & set(module.parts) and "tests" not in module.parts
    ]
    logged = {message for module in modules for message in messages(module)}
    rows = table("how-to/operate.md", "What the log asks for")
    levels = {"WARNING", "ERROR", "CRITICAL"}
    answered = {name.strip("`") for name, cells in rows.items() if cells[0] in levels}

    assert answered == logged


def test_each_reason_of_a_503_has_a_row_that_says_what_to_do() -> None:
    explained = page_text("reference/errors.md").partition("\n## 503\n")[2].partition("\n## ")[0]
    [*items] = re.findall(r"^- ((?:`[^`]+`,? ?)+)", explained, re.MULTILINE)
    rows = table("how-to/operate.md", "What the log asks for")
    answered = "".join(name for name in rows if name.startswith("`"))

    reasons = set(re.findall(r"`([^`]+)`", "".join(items)))
    assert len(reasons) > 20
    assert reasons <= set(re.findall(r"`([^`]+)`", answered))


@pytest.mark.long
def test_the_picture_of_the_readme_shows_what_happens(template: Path) -> None:
    lines = record(template)

    for scheme in COLOURS:
        shown, drawn = (FOLDER / f"session-{scheme}.svg").read_text(), draw(lines, scheme)
        # Moments and request ids are those of their day.
        assert re.sub(r"[0-9a-f]{32}|\d", "#", shown) == re.sub(r"[0-9a-f]{32}|\d", "#", drawn)


@contextmanager
def left_running(command: list[str], folder: Path, port: str) -> Iterator[None]:
    """Leave a command that serves running in a terminal of its own."""
    log = folder.parent / "log"
    with (
        log.open("wb") as output,
        open_client(f"http://127.0.0.1:{port}") as client,
        subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=output, stderr=output
        ) as process,
    ):
        wait_until_served(client, process, log)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(START_TIMEOUT)


@pytest.mark.long
def test_the_tutorial_works_as_it_stands_on_the_page(
    template: Path, database_name: str, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(template), str(clone))
    port = str(free_port())
    # A terminal shows no progress of curl's between two answers.
    typist = Typist(clone, instead={r"\b8000\b": port, r"^curl ": "curl -sS "})
    typed: list[str] = []
    commands = printed = ""

    with ExitStack() as other_terminal:
        for block in blocks(page_text("tutorial/first-feature.md")):
            if block.language == "sh":
                commands = block.text
                typed += commands.splitlines()
                if commands.startswith("python3 dev.py new"):
                    if commands.endswith(" postgresql\n") == (database_name == "postgresql"):
                        new = [sys.executable, *commands.split()[1:], "--port", port]
                        other_terminal.enter_context(left_running(new, clone, port))
                else:
                    printed = typist.type(commands)
            elif block.language == "text":
                # Until it fits, type again: as the page says, or while the server reloads.
                end = time.monotonic() + 10
                while not shows(printed, block.text):
                    assert time.monotonic() < end, f"{printed}\n\nis not\n\n{block.text}"
                    time.sleep(0.5)
                    printed = typist.type(commands)
            else:
                pattern = block.title or "migrations/versions/*_create_notes.py"
                [written] = typist.folder.glob(pattern)
                assert block.text.strip() in written.read_text()
        assert httpx2.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
        assert len(set(typed[: typed.index("uv run poe check") + 1])) <= 15


def test_every_claim_of_the_readme_and_every_page_names_what_shows_it() -> None:
    evidence = page_text("explanation/evidence.md")
    rows = re.findall(r"^\| (\S.*?) \| (.+) \|$", evidence, re.MULTILINE)
    readme = (REPOSITORY / "README.md").read_text().split("What this one leaves out")[0]
    claims = set(re.findall(r"^\| ([^|]+?) \| \S", readme, re.MULTILINE)) - {"---"}
    pages = {
        os.path.relpath(page, DOCS / "explanation")
        for page in DOCS.rglob("*.md")
        if page.name not in {"index.md", "evidence.md"}
    }

    shown = {name: tests for name, tests in rows if "`test" in tests}
    assert claims <= shown.keys()
    assert set(re.findall(r"\]\((\S+?)\)", "".join(shown))) == pages


def test_every_page_is_in_the_index_of_its_section_and_in_the_navigation() -> None:
    navigation = re.findall(r"- (\S+/\S+\.md)", (DOCS / ".nav.yml").read_text())

    for index in DOCS.glob("*/index.md"):
        section = index.parent.name
        ours = [page.removeprefix(f"{section}/") for page in navigation if page.startswith(section)]
        named = re.findall(r"^- \[.*?\]\((\S+\.md)\)", index.read_text(), re.MULTILINE)
        assert ours == ["index.md", *named]
    assert sorted(navigation) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.glob("*/*.md")
    )


def test_readme_start_page_and_tutorial_begin_alike_and_lead_to_the_same_doors() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    start = page_text("index.md")
    first, tutorial, pages = (
        [block.text for block in blocks(text) if block.language == "sh"]
        for text in (readme, page_text("tutorial/first-feature.md"), start)
    )
    doors = ["tutorial/first-feature.md", *(f"{name}/index.md" for name in SECTIONS)]

    assert first[:2] == pages
    assert first[0] == tutorial[0] == "python3 dev.py new\n"
    assert re.findall(r"^- \*\*\[.*?\]\((\S+)\)", start, re.MULTILINE) == doors
    assert re.findall(r"^\| [a-z ]+ \| \[.*?\]\(docs/(\S+)\)", readme, re.MULTILINE) == doors


def test_the_start_page_compares_as_the_readme_does() -> None:
    compared = (REPOSITORY / "README.md").read_text().partition("## Beside other templates")[2]
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", compared, re.MULTILINE))
    short = re.findall(r"^\| (.+?) \| (.+) \| (.+) \|$", page_text("index.md"), re.MULTILINE)

    assert len(short) > 10
    for name, this, others in short[1:]:
        ours, *theirs = rows[name].split(" | ")
        assert this == ours, name
        if " to " in others:
            assert [int(number) for number in others.split(" to ")] == [
                limit(map(int, theirs)) for limit in (min, max)
            ]
        else:
            counted = {f"{cell} ({theirs.count(cell)})" for cell in theirs}
            assert set(others.split(", ")) == counted, name

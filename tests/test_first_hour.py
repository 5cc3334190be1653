"""The first commands, in the environments of those who type them: each failure is a sentence."""

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.processes import environment, free_port, interrupt_import, wait_for
from tests.support.repository import REPOSITORY, replace
from tests.support.services import FIRST, Service

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# Does as uv would, as far as `dev.py` can see; the names in braces are what a test adds.
UV = """\
#!/bin/sh
case "$*" in
    --version) echo "uv {version}" ;;
    *copier*)
        for folder; do :; done
        echo '{commit}' > "$folder/.copier-answers.yml"; mkdir "$folder/app"; {copier} ;;
    "run python -c ") {install} ;;
    *) echo "served in $PWD"; env | grep ^DATABASE_ ;;
esac
"""


class Newcomer:
    """Somebody with a copy of the template and a uv, who types `python3 dev.py new`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = folder / "template"
        (self.template / ".git").mkdir(parents=True)
        shutil.copy(REPOSITORY / "dev.py", self.template)
        self.service = folder / "my-service"

    def install_uv(
        self,
        step: str = "",
        also: str = ":",
        *,
        own: bool = False,
        version: str = "0.13.9",
        commit: str = "_commit: 1.2.0",
    ) -> Path:
        """Have a uv on the path, or the one that `dev.py` has installed; `step` does `also`."""
        steps = {"copier": ":", "install": ":"} | ({step: also} if step else {})
        uv = (self.template / ".uv/bin" if own else self.folder / "bin") / "uv"
        uv.parent.mkdir(parents=True)
        uv.write_text(UV.format(version=version, commit=commit, **steps))
        uv.chmod(0o755)
        return uv

    def type(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        path = f"{self.folder / 'bin'}:{SYSTEM_PATH}"
        return subprocess.Popen(
            [sys.executable, "dev.py", "new", *words],
            cwd=self.template,
            env=environment(PATH=path) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def read(self, *words: str, **variables: str) -> tuple[int, str]:
        process = self.type(*words, **variables)
        said, _ = process.communicate(timeout=60)
        assert "Traceback" not in said
        return process.returncode, said


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "70000 is none from 1 to 65535"),
        (["--port", "-1"], "-1 is none from 1 to 65535"),
        (["--port", "0"], "0 is none from 1 to 65535"),
        (["--folder", "dev.py"], "dev.py is no folder"),
        (["--folder", "dev.py/service"], "dev.py is no folder"),
        (["--folder", "a$HOME"], "tools fail in a path with '$'"),
        (["--folder", "a:b"], "tools fail in a path with ':'"),
        (["--folder", 'a"b'], "tools fail in a path with '\"'"),
        (["--folder", "a`b"], "tools fail in a path with '`'"),
        (["--folder", "a\nb"], r"tools fail in a path with '\n'"),
        (["--folder", "/".join(["a" * 200] * 3)], "too long for SQLite"),
        (["--folder", "a" * 300], "File name too long"),
    ],
)
def test_what_cannot_work_is_reported_before_anything_is_written(
    newcomer: Newcomer, words: list[str], told: str
) -> None:
    newcomer.install_uv("copier", "exit 7")

    code, said = newcomer.read(*words)

    assert code in (1, 2)
    assert told in said.splitlines()[-1]
    assert {path.name for path in newcomer.template.iterdir()} == {".git", "dev.py"}


@pytest.mark.fast
@pytest.mark.parametrize("failing", ["copier", "install"])
@pytest.mark.parametrize("made", [True, False])
def test_what_could_not_be_completed_is_removed(
    newcomer: Newcomer, failing: str, made: bool
) -> None:
    newcomer.install_uv(failing, "echo no network >&2; exit 2")
    folder = newcomer.folder / "new" / "service"
    if made:
        folder.mkdir(parents=True)

    code, said = newcomer.read("--folder", str(folder))

    assert code == 1
    assert "no network" in said
    assert "HTTPS_PROXY" in said.splitlines()[-1]
    assert folder.parent.exists() == made
    assert not (made and list(folder.iterdir()))


@pytest.mark.fast
@pytest.mark.parametrize("step", ["copier", "install"])
def test_an_interrupted_creation_leaves_nothing(newcomer: Newcomer, step: str) -> None:
    reached = newcomer.folder / "reached"
    newcomer.install_uv(step, f"touch {reached}; sleep 60")

    process = newcomer.type("--port", str(free_port()))
    wait_for(reached.exists, 60)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in said
    assert not newcomer.service.exists()


@pytest.mark.fast
def test_an_interrupted_step_may_have_ended_already() -> None:
    ended = (
        "import dev, subprocess\n"
        "process = subprocess.Popen(['true'], process_group=0)\n"
        "process.wait()\n"
        "dev.end_group(process)\n"
    )
    command = [sys.executable, "-B", "-c", ended]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.fast
def test_the_shells_database_is_not_used_and_that_is_reported(newcomer: Newcomer) -> None:
    newcomer.install_uv()

    _, said = newcomer.read(DATABASE_URL="mysql://user:hunter2@host/shop", DATABASE_POOL_SIZE="9")

    assert "unset DATABASE_POOL_SIZE DATABASE_URL" in said
    assert "hunter2" not in said
    assert said.splitlines()[-1] == f"served in {newcomer.service}"


@pytest.mark.fast
@pytest.mark.parametrize("version", [None, "0.4.30"])
def test_without_uv_the_way_to_it_is_printed_before_the_service_starts(
    newcomer: Newcomer, version: str | None
) -> None:
    own = newcomer.install_uv(own=True)
    if version:
        newcomer.install_uv(version=version)

    _, said = newcomer.read()

    [line] = [line.strip() for line in said.splitlines() if "export" in line]
    assert said.index(line) < said.index("served in")
    found = subprocess.run(
        ["/bin/sh", "-c", f"{line}; command -v uv"],
        env=environment(PATH=SYSTEM_PATH),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(own)


@pytest.mark.fast
def test_a_clone_that_takes_no_uv_names_another_way(newcomer: Newcomer) -> None:
    (newcomer.template / ".uv").write_text("")  # as in a folder that can't be written to

    code, said = newcomer.read()

    assert code == 1
    assert "https://docs.astral.sh/uv/" in said.splitlines()[-1]
    assert not newcomer.service.exists()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("commit", "kept"),
    [
        ("_commit: 1.2.0", True),
        ("_commit: v1.2.0-3-g6c64cce", True),
        ("_commit: 6c64cce", False),  # of a clone without tags
        ("", False),  # of a ZIP
    ],
)
def test_a_service_from_a_template_without_versions_says_that_no_release_can_update_it(
    newcomer: Newcomer, commit: str, kept: bool
) -> None:
    newcomer.install_uv(commit=commit)

    _, said = newcomer.read()

    assert ("No release can update it" in said) == (not kept)
    assert "served in" in said


@pytest.mark.fast
def test_an_older_python_says_which_one_is_needed() -> None:
    source = (REPOSITORY / "dev.py").read_text()
    ast.parse(source, feature_version=(3, 6))
    older = "import sys; sys.version_info = (3, 6, 15); exec(open('dev.py').read())"

    done = subprocess.run(
        [sys.executable, "-c", older], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert re.fullmatch(r"Python 3\.11 or newer is needed, and this is \S+\.\n", done.stderr)


UNREADABLE = {
    "UTF-16": ("LOG_LEVEL=INFO\n".encode("utf-16"), "not in UTF-8"),
    "UTF-16 without its mark": ("LOG_LEVEL=INFO\n".encode("utf-16-le"), "not in UTF-8"),
    "Latin-1": ("# Schlüssel\nLOG_LEVEL=INFO\n".encode("latin-1"), "not in UTF-8"),
    "an open quote": (b'LOG_FORMAT=text\nLOG_LEVEL="hunter2\n', ".env, line 2"),
}


def test_an_unreadable_env_file_is_reported_in_one_line(service: Service, tmp_path: Path) -> None:
    copy = service.copy(tmp_path / "service")
    commands = [
        "alembic current",
        "python -m app.doctor",
        "python -m app.server",
        "python -m scripts.dev",
    ]

    for (content, told), command in zip(UNREADABLE.values(), commands, strict=True):
        (copy.folder / ".env").write_bytes(content)
        program, *words = command.split()
        done = copy.run(f".venv/bin/{program}", *words, check=False)

        assert done.returncode == 1, command
        assert len(done.stdout.splitlines()) == 1, done.stdout
        assert told in done.stdout
        assert "hunter2" not in done.stdout
    assert not (copy.folder / "app.db").exists()
    assert not (copy.folder / ".postgres").exists()


def test_the_doctor_names_what_keeps_the_service_from_starting(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    registration = copy.folder / "app/features/registration.py"
    routes = copy.folder / "app/features/items/routes.py"
    models = copy.folder / "app/features/items/models.py"

    for file, text, told in [
        (registration, "    app.include_router(nothing)\n", "NameError in app/features/regist"),
        (models, "from app import nothing\n", "ImportError in app/features/items/models.py"),
        (routes, "def\n", "SyntaxError: .*items/routes.py, line "),
    ]:
        with file.open("a") as source:
            source.write(text)
        command = (".venv/bin/python", "-m", "app.doctor")
        done = copy.run(*command, variables=migrated.variables, check=False)

        assert done.returncode == 1
        assert re.search(f"WRONG code      the service can't start: {told}", done.stdout)
        assert "ok    schema    up to date" in done.stdout
        assert "Traceback" not in done.stdout


def test_the_options_of_poe_dev_are_checked_before_the_database_is_touched(
    service: Service, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        for option, value, told in [
            ("--port", "70000", "port 70000: not between 0 and 65535"),
            ("--port", taken, "name another with --port"),
            ("--prot", "8001", "No such option '--prot'"),
        ]:
            done = copy.run(".venv/bin/python", "-m", "scripts.dev", option, value, check=False)

            assert done.returncode in (1, 2)
            assert told in done.stdout.splitlines()[-1]
            assert "Traceback" not in done.stdout
    assert not (copy.folder / "app.db").exists()
    assert not (copy.folder / ".postgres").exists()


@pytest.mark.parametrize("imported", ["alembic", "pydantic_settings", "uvicorn.main"])
def test_ctrl_c_during_the_imports_is_no_traceback(
    service: Service, database: Database, imported: str
) -> None:
    rest = interrupt_import(service.folder, imported, "-m", "scripts.dev", **database.variables)

    assert "Traceback" not in rest


def test_a_failing_migration_is_reported_by_its_line(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    for wrong, told in [
        ("op.execute('UPDATE item SET name = 1')", "item"),
        ("int('hunter2')", "ValueError"),
        ("def", "SyntaxError"),
    ]:
        copy.add_revision("wrong", FIRST, ["pass  # here", wrong])
        done = copy.run(
            ".venv/bin/alembic", "upgrade", "head", variables=migrated.variables, check=False
        )

        last = done.stdout.splitlines()[-1]
        assert done.returncode != 0
        assert "versions/wrong.py, line 1" in last
        assert told in last
        assert "Traceback" not in done.stdout


def test_a_migration_that_would_drop_values_is_announced(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    models = copy.folder / "app/features/items/models.py"
    replace(models, "    description: Mapped", "    remark: Mapped")

    def autogenerate(message: str) -> str:
        words = ("revision", "--autogenerate", "-m", message)
        return copy.run(".venv/bin/alembic", *words, variables=migrated.variables).stdout

    column = "Dropping items.description loses its values. If it was renamed, alter_column("
    assert column in autogenerate("rename a column")
    [renamed] = (copy.folder / "migrations/versions").glob("*_rename_a_column.py")
    renamed.unlink()
    models.unlink()
    table = "Dropping items loses its values. If it was renamed, rename_table("
    assert table in autogenerate("rename a table")


def test_the_readme_takes_the_example_out_of_a_service_that_has_run(
    service: Service, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    with copy.serve("uv", "run", "poe", "dev"):
        pass
    readme = (copy.folder / "README.md").read_text().partition("### Without the example")[2]
    block = readme.partition("```console\n")[2].partition("```")[0]
    first, second = (line.removeprefix("$ ") for line in block.splitlines())
    registration = copy.folder / "app/features/registration.py"

    copy.run("sh", "-c", first)
    for line in re.findall(r".*items.*\n", registration.read_text()):
        if not line.strip().startswith("#"):
            replace(registration, line, "")
    refused = copy.run(
        "uv", "run", "--no-sync", "poe", "dev", "--port", str(free_port()), check=False
    )
    assert refused.returncode == 1
    assert "one that was deleted here" in refused.stdout.splitlines()[-1]

    wait_for(lambda: not (copy.folder / ".postgres/data/postmaster.pid").exists())
    copy.run("sh", "-c", second)
    with copy.serve("uv", "run", "--no-sync", "poe", "dev") as server:
        assert server.client.get("/items").status_code == 404
        assert server.client.get("/health/live").status_code == 200


def test_a_setting_without_its_value_for_the_tests_is_named_once(
    service: Service, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    settings = copy.folder / "app/features/settings.py"
    settings.write_text(settings.read_text() + "\n    payment_token: str\n")

    done = copy.run(".venv/bin/pytest", "-q", check=False)

    told = "payment_token: set it in REQUIRED of tests/features/conftest.py."
    assert done.returncode == 4
    assert done.stdout.split("\n")[0] == f"ERROR: {told}"
    assert done.stdout.count("payment_token") == 1

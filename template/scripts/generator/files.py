"""The files of a feature: all are written, or none."""

import argparse
import ast
import importlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alembic.autogenerate import render_python_code
from alembic.config import Config
from alembic.operations.ops import CreateIndexOp, CreateTableOp, UpgradeOps
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import rev_id

from app.database.dialect import Dialect
from app.database.type_checks import PREFIX
from migrations.autogenerate import OPTIONS, render_item
from migrations.metadata import metadata
from migrations.runner import TWO_HEADS
from scripts.generator.feature import FEATURES, HERE, VERSIONS, Feature
from scripts.generator.names import RefusedError

REGISTRATION = FEATURES / "registration.py"
DOCUMENT = HERE / "openapi.json"
MODULES = ("__init__", "models", "queries", "schemas", "routes")
MAX_BYTES = 63  # of the name of a table, a CHECK, a key or an index


def write(feature: Feature) -> list[Path]:
    """Write all files of a feature, and return their paths."""
    texts = {feature.folder / f"{module}.py": feature.render(module) for module in MODULES}
    texts[feature.tests] = feature.render("tests")
    texts[REGISTRATION] = register(REGISTRATION.read_text("utf-8"), feature.plural)
    config = Config(toml_file=HERE / "pyproject.toml", cmd_opts=argparse.Namespace(quiet=True))
    migrations = ScriptDirectory.from_config(config)
    migrations.hooks = []  # the new one is formatted with the other files
    if len(migrations.get_heads()) > 1:
        raise RefusedError(f"There are {TWO_HEADS}.")
    if DOCUMENT.exists():  # so that nothing else is accepted with the feature
        run("The service has to be in order first.", "-m", "scripts.openapi", "--check")
    revision = rev_id()
    with all_or_nothing(feature, revision):
        feature.folder.mkdir(exist_ok=True)
        for file, text in texts.items():
            file.write_text(text, "utf-8")
        upgrade, downgrade = describe_table(feature)
        script = migrations.generate_revision(
            revision,
            f"create {feature.plural}",
            upgrades=upgrade,
            downgrades=downgrade,
            imports="from app import database",
        )
        files = [*texts, *([Path(script.path)] if script else [])]
        tidy(files)
        run("The service does not start with it.", "-m", "scripts.openapi")
    return [*files, DOCUMENT]


def register(text: str, plural: str) -> str:
    """Return the text of `registration.py` with the feature's router below all others."""
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = [node for node in functions if node.name == "add_features" and node.args.args]
    if not found or not imports:
        raise RefusedError("app/features/registration.py has no function add_features(app).")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.asname or node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    app = found[0].args.args[0].arg
    if plural in names | {app}:
        raise RefusedError(f"app/features/registration.py has something called {plural} already.")
    lines = text.splitlines()
    lines.insert(found[0].end_lineno or 0, f"    {app}.include_router({plural})")
    imported = f"from app.features.{plural}.routes import router as {plural}"
    lines.insert(imports[-1].end_lineno or 0, imported)
    return "\n".join(lines) + "\n"


def describe_table(feature: Feature) -> tuple[str, str]:
    """Return what Alembic would write for the feature's table: its creation and its dropping."""
    importlib.invalidate_caches()
    importlib.import_module(f"app.features.{feature.plural}.models")
    table = metadata.tables[feature.plural]
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    names = [feature.plural, *(f"{PREFIX}{column.name}" for column in table.columns)]
    names += [str(found.name) for found in table.constraints]
    for name in names + [str(index.name) for index in indexes]:
        if len(name) > MAX_BYTES:
            raise RefusedError(f"{name} would be longer than {MAX_BYTES} characters.")
    made = UpgradeOps([CreateTableOp.from_table(table), *map(CreateIndexOp.from_index, indexes)])
    context = MigrationContext.configure(dialect=Dialect(), opts=OPTIONS)
    upgrade, downgrade = (
        render_python_code(operations, render_item=render_item, migration_context=context)
        for operations in (made, made.reverse())
    )
    comment = re.compile(r"# ###.*\n *|\n *# ###.*")
    return comment.sub("", upgrade), comment.sub("", downgrade)


def tidy(files: Sequence[Path]) -> None:
    """Sort the imports, remove those that no field needs, and format, as `poe fix` does."""
    names = [str(file) for file in files]
    run("", "-m", "ruff", "check", "--fix-only", "--exit-zero", "--quiet", *names)
    run("", "-m", "ruff", "format", "--quiet", *names)


def run(trouble: str, *words: str) -> None:
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"{done.stdout}{done.stderr}{trouble}")


@contextmanager
def all_or_nothing(feature: Feature, revision: str) -> Iterator[None]:
    """Take back what was written if something fails."""
    registration = REGISTRATION.read_bytes()
    document = DOCUMENT.read_bytes() if DOCUMENT.exists() else None
    try:
        yield
    except BaseException:
        for number in (signal.SIGINT, signal.SIGTERM):  # again, out of impatience
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(feature.folder, ignore_errors=True)
        for file in (feature.tests, *VERSIONS.glob(f"*{revision}*")):
            file.unlink(missing_ok=True)
        REGISTRATION.write_bytes(registration)
        if document is None:
            DOCUMENT.unlink(missing_ok=True)
        else:
            DOCUMENT.write_bytes(document)
        raise

"""`poe feature`: write a feature in the style of the example, from the names of its fields.

    uv run poe feature orders article:str quantity:int price:decimal:12,2:optional

All of it is written or nothing, and it is the service's own from then on. `feature_texts/` has the
texts.
"""

import argparse
import ast
import builtins
import importlib
import keyword
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from alembic.autogenerate import render_python_code
from alembic.config import Config
from alembic.operations.ops import CreateIndexOp, CreateTableOp, UpgradeOps
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError, rev_id
from sqlalchemy import Column, MetaData, Numeric, Row, Table
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import RESERVED_WORDS

from app.database import Base, BigIntegerKey, Timestamps
from app.database.columns import PREFIX
from app.database.dialect import Dialect
from app.rest import Versioned
from migrations.autogenerate import OPTIONS, render_item
from migrations.metadata import metadata

HERE = Path(__file__).parent
FEATURES = HERE / "app" / "features"
REGISTRATION = FEATURES / "registration.py"
DOCUMENT = HERE / "openapi.json"
MODULES = ("__init__", "models", "queries", "schemas", "routes")

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MAX_BYTES = 63  # of the name of a table, a column or a constraint
MAX_LENGTH = 10_000_000  # of a text
MAX_UNIQUE_LENGTH = 676  # of a text that fits into an index, whatever its characters
PATHS = {"docs", "health", "openapi", "redoc"}  # the template's
# The attributes of rows and of schemas, which a field of the same name would hide.
TAKEN = {*dir(Base), *dir(Timestamps), *dir(Versioned), *dir(Row)} - {"count", "index"}


class Kind(NamedTuple):
    """What a type of field is in each file; what is in braces differs from field to field."""

    python: str  # in the model and in rows
    column: str  # in the model, unless the Python type says it all
    schema: str
    unset: str  # makes the default, which nobody sees, of a change without this field
    sent: str  # in the tests: a value for each `number` from 1 to 3
    refused: tuple[str, ...]


# fmt: off
KINDS = {
    "str": Kind(
        "str", "String(MAX_{NAME}_LENGTH)", "{alias}",
        "str", "{sample}", ('"a" * {too_long}', r'"a\x00b"', "1"),
    ),
    "int": Kind(
        "int", "", "Integer",
        "int", "number", ("1.5", "2**31"),
    ),
    "bigint": Kind(
        "int", "BigInteger", "BigInteger",
        "int", "2**32 + number", ("1.5", "2**63"),
    ),
    "decimal": Kind(
        "decimal.Decimal", "Numeric({precision}, {scale})", "{alias}",
        "decimal.Decimal", "{sample}", ('"1e{whole}"', '"1e-{finer}"', '"NaN"'),
    ),
    "float": Kind(
        "float", "Double", "FiniteFloat",
        "float", "number + 0.5", ('"NaN"',),
    ),
    "bool": Kind(
        "bool", "", "bool",
        "bool", "number % 2 == 1", ('"perhaps"',),
    ),
    "date": Kind(
        "datetime.date", "", "Date",
        "datetime.date.today", 'f"2026-01-0{{number}}"', ('"2026-02-30"', '"0001-01-01"'),
    ),
    "time": Kind(
        "datetime.time", "", "Time",
        "datetime.time", 'f"12:00:0{{number}}"', ('"noon"', '"12:00:00Z"'),
    ),
    "datetime": Kind(
        "datetime.datetime", "", "DateTime",
        "utc_now", 'f"2026-01-01T12:00:0{{number}}Z"', ('"2026-01-01T12:00:00"',),
    ),
    "uuid": Kind(
        "uuid.UUID", "", "uuid.UUID",
        "uuid.uuid4", "str(uuid.UUID(int=number))", ('"1"',),
    ),
    "json": Kind(
        "Any", "JSON(none_as_null=True)", "Json",
        "dict", '{{"number": number}}', ("2**64", r'["a\x00b"]'),
    ),
    "references": Kind(
        "int", "ForeignKey({model}.id)", "Id",
        "int", "number", ("0", "2**63"),
    ),
}
# fmt: on
NEVER_UNIQUE = ("bool", "json")


class RefusedError(Exception):
    """A feature that is not written, and why."""


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    words: dict[str, Any]
    optional: bool
    unique: bool
    model: Any = None  # that it refers to

    def say(self, what: str) -> str:
        return str(getattr(KINDS[self.type], what)).format(**self.words)

    @property
    def or_none(self) -> str:
        return " | None" if self.optional else ""

    @property
    def min_length(self) -> bool:
        """Tell whether it is a text that may not be empty."""
        return self.type == "str" and (self.unique or not self.optional)

    def alias(self) -> str:
        """Return the line that names the field's type, if it has limits of its own."""
        least = "min_length=1, " if self.min_length else ""
        normal = ", Normalized" if self.unique else ""
        kind = {
            "str": f"Text, Field({least}max_length=MAX_{{NAME}}_LENGTH){normal}",
            "decimal": "decimal.Decimal, Field(max_digits={precision}, decimal_places={scale})",
        }.get(self.type)
        return f"{{alias}} = Annotated[{kind}]".format(**self.words) if kind else ""

    def in_model(self) -> str:
        index = bool(self.model) and not self.unique
        words = [self.say("column"), *["unique=True"] * self.unique, *["index=True"] * index]
        column = ", ".join(filter(None, words))
        line = f"    {self.name}: Mapped[{self.say('python')}{self.or_none}]"
        return f"{line} = mapped_column({column})" if column else line

    def in_create(self) -> str:
        default = " | None = None" if self.optional else ""
        return f"    {self.name}: {self.say('schema')}{default}"

    def in_update(self) -> str:
        if self.optional:
            return self.in_create()
        return f"{self.in_create()} = Field(default_factory={self.say('unset')})"

    def in_read(self) -> str:
        python = self.say("python").replace("Any", "JsonValue")
        kind = self.say("schema") if python == "int" else python  # the schema says how many bits
        return f"    {self.name}: {kind}{self.or_none}"

    def refused(self) -> list[str]:
        values = [value.format(**self.words) for value in KINDS[self.type].refused]
        return [f'{{"{self.name}": {value}}}' for value in ['""'] * self.min_length + values]


@dataclass(frozen=True)
class Feature:
    plural: str
    singular: str
    fields: Sequence[Field]

    @property
    def model(self) -> str:
        return camel(self.singular)

    def render(self, name: str) -> str:
        """Fill in a text, without those of its parts that no field has a use for."""
        words = self.words()
        text = (HERE / "feature_texts" / f"{name}.py.txt").read_text("utf-8")
        parts = [Template(part) for part in text.split("\n\n\n")]
        return "\n\n\n".join(
            part.substitute(words)
            for part in parts
            if all(words[word] is not None for word in part.get_identifiers())
        )

    def words(self) -> dict[str, str | None]:
        fields, path = self.fields, self.plural.replace("_", "-")
        texts = [field for field in fields if field.type == "str"]
        lengths = [f"MAX_{field.name.upper()}_LENGTH" for field in texts]
        updates = [field.in_update() for field in fields]
        for number, field in enumerate(fields):
            if not field.optional:
                updates[number] += "  # optional, but not nullable"
                break
        return {
            "Order": self.model,
            "ORDER": self.singular.upper(),
            "order": self.singular,
            "orders": self.plural,
            "path": path,
            "word": self.singular.replace("_", " "),
            "words": self.plural.replace("_", " "),
            "Words": self.plural.replace("_", " ").capitalize(),
            "models": "\n".join(
                dict.fromkeys(
                    f"from {field.model.__module__} import {field.model.__name__}"
                    for field in fields
                    if field.model
                )
            ),
            "lengths": "\n".join(
                f"{length} = {field.words['length']:_}"
                for length, field in zip(lengths, texts, strict=True)
            ),
            "limits": f"from app.features.{self.plural}.models import {', '.join(lengths)}"
            if lengths
            else "",
            "aliases": "\n".join(filter(None, (field.alias() for field in fields))),
            "columns": "\n".join(field.in_model() for field in fields),
            "created": "\n".join(field.in_create() for field in fields),
            "updated": "\n".join(updates),
            "read": "\n".join(field.in_read() for field in fields),
            "row": ", ".join(f"{field.say('python')}{field.or_none}" for field in fields),
            "selected": ", ".join(f"{self.model}.{field.name}" for field in fields),
            "sent": ", ".join(f'"{field.name}": {field.say("sent")}' for field in fields),
            "refused": ", ".join(value for field in fields for value in field.refused()),
            "first": fields[0].name if fields else "",
            "required": quoted(field for field in fields if not field.optional),
            "optional": quoted(field for field in fields if field.optional),
            "unique": quoted(field for field in fields if field.unique),
            "references": quoted(field for field in fields if field.model),
            "referred": " and ".join(
                dict.fromkeys(field.model.__tablename__ for field in fields if field.model)
            )
            or None,
        }


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def quoted(fields: Iterable[Field]) -> str | None:
    return ", ".join(f'"{field.name}"' for field in fields) or None


# What is refused ----------------------------------------------------------------------------------


def check_name(name: str, *, in_database: bool = True) -> None:
    if not NAME.fullmatch(name):
        raise RefusedError(
            f"{name!r} is no name: take lower-case words, joined by underscores, as in order_lines."
        )
    if keyword.iskeyword(name) or hasattr(builtins, name):
        raise RefusedError(f"{name} is a word of Python's own: take another name.")
    if in_database and name in RESERVED_WORDS:
        raise RefusedError(f"{name} is a word of SQL's own: take another name.")


def guess_singular(plural: str) -> str:
    """Return the singular, where the rule has no exceptions."""
    if plural.endswith(("sses", "shes", "xes")):
        return plural[:-2]
    if re.search(r"[^sui]s$", plural) and not plural.endswith(("ches", "ies", "oes", "ses", "zes")):
        return plural[:-1]
    guess = re.sub("ies$", "y", plural).removesuffix("s")
    raise RefusedError(
        f"The singular of {plural} is not sure: say it, as in --singular {guess or 'order'}."
    )


def identifiers(name: str) -> set[str]:
    """Return the names that a module of any feature imports, defines and takes."""
    field = Field("zzf", "int", {}, optional=False, unique=False)
    found = set()
    for node in ast.walk(ast.parse(Feature("zzzs", "zzz", [field]).render(name))):
        match node:
            case ast.Name(id=word) | ast.arg(arg=word) | ast.alias(name=word):
                found.add(word)
            case ast.ClassDef(name=word) | ast.AsyncFunctionDef(name=word):
                found.add(word)
    return found


def check_feature(plural: str, singular: str) -> None:
    check_name(plural)
    check_name(singular, in_database=False)
    if plural == singular:
        raise RefusedError(f"A list and one of its {plural} need two names: --singular says one.")
    if plural in PATHS:
        raise RefusedError(f"/{plural} is a path of the template's: take another name.")
    folder, module, test = paths(plural)
    left = [path for path in folder.glob("*") if path.name != "__pycache__"]
    for path in ([folder] if left else []) + [module, test]:
        if path.exists():
            raise RefusedError(f"{path.relative_to(HERE)} is there already.")
    for mapper in Base.registry.mappers:
        if mapper.class_.__name__ == camel(singular):
            raise RefusedError(f"{mapper.class_.__module__} has a {camel(singular)} already.")
    if plural in {table.name for table in metadata.tables.values()} | migrated_tables():
        raise RefusedError(f"There is a table {plural} already.")
    names = {"Zzz": camel(singular), "ZZZ": singular.upper(), "zzzs": plural, "zzz": singular}
    for text in ("models", "queries", "schemas", "routes"):
        meant = [
            re.sub("Zzz|ZZZ|zzzs|zzz", lambda found: names[found[0]], name)
            for name in identifiers(text)
        ]
        for name, times in Counter(meant).items():
            if times > 1:
                raise RefusedError(
                    f"{name} would be two things in {text}.py of a feature: take another name, or"
                    f" another --singular, such as my_{singular}."
                )


def migrated_tables() -> set[str]:
    """Return the tables that migrations create and do not drop again."""
    found: Counter[str] = Counter()
    for file in (HERE / "migrations" / "versions").glob("*.py"):
        upgrade = file.read_text("utf-8").partition("def downgrade")[0]
        found.update(re.findall(r'create_table\(\s*"(\w+)"', upgrade))
        found.subtract(re.findall(r'drop_table\(\s*"(\w+)"', upgrade))
    return {name for name, times in found.items() if times > 0}


def read_field(text: str, singular: str) -> Field:
    """Return the field that `name:type` stands for, with a limit and further words behind it."""
    name, _, rest = text.partition(":")
    kind, *words = rest.split(":")
    check_name(name)
    if kind not in KINDS:
        raise RefusedError(f"{text}: {name} needs a type, one of {', '.join(KINDS)}.")
    flags = [word for word in words if word in ("optional", "unique")]
    limit, *more = [word for word in words if word not in flags] or [""]
    if more or len(flags) > len(set(flags)):
        raise RefusedError(f"{text}: {':'.join(words)} is more than {name} can have.")
    if "unique" in flags and kind in NEVER_UNIQUE:
        raise RefusedError(f"{text}: a {kind} can't be unique.")
    found: dict[str, Any] = {}
    model = None
    match kind:
        case "str":
            found = read_length(text, limit or "200", unique="unique" in flags)
            label = name.replace("_", " ").capitalize()
            found["sample"] = f'f"{label} {{number}}"'
            if len(label) + 2 > found["length"]:
                found["sample"] = "str(number)"
        case "decimal":
            found = read_digits(text, limit or "12,2")
        case "references":
            model = find_model(text, limit or f"{name}s")
            found, name = {"model": model.__name__}, f"{name}_id"
        case _ if limit:
            raise RefusedError(f"{text}: {kind} has no limit, and {limit} is no word for a field.")
    if name in TAKEN | identifiers("models") | identifiers("schemas"):
        raise RefusedError(f"{text}: {name} has a meaning already in each model or schema.")
    schemas = {word.replace("Zzz", camel(singular)) for word in identifiers("schemas")}
    prefix = camel(singular) if camel(name) in schemas else ""
    words_of_all = {"NAME": name.upper(), "alias": prefix + camel(name)}
    return Field(name, kind, words_of_all | found, "optional" in flags, "unique" in flags, model)


def read_length(text: str, limit: str, *, unique: bool) -> dict[str, Any]:
    largest = MAX_UNIQUE_LENGTH if unique else MAX_LENGTH
    if not re.fullmatch("[1-9][0-9]{0,7}", limit) or int(limit) > largest:
        what = "unique text" if unique else "text"
        raise RefusedError(f"{text}: a {what} has 1 to {largest:,} characters, and not {limit}.")
    return {"length": int(limit), "too_long": int(limit) + 1}


def read_digits(text: str, limit: str) -> dict[str, Any]:
    found = re.fullmatch("([1-9][0-9]{0,3}),([0-9]{1,4})", limit)
    precision, scale = map(int, found.groups()) if found else (0, 1)
    if scale > precision:
        raise RefusedError(f"{text}: a decimal has digits and decimal places, as in 12,2.")
    column = Column("decimal", Numeric(precision, scale))
    try:
        CreateTable(Table("numbers", MetaData(), column)).compile(dialect=Dialect())
    except CompileError as error:  # more digits than this database stores
        raise RefusedError(f"{text}: {error}.") from None
    whole = precision - scale
    places = "5" + "0" * (scale - 1) if whole else "{number}" + "0" * (scale - 1)
    sample = f'f"{"{number}" if whole else 0}.{places}"' if scale else "str(number)"
    return {
        "precision": precision,
        "scale": scale,
        "whole": whole,
        "finer": scale + 1,
        "sample": sample,
    }


def find_model(text: str, table: str) -> Any:
    for mapper in Base.registry.mappers:
        if getattr(mapper.local_table, "fullname", None) == table:
            [key, *more] = mapper.primary_key
            if more or key.name != "id" or not isinstance(key.type, BigIntegerKey):
                raise RefusedError(f"{text}: the key of {table} is no id that is counted up.")
            return mapper.class_
    raise RefusedError(
        f"{text}: there is no table {table}; name one, as in customer:references:customers."
    )


def check_fields(feature: Feature) -> None:
    for kind in ("name", "alias"):
        found = Counter(
            field.name if kind == "name" else field.words["alias"] for field in feature.fields
        )
        for name, times in found.items():
            if times > 1:
                raise RefusedError(f"Two fields have the name {name}.")


# What is written ----------------------------------------------------------------------------------


def paths(plural: str) -> tuple[Path, Path, Path]:
    """Return the folder of a feature, the module that would be in its way, and its tests."""
    tests = HERE / "tests" / "features"
    return FEATURES / plural, FEATURES / f"{plural}.py", tests / f"test_{plural}.py"


def register(text: str, plural: str) -> str:
    """Return the text of `registration.py` with the feature's router below all others."""
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = [node for node in functions if node.name == "add_features" and node.args.args]
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    if not found or not imports:
        raise RefusedError("app/features/registration.py has no function add_features(app).")
    taken = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    taken |= {node.asname or node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    app, last = found[0].args.args[0].arg, found[0].body[-1]
    if plural in taken | {app}:
        raise RefusedError(f"app/features/registration.py has something called {plural} already.")
    lines = text.splitlines()
    lines.insert(last.end_lineno or last.lineno, f"    {app}.include_router({plural})")
    imported = f"from app.features.{plural}.routes import router as {plural}"
    lines.insert(imports[-1].end_lineno or 0, imported)
    return "\n".join(lines) + "\n"


def read_migration(feature: Feature) -> tuple[str, str]:
    """Return what Alembic would write for the feature's model: what makes its table, and drops it."""
    importlib.invalidate_caches()
    importlib.import_module(f"app.features.{feature.plural}.models")
    table = metadata.tables[feature.plural]
    names = [f"{PREFIX}{column.name}" for column in table.columns]
    names += [str(found.name) for found in table.constraints]
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    for name in [table.name, *names, *(str(index.name) for index in indexes)]:
        if len(name) > MAX_BYTES:
            raise RefusedError(f"{name} is too long for a database: {MAX_BYTES} characters.")
    upgrade = UpgradeOps([CreateTableOp.from_table(table), *map(CreateIndexOp.from_index, indexes)])
    context = MigrationContext.configure(dialect=Dialect(), opts=OPTIONS)
    texts = (
        render_python_code(operations, render_item=render_item, migration_context=context)
        for operations in (upgrade, upgrade.reverse())
    )
    up, down = (re.sub(r"# ###.*\n *|\n *# ###.*", "", text) for text in texts)
    return up, down


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)


def must_run(trouble: str, *words: str) -> None:
    done = run(*words)
    if done.returncode != 0:
        raise RefusedError(f"{done.stdout}{done.stderr}{trouble}")


@contextmanager
def all_or_nothing(plural: str, revision: str) -> Iterator[None]:
    """Take back what was written if not all of it was."""
    before = {file: file.read_bytes() for file in (REGISTRATION, DOCUMENT)}
    folder, _, test = paths(plural)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for file in (test, *(HERE / "migrations" / "versions").glob(f"*{revision}*")):
            file.unlink(missing_ok=True)
        for file, content in before.items():
            file.write_bytes(content)
        raise


def write(feature: Feature) -> list[Path]:
    """Write all files of a feature, and return their paths."""
    texts = {name: feature.render(name) for name in (*MODULES, "tests")}
    registration = register(REGISTRATION.read_text("utf-8"), feature.plural)
    config = Config(
        HERE / "alembic.ini",
        toml_file=HERE / "pyproject.toml",
        cmd_opts=argparse.Namespace(quiet=True),
    )
    migrations = ScriptDirectory.from_config(config)
    migrations.hooks = []  # the new one is formatted with the other files
    if len(migrations.get_heads()) > 1:
        raise RefusedError("There are two newest migrations: join them by alembic merge.")
    must_run("The service is not in order: see above.", "openapi_file.py", "--check")
    folder, _, test = paths(feature.plural)
    files = [folder / f"{name}.py" for name in MODULES] + [test]
    revision = rev_id()
    with all_or_nothing(feature.plural, revision):
        folder.mkdir(exist_ok=True)
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(text, "utf-8")
        REGISTRATION.write_text(registration, "utf-8")
        upgrade, downgrade = read_migration(feature)
        script = migrations.generate_revision(
            revision,
            f"create {feature.plural}",
            upgrades=upgrade,
            downgrades=downgrade,
            imports="from app import database",
        )
        files += [Path(script.path)] if script else []
        # It sorts imports and takes out those that no field needs.
        names = [str(file) for file in (*files, REGISTRATION)]
        must_run("", "-m", "ruff", "check", "--fix-only", "--quiet", *names)
        must_run("", "-m", "ruff", "format", "--quiet", *names)
        must_run("The service does not start with it: see above.", "openapi_file.py")
    return files


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="poe feature", description="Write a feature.")
    parser.add_argument("name", help="its name, a plural: orders")
    parser.add_argument(
        "fields",
        nargs="+",
        metavar="field",
        help=f"name:type, and behind it a limit, `optional`, `unique`; types: {', '.join(KINDS)}",
    )
    parser.add_argument("--singular", help="the name of one, where it is not sure: category")
    words = parser.parse_args()
    try:
        check_name(words.name)
        singular = words.singular or guess_singular(words.name)
        check_feature(words.name, singular)
        fields = [read_field(text, singular) for text in words.fields]
        feature = Feature(words.name, singular, fields)
        check_fields(feature)
        files = write(feature)
    except (RefusedError, CommandError) as error:
        sys.exit(f"{error} Nothing is written.")
    except KeyboardInterrupt:
        sys.exit("Nothing is written.")
    for file in [*files, REGISTRATION, DOCUMENT]:
        print(file.relative_to(HERE))
    print(
        "They are yours. `uv run alembic upgrade head` makes the table, `uv run poe check` tests it."
    )


if __name__ == "__main__":
    main()

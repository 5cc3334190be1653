"""A feature: the texts of its modules, and what would prevent writing it."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from app.database import Base
from migrations.metadata import metadata
from scripts.generator.fields import Field
from scripts.generator.names import RefusedError, camel, check_name

HERE = Path(__file__).parents[2]
FEATURES = HERE / "app" / "features"
TESTS = HERE / "tests" / "features"
VERSIONS = HERE / "migrations" / "versions"
TEXTS = Path(__file__).parent / "texts"

PATHS = {"docs", "health", "openapi", "redoc"}  # the template's


@dataclass(frozen=True)
class Feature:
    plural: str
    singular: str
    fields: Sequence[Field]

    @property
    def folder(self) -> Path:
        return FEATURES / self.plural

    @property
    def tests(self) -> Path:
        return TESTS / f"test_{self.plural}.py"

    def render(self, module: str) -> str:
        """Return the text of a module, without the parts that no field needs."""
        words = self.words()
        parts = [
            Template(part)
            for part in (TEXTS / f"{module}.py.txt").read_text("utf-8").split("\n\n\n")
        ]
        kept = [p for p in parts if all(words[word] is not None for word in p.get_identifiers())]
        return "\n\n\n".join(part.substitute(words) for part in kept)

    def words(self) -> dict[str, str | None]:
        """Return what stands for each `$word` of the texts; `None` leaves the part out."""
        fields, model = self.fields, camel(self.singular)
        texts = [field for field in fields if field.type == "str"]
        lengths = ", ".join(f"MAX_{field.name.upper()}_LENGTH" for field in texts)
        update = "\n".join(field.in_update() for field in fields)
        referred = {field.model.__tablename__: field.model for field in fields if field.model}
        return {
            "Order": model,
            "ORDER": self.singular.upper(),
            "order": self.singular,
            "orders": self.plural,
            "path": self.plural.replace("_", "-"),
            "word": self.singular.replace("_", " "),
            "words": self.plural.replace("_", " "),
            "Words": self.plural.replace("_", " ").capitalize(),
            "referred_models": "\n".join(
                f"from {found.__module__} import {found.__name__}" for found in referred.values()
            ),
            "lengths": "\n".join(
                f"MAX_{field.name.upper()}_LENGTH = {field.words['length']:_}" for field in texts
            ),
            "columns": "\n".join(field.in_model() for field in fields),
            "import_lengths": lengths
            and f"from app.features.{self.plural}.models import {lengths}",
            "limits": "\n".join(filter(None, (field.limits() for field in fields))),
            "create": "\n".join(field.in_create() for field in fields),
            "update": re.sub("(factory=.*)", r"\1  # optional, but not nullable", update, count=1),
            "read": "\n".join(field.in_read() for field in fields),
            "row": ", ".join(field.say("python") + field.or_none for field in fields),
            "selected": ", ".join(f"{model}.{field.name}" for field in fields),
            "values": ", ".join(f'"{field.name}": {field.say("sent")}' for field in fields),
            "refused": ", ".join(value for field in fields for value in field.refused()),
            "first": fields[0].name,
            "required": quoted(field for field in fields if not field.optional),
            "optional": quoted(field for field in fields if field.optional),
            "unique": quoted(field for field in fields if field.unique),
            "references": quoted(field for field in fields if field.model),
            "referred": re.sub(r", (\w+)$", r" and \1", ", ".join(referred)) or None,
        }


def quoted(fields: Iterable[Field]) -> str | None:
    return ", ".join(f'"{field.name}"' for field in fields) or None


def check_feature(feature: Feature) -> None:
    """Raise an error if part of the feature exists already, or a name would be ambiguous."""
    plural, singular, model = feature.plural, feature.singular, camel(feature.singular)
    check_name(singular, sql=False)
    if plural == singular:
        raise RefusedError(
            f"{plural} can't name both the list and an item: pass another word for one, as in"
            f" --singular one_{plural}."
        )
    if plural in PATHS:
        raise RefusedError(f"/{plural} is a path of the template's: take another name.")
    left = [file for file in feature.folder.glob("*") if file.name != "__pycache__"]
    for path in (feature.folder, FEATURES / f"{plural}.py", feature.tests):
        if path.exists() and (left or path != feature.folder):
            raise RefusedError(f"{path.relative_to(HERE)} is there already.")
    for mapper in Base.registry.mappers:
        if mapper.class_.__name__ == model:
            raise RefusedError(f"{mapper.class_.__module__} has a model {model} already.")
    if plural in {table.name for table in metadata.tables.values()} | migrated_tables():
        raise RefusedError(f"There is a table {plural} already.")
    for word in ("name", "alias"):
        for name, times in Counter(field.words[word] for field in feature.fields).items():
            if times > 1:
                raise RefusedError(f"Two fields would be called {name}.")
    names = {"Zzz": model, "ZZZ": singular.upper(), "zzzs": plural, "zzz": singular}
    for module in ("models", "queries", "schemas", "routes"):
        found = Counter(
            re.sub("Zzz|ZZZ|zzzs?", lambda match: names[match[0]], name)
            for name in sorted(identifiers(module))
        )
        for name, times in found.items():
            if times > 1:
                raise RefusedError(
                    f"{name} means something else in {module}.py of each feature: take another"
                    f" name, or another --singular, as in --singular my_{singular}."
                )


def migrated_tables() -> set[str]:
    """Return the tables that migrations create and do not drop again."""
    found: Counter[str] = Counter()
    for file in VERSIONS.glob("*.py"):
        upgrade = file.read_text("utf-8").partition("def downgrade")[0]
        found.update(re.findall(r"create_table\(\s*['\"](\w+)", upgrade))
        found.subtract(re.findall(r"drop_table\(\s*['\"](\w+)", upgrade))
    return {name for name, times in found.items() if times > 0}


def identifiers(module: str) -> set[str]:
    """Return the names that a module of any feature imports, defines and accepts."""
    text = Feature("zzzs", "zzz", [Field("zzf", "int", {})]).render(module)
    found = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.alias(name=name):
                found.add(name)
            case ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
    return found

"""The fields of a feature: how they are written on the command line, and in each module."""

import builtins
import re
import typing
from dataclasses import dataclass
from typing import Any, NamedTuple

import fastapi
import pydantic
from sqlalchemy import Column, MetaData, Numeric, Row, Table
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateTable

from app import dependencies, etags, fields, pagination, routing
from app.database import Base, BigIntegerKey, Timestamps
from app.database.dialect import Dialect
from migrations.metadata import metadata
from scripts.generator.names import RefusedError, camel, check_name

MAX_LENGTH = 10_000_000  # of a text
MAX_UNIQUE_LENGTH = 676  # of a text that fits into an index, whatever its characters
WORDS = ("optional", "unique")
# What a model, a schema or a row has already.
TAKEN = {*dir(Base), *dir(Timestamps), *dir(etags.Versioned), *dir(Row), "id", "version", "self"}
TAKEN -= {"count", "index"}  # a row gives the column
TAKEN |= {"datetime", "decimal", "uuid"}  # the modules whose types other fields have
# Whose names the modules of a feature import, or will.
IMPORTED = (
    builtins,
    typing,
    fastapi,
    pydantic,
    dependencies,
    etags,
    fields,
    pagination,
    routing,
)


class Kind(NamedTuple):
    """What a type of field is in each module; braces are filled in by the field."""

    python: str  # in the model and in rows
    column: str  # in the model, unless the Python type says it all
    schema: str
    unset: str  # the default, never used, of a change without this field
    sent: str  # in the tests: a value for each `number` from 1 to 3
    refused: tuple[str, ...]


# fmt: off
KINDS = {
    "str": Kind(
        "str", "String(MAX_{NAME}_LENGTH)", "{alias}",
        "str", "{sample}", ('"a" * {too_long}', r'"a\x00b"', "1"),
    ),
    "int": Kind("int", "", "Integer", "int", "number", ("1.5", "2**31")),
    "bigint": Kind("int", "BigInteger", "BigInteger", "int", "2**32 + number", ("1.5", "2**63")),
    "decimal": Kind(
        "decimal.Decimal", "Numeric({precision}, {scale})", "{alias}",
        "decimal.Decimal", "{sample}", ('"1e{whole}"', '"1e-{too_fine}"', '"NaN"'),
    ),
    "float": Kind("float", "Double", "FiniteFloat", "float", "number + 0.5", ('"NaN"',)),
    "bool": Kind("bool", "", "bool", "bool", "number % 2 == 1", ('"perhaps"',)),
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
        "uuid.UUID", "", "uuid.UUID", "uuid.uuid4", "str(uuid.UUID(int=number))", ('"1"',)
    ),
    "json": Kind(
        "Any", "JSON(none_as_null=True)", "Json",
        "dict", '{{"number": number}}', ("2**64", r'["a\x00b"]'),
    ),
    "references": Kind("int", "ForeignKey({model}.id)", "Id", "int", "number", ("0", "2**63")),
}
# fmt: on
NEVER_UNIQUE = ("bool", "json")


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    words: dict[str, Any]  # fills in the braces of its type
    optional: bool = False
    unique: bool = False
    model: Any = None  # that it refers to

    def say(self, what: str) -> str:
        return str(getattr(KINDS[self.type], what)).format(**self.words)

    @property
    def or_none(self) -> str:
        return " | None" if self.optional else ""

    @property
    def never_empty(self) -> bool:
        return self.type == "str" and (self.unique or not self.optional)

    def in_model(self) -> str:
        column = self.say("column")
        if self.unique:
            column += ", unique=True"
        elif self.model:
            column += ", index=True"
        line = f"    {self.name}: Mapped[{self.say('python')}{self.or_none}]"
        return f"{line} = mapped_column({column.removeprefix(', ')})" if column else line

    def limits(self) -> str | None:
        """Return the line that names the field's type, if it has limits of its own."""
        if self.type == "decimal":
            kind = "decimal.Decimal, Field(max_digits={precision}, decimal_places={scale})"
        elif self.type == "str":
            least = "min_length=1, " if self.never_empty else ""
            kind = f"Text, Field({least}max_length=MAX_{{NAME}}_LENGTH)"
            kind += ", Normalized" if self.unique else ""
        else:
            return None
        return f"{{alias}} = Annotated[{kind}]".format(**self.words)

    def in_create(self) -> str:
        default = " = None" if self.optional else ""
        return f"    {self.name}: {self.say('schema')}{self.or_none}{default}"

    def in_update(self) -> str:
        default = "" if self.optional else f" = Field(default_factory={self.say('unset')})"
        return self.in_create() + default

    def in_read(self) -> str:
        kind = self.say("python").replace("Any", "JsonValue")
        if kind == "int":  # the schema's type says how many bits it has
            kind = self.say("schema")
        return f"    {self.name}: {kind}{self.or_none}"

    def refused(self) -> list[str]:
        values = ['""'] if self.never_empty else []
        values += [value.format(**self.words) for value in KINDS[self.type].refused]
        return [f'{{"{self.name}": {value}}}' for value in values]


def read_field(text: str, singular: str) -> Field:
    """Parse `name:type`, with a limit and further words after it."""
    name, _, behind = text.partition(":")
    kind, *words = behind.split(":")
    if name in TAKEN:
        raise RefusedError(f"{text}: every feature has something called {name} already.")
    check_name(name)
    if kind not in KINDS:
        raise RefusedError(f"{text}: {name} needs a type, one of {', '.join(KINDS)}.")
    flags = [word for word in words if word in WORDS]
    limit, *more = [word for word in words if word not in WORDS] or [""]
    if more or len(flags) > len(set(flags)):
        raise RefusedError(f"{text}: {name} has one limit at most, and each word once.")
    if "unique" in flags and kind in NEVER_UNIQUE:
        raise RefusedError(f"{text}: a {kind} can't be unique.")
    own: dict[str, Any] = {}
    model = None
    match kind:
        case "str":
            own = read_length(text, name, limit or "200", unique="unique" in flags)
        case "decimal":
            own = read_digits(text, name, limit or "12,2")
        case "references":
            advice = "A feature refers to one that is there before it, and not to itself."
            if not limit:
                advice = "Say which, as in customer:references:customers."
            model = find_model(text, limit or f"{name}s", advice)
            own = {"model": model.__name__}
            name = f"{name}_id"
        case _ if limit:
            raise RefusedError(f"{text}: {kind} has no limit such as {limit}.")
    alias = camel(name)
    imported = any(hasattr(module, alias) for module in IMPORTED)
    if imported or alias.startswith(camel(singular)):  # the name of another type, or of a schema
        alias = camel(singular) + alias
    own |= {"name": name, "NAME": name.upper(), "alias": alias}
    return Field(name, kind, own, "optional" in flags, "unique" in flags, model)


def read_length(text: str, name: str, limit: str, *, unique: bool) -> dict[str, Any]:
    most = MAX_UNIQUE_LENGTH if unique else MAX_LENGTH
    if not re.fullmatch("[1-9][0-9]{0,7}", limit) or int(limit) > most:
        raise RefusedError(f"{text}: its limit is a number of characters, {most} at most.")
    label = name.replace("_", " ").capitalize()
    sample = f'f"{label} {{number}}"' if len(label) + 2 <= int(limit) else "str(number)"
    return {"length": int(limit), "too_long": int(limit) + 1, "sample": sample}


def read_digits(text: str, name: str, limit: str) -> dict[str, Any]:
    found = re.fullmatch("([1-9][0-9]{0,2}),([0-9]{1,3})", limit)
    precision, scale = map(int, found.groups()) if found else (0, 1)
    if scale > precision:
        raise RefusedError(f"{text}: its limit is digits and decimal places, as in 12,2.")
    table = Table("field", MetaData(), Column(name, Numeric(precision, scale)))
    try:
        CreateTable(table).compile(dialect=Dialect())
    except CompileError:
        raise RefusedError(f"{text}: this database does not store so many digits.") from None
    whole = precision - scale
    digits = "{number}.5" if whole else "0.{number}"
    sample = f'f"{digits.ljust(len(digits) + scale - 1, "0")}"' if scale else "str(number)"
    own = {"precision": precision, "scale": scale, "whole": whole, "too_fine": scale + 1}
    return {**own, "sample": sample}


def find_model(text: str, name: str, advice: str) -> Any:
    """Return the model of a table whose rows another can refer to."""
    for mapper in Base.registry.mappers:
        if mapper.local_table is metadata.tables.get(name):
            key, *more = mapper.primary_key
            if more or key.name != "id" or not isinstance(key.type, BigIntegerKey):
                raise RefusedError(f"{text}: the key of {name} is not one BigIntegerKey, id.")
            return mapper.class_
    raise RefusedError(f"{text}: there is no table {name}. {advice}")

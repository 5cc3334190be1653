"""Parts of a REST resource: entity tags, preconditions and pages."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Header, Query
from pydantic import BaseModel, BeforeValidator, Field, computed_field, field_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from sqlalchemy import BigInteger, ColumnElement, Row, bindparam, true
from sqlalchemy.orm import InstrumentedAttribute

from app.fields import MAX_ID, Canonical

T = TypeVar("T")

STRONG_TAG = re.compile(r'"([0-9]{1,19})-[0-9a-f]{8}"')  # as `etag` makes them

IfMatch = Annotated[
    str | SkipJsonSchema[None],
    Header(
        alias="If-Match",
        max_length=1_000,
        description="The entity tag of the version to change.",
        examples=['"1-3f786850"'],
    ),
]
"""With `= None` it may be absent; without a default, a missing header is answered with 428."""

MAX_LIMIT = 100
Limit = Annotated[
    int, Query(ge=1, le=MAX_LIMIT, description="How many items to return at most."), Canonical
]


class Versioned(BaseModel):
    """The base of a representation whose row has a version: each item has its entity tag."""

    version: int = Field(exclude=True)

    @computed_field(examples=['"1-3f786850"'])
    def etag(self) -> str:
        """The entity tag of this version, as `If-Match` takes it."""
        return etag(type(self), self.version)


class Page(BaseModel, Generic[T]):
    """A part of a list."""

    items: list[T]
    next_cursor: str | None = Field(description="The cursor of the next page, if there is one.")

    @field_validator("items", mode="before")
    @classmethod
    def read_rows(cls, items: Any) -> Any:
        """Convert rows to named tuples, whose attributes pydantic reads three times as fast."""
        return [*named(items)] if isinstance(items, Sequence) else items

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return f"{params[0].__name__}Page"


def named(items: Iterable[Any]) -> Iterator[Any]:
    result, make = None, tuple_maker(())
    for item in items:
        if isinstance(item, Row):
            # Undocumented: what the rows of one result share. `_fields` costs more than the tuple.
            if (shared := getattr(item, "_parent", item)) is not result:
                result, make = shared, tuple_maker(item._fields)
            item = make(item)
        yield item


@lru_cache
def tuple_maker(names: tuple[str, ...]) -> Any:
    make_type: Any = namedtuple
    try:
        return make_type("NamedRow", names)._make
    except ValueError:  # two names are equal, or one is no identifier
        return lambda row: row


def etag(model: type[BaseModel], version: int) -> str:
    """Return the strong entity tag of a version in this representation."""
    return f'"{version}-{fingerprint(model)}"'


@cache
def fingerprint(model: type[BaseModel]) -> str:
    """Return a hash of the schema: a release that adds a field sends other bytes."""
    schema = json.dumps(model.model_json_schema(mode="serialization"), sort_keys=True)
    return sha256(schema.encode()).hexdigest()[:8]


def matches(version: InstrumentedAttribute[int], if_match: str | None) -> ColumnElement[bool]:
    """Return the condition of `If-Match` (RFC 9110, 13.1.1); without it the last write wins.

    The version alone is compared: a tag of an older release still identifies the same state.
    """
    tags = [tag.strip() for tag in ("*" if if_match is None else if_match).split(",")]
    if tags == ["*"]:
        return true()
    # 64 bits, whatever the column has: a version too large for the column is a mismatch, not an
    # error.
    known = bindparam(None, list(versions(tags)), BigInteger, unique=True, expanding=True)
    return version.in_(known)


def versions(tags: Iterable[str]) -> Iterable[int]:
    for tag in tags:
        if (match := STRONG_TAG.fullmatch(tag)) and int(match[1]) <= MAX_ID:
            yield int(match[1])


def encode_cursor(key: int) -> str:
    """Return the cursor of the page that follows `key`: opaque, so that it may change."""
    return urlsafe_b64encode(key.to_bytes(8)).rstrip(b"=").decode()


def decode_cursor(text: str) -> int:
    try:
        key = int.from_bytes(urlsafe_b64decode(f"{text}="))
    except ValueError:
        key = 0
    if not 1 <= key <= MAX_ID or encode_cursor(key) != text:
        raise PydanticCustomError("invalid_cursor", "This cursor was not issued by the service")
    return key


Cursor = Annotated[
    int | None,
    Query(description="The `next_cursor` of the page before.", examples=["AAAAAAAAAGQ"]),
    BeforeValidator(decode_cursor, json_schema_input_type=str),
]
"""The key to start after; `= None`: without it, a list starts with its first page."""

"""Strong entity tags, made from the version of a row, and `If-Match` (RFC 9110, 8.8.3, 13.1.1)."""

import json
import re
from functools import cache
from hashlib import sha256
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel, Field, computed_field
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import BigInteger, ColumnElement, bindparam, true
from sqlalchemy.orm import InstrumentedAttribute

from app.fields import MAX_ID

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
"""With `= None` the header is optional; without a default, its absence is a 428."""


class Versioned(BaseModel):
    """The base of a response model whose row has a `version`: adds `etag`, and hides the version."""

    version: int = Field(exclude=True)

    @computed_field(examples=['"1-3f786850"'])  # type: ignore[prop-decorator]
    @property
    def etag(self) -> str:
        """The entity tag of this version, as `If-Match` takes it."""
        return etag(type(self), self.version)


def etag(model: type[BaseModel], version: int) -> str:
    """Return the strong entity tag of a version in this representation."""
    return f'"{version}-{fingerprint(model)}"'


@cache
def fingerprint(model: type[BaseModel]) -> str:
    """Return a hash of the schema, so that tags change when a release changes the representation."""
    schema = json.dumps(model.model_json_schema(mode="serialization"), sort_keys=True)
    return sha256(schema.encode()).hexdigest()[:8]


def matches(version: InstrumentedAttribute[int], if_match: str | None) -> ColumnElement[bool]:
    """Return the condition of `If-Match` (RFC 9110, 13.1.1); without it the last write wins.

    The version alone is compared: a tag of another release still identifies the same state.
    """
    tags = [tag.strip() for tag in ("*" if if_match is None else if_match).split(",")]
    if tags == ["*"]:
        return true()
    sent = [int(tag[1]) for tag in map(STRONG_TAG.fullmatch, tags) if tag]
    known = [number for number in sent if number <= MAX_ID]
    # Bound as 64 bits, whatever the column has: a version that is too large for it does not match,
    # and is no error.
    return version.in_(bindparam(None, known, BigInteger, unique=True, expanding=True))

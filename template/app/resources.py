"""What resources have in common: types of fields, entity tags, cursors."""

import datetime
import math
import re
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

from fastapi import Header
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
)
from sqlalchemy import ColumnElement, true
from sqlalchemy.orm import InstrumentedAttribute

MAX_ID = 2**63 - 1
STRONG_TAG = re.compile(r'"[0-9]{1,9}"')  # of those that `etag` makes
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # NUL, and halves of characters

Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Integer = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
BigInteger = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[
    str, StringConstraints(pattern=r"^[^\x00]*$")
]  # no NUL: not every database stores it
IfMatch = Annotated[str | None, Header(max_length=1_000)]

# The first and the last day are left out: a driver may take their moments for infinite ones, and
# in another time zone they have a year that Python does not.
Date = Annotated[datetime.date, Field(gt=datetime.date.min, lt=datetime.date.max)]
DateTime = Annotated[
    AwareDatetime,
    Field(
        ge=datetime.datetime(1, 1, 2, tzinfo=datetime.UTC),
        lt=datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC),
    ),
]


def check_zone(time: datetime.time) -> datetime.time:
    if time.tzinfo is not None:
        raise ValueError("a time has no offset, which no column keeps")
    return time


Time = Annotated[datetime.time, AfterValidator(check_zone)]


def normalize(name: object) -> object:
    return unicodedata.normalize("NFC", name).strip() if isinstance(name, str) else name


Normalized = BeforeValidator(normalize)
"""For a text that people compare, such as a name: normal form C, without blanks around it."""


def check_json(value: JsonValue) -> JsonValue:
    """Raise ValueError for what JSON (RFC 8259) or a database has no room for."""
    parts: list[JsonValue] = [value]
    for part in parts:  # which grows
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) and UNSTORABLE.search(part):
            raise ValueError("a text holds no NUL and no surrogates")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("a number needs to be finite")
        elif isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise ValueError("an integer has at most 64 bits")
    return value


Json = Annotated[JsonValue, AfterValidator(check_json)]


def etag(version: int) -> str:
    """Return the strong entity tag of a version."""
    return f'"{version}"'


def matches(version: InstrumentedAttribute[int], if_match: str | None) -> ColumnElement[bool]:
    """Return the condition of `If-Match` (RFC 9110, 13.1.1); without it the last write wins."""
    tags = [tag.strip() for tag in ("*" if if_match is None else if_match).split(",")]
    if tags == ["*"]:
        return true()
    return version.in_([int(tag[1:-1]) for tag in tags if STRONG_TAG.fullmatch(tag)])


def encode_cursor(key: int) -> str:
    """Return the cursor of the page that follows `key`: opaque, so that it may change."""
    return urlsafe_b64encode(key.to_bytes(8)).rstrip(b"=").decode()


def decode_cursor(text: str) -> int:
    try:
        key = int.from_bytes(urlsafe_b64decode(f"{text}="))
    except ValueError:
        key = 0
    if not 1 <= key <= MAX_ID or encode_cursor(key) != text:
        raise ValueError("not a cursor that this service gave")
    return key


Cursor = Annotated[int, BeforeValidator(decode_cursor, json_schema_input_type=str)]

"""Field types: what a client may send and every database can store."""

import datetime
import math
import re
import unicodedata
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError, PydanticKnownError

MAX_ID = 2**63 - 1
NUMBER = re.compile(r"\s*[+-]?[\d.]+(e[+-]?\d+)?\s*", re.IGNORECASE)
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # NUL, and lone surrogates
# Python insertion-sorts the marks after a letter: 60,000 of them take a minute. Stream-Safe Text
# has at most 30 (https://unicode.org/reports/tr15/#Stream_Safe_Text_Format).
MARKS = "".join(filter(unicodedata.combining, map(chr, range(0x300, 0x1F000))))
MARKS += "\u0f73\u0f75\u0f81"  # each decomposes into two
TOO_MANY_MARKS = re.compile("[" + MARKS + "]{31}")


def check_digits(number: object) -> object:
    """Refuse any other spelling of an integer, such as `01` or `1.0`: an item has one URL."""
    if isinstance(number, str) and not re.fullmatch("-?[1-9][0-9]*|0", number):
        raise PydanticKnownError("int_parsing")
    return number


INT32: JsonDict = {"format": "int32"}  # OpenAPI's
INT64: JsonDict = {"format": "int64"}

# It follows the bounds, which the document would lack otherwise.
Canonical = BeforeValidator(check_digits)
Id = Annotated[int, Field(ge=1, le=MAX_ID, json_schema_extra=INT64), Canonical]
Integer = Annotated[int, Field(ge=-(2**31), le=2**31 - 1, json_schema_extra=INT32), Canonical]
BigInteger = Annotated[int, Field(ge=-(2**63), le=MAX_ID, json_schema_extra=INT64), Canonical]
# No NUL: not every database stores it.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]


def check_iso(value: object) -> object:
    """Refuse a number, which pydantic would take for seconds since 1970 or midnight."""
    if isinstance(value, int | float) or isinstance(value, str) and NUMBER.fullmatch(value):
        raise PydanticCustomError("number_as_time", "This must be written as in ISO 8601")
    return value


Written = BeforeValidator(check_iso)
# The first and last days are excluded: a driver may take their moments for infinite, and in another
# time zone their year is out of Python's range.
Date = Annotated[datetime.date, Field(gt=datetime.date.min, lt=datetime.date.max), Written]
DateTime = Annotated[
    AwareDatetime,
    Field(
        ge=datetime.datetime(1, 1, 2, tzinfo=datetime.UTC),
        lt=datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC),
    ),
    Written,
]


def check_zone(time: datetime.time) -> datetime.time:
    if time.tzinfo is not None:
        raise PydanticCustomError("time_with_offset", "A time must not have a UTC offset")
    return time


Time = Annotated[datetime.time, Written, AfterValidator(check_zone)]


def normalize(name: object) -> object:
    if not isinstance(name, str):
        return name
    if not name.isascii() and TOO_MANY_MARKS.search(name):
        raise PydanticCustomError("too_many_marks", "At most 30 marks may follow a letter")
    return unicodedata.normalize("NFC", name).strip()


Normalized = BeforeValidator(normalize)
"""For a name, or other text to compare: NFC-normalized, surrounding whitespace stripped."""


def check_json(value: JsonValue) -> JsonValue:
    """Refuse what JSON (RFC 8259) or a database can't represent."""
    parts: list[JsonValue] = [value]
    for part in parts:  # grows while it is iterated
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) and UNSTORABLE.search(part):
            raise PydanticCustomError("unstorable_text", "Text must not contain NUL or surrogates")
        elif isinstance(part, float) and not math.isfinite(part):
            raise PydanticKnownError("finite_number")
        elif isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise PydanticCustomError("integer_too_large", "An integer has at most 64 bits")
    return value


Json = Annotated[JsonValue, AfterValidator(check_json)]

"""What REST asks of a resource: entity tags, preconditions and pages."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

from fastapi import Header
from pydantic import BeforeValidator
from sqlalchemy import ColumnElement, true
from sqlalchemy.orm import InstrumentedAttribute

from app.fields import MAX_ID

STRONG_TAG = re.compile(r'"[0-9]{1,9}"')  # of those that `etag` makes

IfMatch = Annotated[str | None, Header(max_length=1_000)]


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

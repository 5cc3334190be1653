"""What resources have in common: ids, texts, entity tags, cursors."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

from fastapi import Header, HTTPException, status
from pydantic import BeforeValidator, Field, StringConstraints

MAX_ID = 2**63 - 1

Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Text = Annotated[
    str, StringConstraints(pattern=r"^[^\x00]*$")
]  # no NUL: not every database stores it
IfMatch = Annotated[str | None, Header()]


def etag(version: int) -> str:
    """Return the strong entity tag of a version."""
    return f'"{version}"'


def require_match(if_match: str | None, version: int) -> None:
    """Evaluate `If-Match` (RFC 9110, 13.1.1); without it the last write wins.

    Raises:
        HTTPException: 412, if the client knows another version than the current one.
    """
    tags = [tag.strip() for tag in (if_match or "*").split(",")]
    if tags != ["*"] and etag(version) not in tags:
        raise HTTPException(status.HTTP_412_PRECONDITION_FAILED)


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

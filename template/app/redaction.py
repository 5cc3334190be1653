"""Redaction: what the log says of errors and libraries, without anything that may be a value.

An error's message may contain a secret, or a value of a row or a request, whoever raised it. So the
log has its type and traceback, whose source lines say what was done. A library's message is logged
as it stands in the library's source, without its arguments.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.database.errors import public_message

OWN = ("app", "migrations")  # the roots of the service's own loggers
FOLDER = os.path.dirname(__file__) + os.sep
FRAMES = 30  # innermost, of a traceback


class PlainError(Exception):
    """An error whose message is about the code alone, so that the log may show it."""


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a record, without those of errors among its arguments."""
    if isinstance(record.msg, BaseException):
        return describe(record.msg)
    text = str(record.msg)
    if is_trusted(record):
        given: Any = record.args
        if isinstance(given, tuple):
            given = tuple(map(without_message, given))
        elif given:
            given = {name: without_message(value) for name, value in given.items()}
        return text % given if given else text
    if is_constant(record):
        return text
    # asyncio's begins with words; tasks, callbacks and their arguments follow.
    words: Any = re.match(r"[\w .,!]*", text if record.name == "asyncio" else "")
    return f"{place(record)}: {words[0] or 'a message that may contain values'}"


def without_message(value: object) -> object:
    return describe(value) if isinstance(value, BaseException) else value


def is_trusted(record: logging.LogRecord) -> bool:
    """Return whether a logger's messages have no values but those that the service logs itself.

    Below INFO, uvicorn logs the frames of WebSockets, and SQLAlchemy logs rows.
    """
    root = record.name.partition(".")[0]
    if root in OWN or record.levelno < logging.INFO:
        return root in OWN
    return root in ("alembic", "uvicorn") or record.name.startswith("sqlalchemy.engine")


def is_constant(record: logging.LogRecord) -> bool:
    """Return whether the message is a constant of the caller that logs it."""
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
        if (frame.f_lineno, frame.f_code.co_filename) == (record.lineno, record.pathname):
            return record.msg in frame.f_code.co_consts
    return False


def place(record: logging.LogRecord) -> str:
    file = "/".join(record.pathname.split(os.sep)[-2:])
    return f"{file}, line {record.lineno}, in {record.funcName}"


def describe(error: BaseException) -> str:
    """Return the type of an error, and its message if that can't contain a value."""
    text = public_part(error)
    return f"{name_of(error)}: {text}" if text else name_of(error)


def reason_of(error: BaseException) -> str:
    """Return the message of an error if it can't contain a value, or else its type and origin."""
    return public_part(error) or f"{name_of(error)}{origin(error)}"


def origin(error: BaseException) -> str:
    """Return the last line of the service's own code that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(FOLDER)]
    if not own:
        return ""
    file = own[-1].filename.removeprefix(FOLDER)
    return f" in app/{file}, line {own[-1].lineno}, in {own[-1].name}"


def name_of(error: BaseException) -> str:
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def public_part(error: BaseException) -> str:
    if isinstance(error, PlainError | PoolTimeoutError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    if isinstance(error, OSError) and error.errno:
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return public_message(error.orig if isinstance(error, DBAPIError) else error)


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an error and of its causes, as Python prints it."""
    return "\n".join(blocks(error))


def blocks(error: BaseException) -> Iterator[str]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and id(link) not in map(id, chain):
        chain.insert(0, link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    for link in chain:
        frames = "".join(traceback.format_tb(link.__traceback__, limit=-FRAMES))
        yield f"Traceback (most recent call last):\n{frames}{describe(link)}"
        if isinstance(link, BaseExceptionGroup):
            for inner in link.exceptions:
                yield from (re.sub("(?m)^", "  | ", block) for block in blocks(inner))
        if link is not error:
            yield "\nDuring handling of the above exception, another exception occurred:\n"

"""Formats of the log: text for people, or one JSON object a line for machines."""

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

from app import VERSION
from app.redaction import is_trusted, message_of, name_of, place, traceback_of, without_message

# Container runtimes split a line at 16 KiB. Characters of a message or a traceback; of a line of
# JSON; of each text in a line that would be longer.
LONGEST = 7500
LONGEST_LINE = 16_000
SHORT = 800
LARGEST = 2**63

IDS = ("request_id", "trace_id", "span_id")
RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "color_message",
    "exception",
    "level",
    "logger",
    "message",
    "service.version",
    "time",
}


class TextFormatter(logging.Formatter):
    """A line for people; below it, the traceback of an error."""

    def __init__(self, *, traced: bool, values: bool) -> None:
        super().__init__()
        self.traced = traced
        self.values = values

    def format(self, record: logging.LogRecord) -> str:
        more = vars(record)
        ids = f"[{more['request_id']}]"
        if self.traced:
            ids += f" [{more.get('trace_id', '-')} {more.get('span_id', '-')}]"
        start = f"{self.formatTime(record)} {record.levelname:7} {record.name}"
        line = f"{start}: {one_line(record, self.values)} {ids}"
        return "\n".join([line, *details(record, self.values)])


class JSONFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, version, request id, what `extra` adds."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": one_line(record),
            "service.version": VERSION,
        }
        own = is_trusted(record)
        fields |= {
            name: value
            for name, value in vars(record).items()
            if name not in RESERVED and (own or name in IDS)
        }
        if exception := "\n".join(details(record)):
            fields["exception"] = exception
        try:
            line = json.dumps(fields, default=shown, allow_nan=False)
        except Exception:  # noqa: BLE001 - whatever `extra` has: a cycle, keys that are no strings
            line = ""
        if not line or len(line) > LONGEST_LINE:
            texts = {name: cut(text, SHORT) for name, text in fields.items() if type(text) is str}
            # Not NaN, infinity, or an integer of more digits than Python writes.
            numbers = {
                name: value
                for name, value in fields.items()
                if type(value) in (int, float) and abs(value) < LARGEST
            }
            line = json.dumps(texts | numbers)
        return line


def one_line(record: logging.LogRecord, values: bool = False) -> str:
    """Return the message, with what would end the line or change its display escaped."""
    try:
        text = record.getMessage() if values else message_of(record)
    except Exception as error:  # noqa: BLE001 - logging would print the arguments
        text = f"{place(record)}: can't be formatted ({name_of(error)})"
    return cut(printable(text.strip()), LONGEST)


def details(record: logging.LogRecord, values: bool = False) -> list[str]:
    """Return the record's traceback and stack, if any."""
    found = []
    if record.exc_info and (error := record.exc_info[1]):
        try:
            show = traceback.format_exception if values else traceback_of
            found.append(cut("".join(show(error)).rstrip(), LONGEST))
        except Exception as other:  # noqa: BLE001 - the record would be lost
            found.append(f"{name_of(error)}, can't be formatted ({name_of(other)})")
    if record.stack_info:
        found.append(cut(record.stack_info, LONGEST))
    return found


def printable(text: str) -> str:
    """Escape unprintable characters, as Python's literals do."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def cut(text: str, longest: int) -> str:
    """Elide the middle of a text that is longer."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters … {text[-half:]}"


def shown(value: object) -> str:
    return str(without_message(value))

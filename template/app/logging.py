"""Logging: one format, and the ids of request and trace on every line."""

import json
import logging
import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime

from opentelemetry import trace
from opentelemetry.trace import format_span_id, format_trace_id

from app import VERSION
from app.settings import ServiceSettings

request_id: ContextVar[str] = ContextVar("request_id", default="-")

TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s [%(request_id)s]"
TRACE = " [%(trace_id)s %(span_id)s]"
NO_TRACE = {"trace_id": "-", "span_id": "-"}

# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id, flags; and
# further fields of later versions, of which ff is none.
TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,128}")


def configure_logging(settings: ServiceSettings) -> None:
    """Send the records of all loggers to stderr, uvicorn's too, a line each."""
    handler = logging.StreamHandler()
    handler.name = "service"
    handler.addFilter(add_ids)
    text = TEXT + TRACE if settings.telemetry_enabled else TEXT
    formatter = logging.Formatter(text, defaults=NO_TRACE)
    handler.setFormatter(JSONFormatter() if settings.log_format == "json" else formatter)

    root = logging.getLogger()
    root.setLevel(settings.log_level)
    root.handlers = [other for other in root.handlers if other.name != handler.name] + [handler]

    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    if settings.database_echo:  # the engine's own `echo` would add a handler of its own
        logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # app.access takes its place
    logging.getLogger("uvicorn.error").addFilter(is_not_access)


def is_not_access(record: logging.LogRecord) -> bool:
    # It contains the query string; app.access logs the request without it.
    return "WebSocket %s" not in str(record.msg)


def add_ids(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        record.trace_id = format_trace_id(span.trace_id)
        record.span_id = format_span_id(span.span_id)
    return True


class JSONFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, version, request id, what `extra` adds."""

    standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "service.version": VERSION,
        }
        fields |= {key: value for key, value in vars(record).items() if key not in self.standard}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the trace id of a valid `traceparent`, else a sane `X-Request-ID`, else the trace's.

    Where nothing is traced, the last is a new id.
    """
    given = dict(headers)
    if match := TRACEPARENT.fullmatch(given.get(b"traceparent", b"").decode("latin-1")):
        return match[1]
    name = given.get(b"x-request-id", b"").decode("latin-1")
    if REQUEST_ID.fullmatch(name):
        return name
    span = trace.get_current_span().get_span_context()
    return format_trace_id(span.trace_id) if span.is_valid else secrets.token_hex(16)

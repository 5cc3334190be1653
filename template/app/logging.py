"""Logging: one handler for all loggers, and the ids of request and trace on every line."""

import asyncio
import logging
import re
import secrets
import sys
import threading
import warnings
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import format_span_id, format_trace_id

from app.formatters import JSONFormatter, TextFormatter
from app.redaction import OWN
from app.settings import ServiceSettings

logger = logging.getLogger(__name__)
request_id: ContextVar[str] = ContextVar("request_id", default="-")

# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id, flags; and
# further fields of later versions, of which ff is none.
TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
# uvicorn's errors of a WebSocket: a message that is no text; a handshake that was refused
CLIENTS_FAULT = ("Invalid UTF-8", "ASGI callable returned without completing handshake")
REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,128}")


def configure_logging(settings: ServiceSettings) -> None:
    """Send the records of all loggers to stderr, uvicorn's too, one line each.

    `LOG_LEVEL` is the level of the service's own. Libraries log from WARNING up, since at INFO an
    HTTP client logs the queries of its calls, and at DEBUG a driver the values of statements; to
    hear more of one, set the level of its logger.
    """
    level = logging.getLevelNamesMapping()[settings.log_level]
    handler = logging.StreamHandler()
    handler.name = "service"
    handler.addFilter(add_ids)
    text = TextFormatter(traced=settings.telemetry_enabled, values=settings.log_values)
    handler.setFormatter(JSONFormatter() if settings.log_format == "json" else text)

    root = logging.getLogger()
    root.setLevel(max(level, logging.WARNING))
    root.handlers = [other for other in root.handlers if other.name != handler.name] + [handler]
    log_what_python_prints()

    for name in OWN:
        logging.getLogger(name).setLevel(level)
    logging.getLogger("alembic").setLevel(max(level, logging.INFO))
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    if settings.database_echo:  # the engine's own `echo` would add a handler of its own
        logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(max(level, logging.INFO))  # whatever its command says
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # app.access takes its place
    logging.getLogger("uvicorn.error").addFilter(leave_out_values)


def leave_out_values(record: logging.LogRecord) -> bool:
    """Keep the contents of requests and errors out of uvicorn's records."""
    text = str(record.msg)
    if text.startswith("Traceback "):  # a startup or shutdown failed: this is its `except`
        record.msg, record.exc_info = "the lifespan failed", sys.exc_info()
        if isinstance(sys.exception(), asyncio.CancelledError):  # by a second SIGINT
            record.msg, record.exc_info = "ended at once, as asked", None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
    elif isinstance(record.msg, OSError):  # says which address it can't listen on
        record.msg = text
    elif text.startswith(CLIENTS_FAULT):
        record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
    # A WebSocket's line contains the query string; app.access logs it without.
    return "WebSocket %s" not in text


def add_ids(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        record.trace_id = format_trace_id(span.trace_id)
        record.span_id = format_span_id(span.span_id)
    return True


def log_what_python_prints() -> None:
    """Log what Python would print to stderr, unless another hook is installed."""
    logging.raiseExceptions = False  # they would print a record's arguments
    warnings.showwarning = log_warning  # type: ignore[assignment]
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = log_uncaught
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = log_ignored
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = log_ignored


def log_warning(message: Warning | str, kind: object, file: str, line: int, *more: object) -> None:
    logger.warning("%s, line %d: %s", file, line, message)


def log_uncaught(kind: type[BaseException], error: BaseException, frames: Any) -> None:
    if isinstance(error, KeyboardInterrupt):
        return  # Python exits by SIGINT, as the exit code says
    logger.critical("uncaught error; LOG_VALUES=true shows its message", exc_info=error)


def log_ignored(failure: Any) -> None:
    """Log what ended a thread, or what was raised where nothing can catch it."""
    if failure.exc_value is not None and failure.exc_type is not SystemExit:
        logger.error("an error that nothing caught", exc_info=failure.exc_value)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the trace id of a valid `traceparent`, else a valid `X-Request-ID`, else the span's.

    Without a span it is a new id.
    """
    given = dict(headers)
    if match := TRACEPARENT.fullmatch(given.get(b"traceparent", b"").decode("latin-1")):
        return match[1]
    name = given.get(b"x-request-id", b"").decode("latin-1")
    if REQUEST_ID.fullmatch(name):
        return name
    span = trace.get_current_span().get_span_context()
    return format_trace_id(span.trace_id) if span.is_valid else secrets.token_hex(16)

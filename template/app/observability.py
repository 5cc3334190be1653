"""One log configuration, the request id, and one line for each request."""

import json
import logging
import re
import secrets
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

access_logger = logging.getLogger("app.access")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id, flags
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=-]{1,128}")


def configure_logging(level: str, log_format: Literal["text", "json"]) -> None:
    """Send the records of all loggers to stderr, uvicorn's too, a line each."""
    handler = logging.StreamHandler()
    handler.name = "service"
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())

    root = logging.getLogger()
    root.setLevel(level)
    root.handlers = [other for other in root.handlers if other.name != handler.name] + [handler]

    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # app.access takes its place


class TextFormatter(logging.Formatter):
    """`2026-11-24 12:00:00,000 INFO    app.access  GET /items 200 1.9 ms  [4bf92f35…]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return f"{line} [{current}]" if (current := request_id.get()) else line


class JSONFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, request id, fields given as `extra`."""

    standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        extra = {key: value for key, value in vars(record).items() if key not in self.standard}
        present = {key: value for key, value in fields.items() if value is not None}
        return json.dumps(present | extra, default=str)


class RequestLogMiddleware:
    """Gives each request an id, answers with it as `X-Request-ID`, and logs one line.

    The id is the trace id of a valid `traceparent`, else a sane `X-Request-ID`, else a new one.
    Probes are answered but not logged.
    """

    def __init__(self, app: ASGIApp, silent: str) -> None:
        self.app = app
        self.silent = silent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        status = 500
        started = time.perf_counter()
        current = identify(Headers(scope=scope))
        token = request_id.set(current)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = current
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            if not scope["path"].startswith(self.silent):
                milliseconds = round((time.perf_counter() - started) * 1000, 1)
                # The path as it was sent: still encoded, so that it can't break the line. Its
                # query is left out, since people put secrets there.
                method, path = scope["method"], scope["raw_path"].decode("latin-1")
                access_logger.info(
                    "%s %s %d %s ms",
                    method,
                    path,
                    status,
                    milliseconds,
                    extra={
                        "method": method,
                        "path": path,
                        "status": status,
                        "milliseconds": milliseconds,
                    },
                )
            request_id.reset(token)


def identify(headers: Headers) -> str:
    if match := TRACEPARENT.match(headers.get("traceparent", "")):
        return match[1]
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)

"""Statements: a span and a duration for each, and a warning for a slow one."""

import logging
import re
import time
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app import NAME

WRITE = re.compile(r"\b(INSERT|(?<!FOR )(?<!KEY )UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
statement_logger = logging.getLogger("app.statements")
SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)  # buckets of OpenTelemetry's conventions


def is_read(statement: str | None) -> bool:
    """Return whether a statement only reads; one that begins with WITH may write."""
    text = (statement or "").lstrip("( \n")
    return text[:6].upper() == "SELECT" or WRITE.search(text) is None


def watch_statements(engine: AsyncEngine, slow: float) -> None:
    """Record the duration of each statement, as a span too if its request is traced.

    A statement that took `slow` seconds or more is logged; 0 logs none. No parameter is recorded.
    """
    tracer = trace.get_tracer(NAME)
    durations = metrics.get_meter(NAME).create_histogram(
        "db.client.operation.duration", "s", explicit_bucket_boundaries_advisory=SECONDS
    )

    def watch(operation: str) -> None:
        @event.listens_for(engine.sync_engine, operation)
        def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
            span: trace.Span = INVALID_SPAN
            name = statement.split(maxsplit=1)[0].upper()
            attributes = {"db.system.name": context.dialect.name, "db.operation.name": name}
            if trace.get_current_span().get_span_context().is_valid:
                details = attributes | {"db.query.text": statement}
                span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=details)
            start = time.perf_counter()
            try:
                getattr(context.dialect, operation)(cursor, statement, parameters, context)
            except BaseException as error:
                attributes["error.type"] = type(error).__name__
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise
            finally:
                span.end()
                seconds = time.perf_counter() - start
                durations.record(seconds, attributes)
                if slow and seconds >= slow:
                    text, extra = " ".join(statement.split())[:1000], {"seconds": round(seconds, 3)}
                    statement_logger.warning("slow: %.3f s: %s", seconds, text, extra=extra)
            return True  # or SQLAlchemy would execute it again

    watch("do_execute")
    watch("do_executemany")

"""Export of traces and metrics by OTLP, configured by the standard `OTEL_…` variables.

Imported only if `TELEMETRY_ENABLED` is set: its packages are an extra.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Status
from sqlalchemy.ext.asyncio import AsyncEngine

from app import NAME, VERSION
from app.database.pool import POOL

SHUTDOWN_TIMEOUT = 3.0  # seconds


@asynccontextmanager
async def telemetry(engine: AsyncEngine, capacity: int) -> AsyncGenerator[None]:
    """Export spans and metrics while the service runs, and flush them at shutdown."""
    # Attributes from the environment take precedence.
    service = Resource.create({"service.name": NAME, "service.version": VERSION})
    resource = service.merge(OTELResourceDetector().detect())
    providers: list[TracerProvider | MeterProvider] = []
    if os.environ.get("OTEL_TRACES_EXPORTER") != "none":
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracers.add_span_processor(QueryRedactor())
        tracers.add_span_processor(BatchSpanProcessor(SpanExporter()))
        trace.set_tracer_provider(tracers)
        providers.append(tracers)
    if os.environ.get("OTEL_METRICS_EXPORTER") != "none":
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        metrics.set_meter_provider(meters)
        measure_pool(engine, capacity)
        providers.append(meters)

    def shut_down() -> None:
        for provider in providers:
            provider.shutdown()

    try:
        yield
    finally:
        # A collector that does not answer would delay shutdown by half a minute. A daemon thread,
        # since Python joins all others.
        thread = Thread(target=shut_down, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, SHUTDOWN_TIMEOUT)


class QueryRedactor(SpanProcessor):
    """Removes query strings from spans, as from the log: they may contain secrets."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if "url.query" in (span.attributes or {}):
            span.set_attribute("url.query", "REDACTED")


class SpanExporter(OTLPSpanExporter):
    """Omits the messages of errors, as the log does: they may contain values."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return super().export([without_messages(span) for span in spans])


def without_messages(span: ReadableSpan) -> ReadableSpan:
    if not span.events and not span.status.description:
        return span
    left_out = ("exception.message", "exception.stacktrace")
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=[
            Event(
                event.name,
                {
                    key: value
                    for key, value in (event.attributes or {}).items()
                    if key not in left_out
                },
                event.timestamp,
            )
            for event in span.events
        ],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def measure_pool(engine: AsyncEngine, capacity: int) -> None:
    """Observe the pool's connections, and the requests that wait for one."""
    pool: Any = engine.pool

    def connections(options: CallbackOptions) -> Iterator[Observation]:
        yield Observation(pool.checkedout(), POOL | {"db.client.connection.state": "used"})
        yield Observation(pool.checkedin(), POOL | {"db.client.connection.state": "idle"})

    meter = metrics.get_meter(NAME)
    gauge = meter.create_observable_up_down_counter
    unit = "{connection}"
    gauge("db.client.connection.count", [connections], unit)
    gauge("db.client.connection.idle.max", [lambda _: [Observation(pool.size(), POOL)]], unit)
    gauge("db.client.connection.max", [lambda _: [Observation(capacity, POOL)]], unit)
    request = "{request}"
    waiting = [lambda _: [Observation(pool.waiting(), POOL)]]
    gauge("db.client.connection.pending_requests", waiting, request)

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import literal, select

from app.dependencies import ReaderDep
from app.factory import create_app
from app.settings import ServiceSettings

SECRET = "hunter2"


@pytest.fixture
def settings(shared_settings: ServiceSettings) -> ServiceSettings:
    return shared_settings


@asynccontextmanager
async def serve(settings: ServiceSettings, **changes: Any) -> AsyncGenerator[AsyncClient]:
    """A client of the service with one more route, whose statement holds a secret."""
    app = create_app(settings.model_copy(update=changes))

    @app.get("/secret/{number}")
    async def secret(number: int, reader: ReaderDep, token: str = "") -> None:
        with trace.get_tracer("mine").start_as_current_span("mine"):
            await reader.execute(select(literal(SECRET)))

    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.mark.parametrize(("slow", "count"), [(0.000001, 1), (60, 0), (0, 0)])
async def test_a_slow_statement_is_logged_without_its_values(
    settings: ServiceSettings, caplog: pytest.LogCaptureFixture, slow: float, count: int
) -> None:
    async with serve(settings, database_slow_statement=slow) as client:
        await client.get("/secret/1")

    logged = [
        record
        for record in caplog.records
        if record.name == "app.statements" and " AS anon_1" in record.getMessage()
    ]
    assert [record.levelno for record in logged] == [logging.WARNING] * count
    assert SECRET not in caplog.text


async def test_a_request_its_statement_and_its_line_in_the_log_share_a_trace(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    exporter = InMemorySpanExporter()

    async with serve(settings, telemetry_enabled=True) as client:
        provider = trace.get_tracer_provider()
        assert isinstance(provider, TracerProvider)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        await client.get("/health/ready")
        response = await client.get("/secret/7", params={"token": SECRET})

    *_, statement, mine, request = exporter.get_finished_spans()
    assert (request.name, statement.name) == ("GET /secret/{number}", "SELECT")
    assert (statement.parent, mine.parent) == (mine.context, request.context)
    traces = {span.context.trace_id for span in exporter.get_finished_spans()}
    assert traces == {request.context.trace_id}
    assert SECRET not in request.to_json() + statement.to_json()
    trace_id = trace.format_trace_id(request.context.trace_id)
    assert response.headers["x-request-id"] == trace_id
    [line] = [line for line in capsys.readouterr().err.splitlines() if "app.access" in line]
    assert trace_id in line.rpartition("[")[2]

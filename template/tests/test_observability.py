import json
import logging
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, Callable
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
from app.logging import configure_logging
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


logger = logging.getLogger("app.features.mine")
library = logging.getLogger("library")


def fail() -> None:
    try:
        int(SECRET)
    except ValueError as error:
        error.add_note(SECRET)
        raise ExceptionGroup(SECRET, [KeyError(SECRET), OSError(2, SECRET)]) from error


def log_error() -> None:
    try:
        fail()
    except ExceptionGroup:
        logger.exception("it failed")


def log_unshowable() -> None:
    logger.error("odd", extra={"odd": type("Odd", (), {"__str__": lambda odd: int(SECRET)})()})


def call_library() -> None:
    library.warning("a token: %s", SECRET)
    library.warning(f"a token: {SECRET}")


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        (
            log_error,
            ["it failed", "int(SECRET)", "ValueError", "KeyError", "[Errno 2] No such file"],
        ),
        (lambda: logger.error("it failed: %s", ValueError(SECRET)), ["it failed: ValueError"]),
        (lambda: logger.error("%(error)r", {"error": ValueError(SECRET)}), ["ValueError"]),
        (lambda: logger.error(ValueError(SECRET)), ["ValueError"]),
        (lambda: logger.error("%d", SECRET), ["test_observability.py", "TypeError"]),
        (log_unshowable, ["odd"]),
        (call_library, ["a token: %s", "test_observability.py", "in call_library"]),
        (lambda: library.error("failed", exc_info=ValueError(SECRET)), ["failed", "ValueError"]),
        (lambda: warnings.showwarning(UserWarning(SECRET), UserWarning, "file", 7), ["UserWarn"]),
    ],
)
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_value_is_logged_by_whoever_raises_or_logs_it(
    settings: ServiceSettings,
    log_format: str,
    log: Callable[[], None],
    shown: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(settings.model_copy(update={"log_format": log_format, "log_level": "DEBUG"}))

    log()

    said = capsys.readouterr().err
    assert SECRET not in said
    assert all(part in said for part in shown)
    if log_format == "json":
        assert [json.loads(line)["level"] for line in said.splitlines()]


async def test_messages_are_shown_as_text_when_asked_and_never_as_json(
    settings: ServiceSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    for log_format, count in (("text", 2), ("json", 0)):
        changes = {"log_format": log_format, "log_values": True}
        configure_logging(settings.model_copy(update=changes))
        logger.error("it failed: %s", ValueError(SECRET), exc_info=KeyError(SECRET))
        assert capsys.readouterr().err.count(SECRET) == count


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_message_stays_on_one_line_and_is_cut(
    settings: ServiceSettings, log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings.model_copy(update={"log_format": log_format}))

    logger.warning("first\r\nsecond\x1b[2J\x85\u2028\u202elast")
    logger.warning("\u00e9\n" * 50_000, extra={"much": "\u00e9" * 50_000, "more": [1] * 50_000})

    said = capsys.readouterr().err
    assert all(char.isprintable() for line in said.split("\n") for char in line)
    short, long, end = said.split("\n")
    assert ("first" in short, "last" in short, end) == (True, True, "")
    assert 1_000 < len(long) < 16_384


async def test_a_number_that_json_lacks_leaves_the_line_valid(
    settings: ServiceSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings.model_copy(update={"log_format": "json"}))

    for number in (float("nan"), float("inf"), 10**5_000):
        logger.warning("odd", extra={"ratio": number, "count": 1})

        line = json.loads(capsys.readouterr().err, parse_constant=int)  # which refuses NaN
        assert (line["message"], line["count"]) == ("odd", 1)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
async def test_the_level_is_the_services_and_libraries_log_from_warning_up(
    settings: ServiceSettings, level: str
) -> None:
    configure_logging(settings.model_copy(update={"log_level": level, "database_echo": False}))
    levels = logging.getLevelNamesMapping()

    def heard(*names: str) -> set[int]:
        return {logging.getLogger(name).getEffectiveLevel() for name in names}

    assert heard("app.features.mine", "migrations.runner") == {levels[level]}
    server = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "alembic.runtime")
    assert heard(*server) == {max(levels[level], logging.INFO)}
    libraries = ("httpx2", "httpcore2", "asyncio", "sqlalchemy", "multipart")
    assert heard("root", *libraries) == {logging.WARNING}


async def test_what_python_would_print_is_logged(
    settings: ServiceSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = [(sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")]
    for module, name in hooks:
        monkeypatch.setattr(module, name, getattr(module, f"__{name}__"))
    configure_logging(settings)

    thread = threading.Thread(target=int, args=(SECRET,))
    thread.start()
    thread.join()
    type("Odd", (), {"__del__": lambda odd: int(SECRET)})()
    sys.excepthook(ValueError, ValueError(SECRET), None)

    said = capsys.readouterr().err
    assert SECRET not in said
    assert [line.split()[2] for line in said.splitlines() if line.startswith("20")] == [
        "ERROR",
        "ERROR",
        "CRITICAL",
    ]

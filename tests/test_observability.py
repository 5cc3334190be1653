"""What a service tells a collector: traces and metrics, and no secret among them."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.services import Database, Service, wait_for

SECRET = "hunter2"
OFF = """
import asyncio, sys
from app.main import app

async def run():
    async with app.router.lifespan_context(app):
        pass

asyncio.run(run())
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "app.telemetry"))])
"""


def plain(attributes: Any) -> dict[str, str | int]:
    def value(attribute: KeyValue) -> str | int:
        return attribute.value.string_value or attribute.value.int_value

    return {attribute.key: value(attribute) for attribute in attributes}


class Collector:
    """Receives what OTLP's exporters send by HTTP."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                collector.bodies.append((self.path, self.rfile.read(length)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def text(self) -> str:
        return "".join(body.decode("latin-1") for _, body in self.bodies)

    def spans(self) -> list[Any]:
        return [
            span
            for path, body in self.bodies
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def points(self, name: str) -> list[Any]:
        """Return the newest points of a metric."""
        found: list[Any] = []
        for path, body in self.bodies:
            if path != "/v1/metrics":
                continue
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.name == name:
                            found = [*metric.sum.data_points, *metric.histogram.data_points]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = Thread(target=collector.server.serve_forever, args=(0.05,))
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def variables(migrated: Database, endpoint: str, **further: str) -> dict[str, str]:
    return {
        **migrated.variables,
        "TELEMETRY_ENABLED": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        **further,
    }


def test_a_collector_gets_traces_and_metrics_without_secrets(
    service: Service, migrated: Database, collector: Collector
) -> None:
    soon = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
    item = {"name": f"{SECRET} name", "description": SECRET}

    with service.serve(
        **variables(migrated, collector.endpoint, LOG_FORMAT="json", **soon)
    ) as server:
        server.client.get("/health/ready")
        created = server.client.post("/items", params={"token": SECRET}, json=item)
        assert created.status_code == 201
        assert server.client.post("/items", json=item).status_code == 409
        assert server.client.get("/items/1", headers={"X-Request-ID": "mine"}).status_code == 200
        wait_for(
            lambda: len([s for s in collector.spans() if s.name == "GET /items/{item_id}"]) > 0
        )
        wait_for(
            lambda: (
                409
                in [
                    plain(point.attributes).get("http.response.status_code")
                    for point in collector.points("http.server.request.duration")
                ]
            )
        )
        wait_for(lambda: len(collector.points("db.client.connection.wait_time")) > 0)

    spans = collector.spans()
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    requests = {span.span_id.hex(): span for span in spans if not span.parent_span_id}
    assert [span.name for span in requests.values()] == [
        "POST /items",
        "POST /items",
        "GET /items/{item_id}",
    ]
    statements = [span for span in spans if span.parent_span_id]
    for span in statements:
        request = requests[span.parent_span_id.hex()]
        assert span.trace_id == request.trace_id
    assert {"INSERT", "SELECT"} <= {span.name for span in statements}
    [failed] = [span for span in statements if span.status.code]
    assert (failed.name, failed.status.message, len(failed.events)) == ("INSERT", "", 0)

    logged = {line["span_id"]: line for line in lines if line["logger"] == "app.access"}
    assert logged.keys() == requests.keys()
    assert all(logged[key]["trace_id"] == span.trace_id.hex() for key, span in requests.items())
    assert created.headers["x-request-id"] in [span.trace_id.hex() for span in requests.values()]

    durations = [
        plain(point.attributes) for point in collector.points("http.server.request.duration")
    ]
    assert {
        (found["http.request.method"], found["http.route"], found["http.response.status_code"])
        for found in durations
    } == {("POST", "/items", 201), ("POST", "/items", 409), ("GET", "/items/{item_id}", 200)}
    states = [plain(point.attributes) for point in collector.points("db.client.connection.count")]
    assert {state["db.client.connection.state"] for state in states} == {"used", "idle"}
    [most] = collector.points("db.client.connection.max")
    [kept] = collector.points("db.client.connection.idle.max")
    assert (most.as_int, kept.as_int) == (15, 5)
    [waited] = collector.points("db.client.connection.wait_time")
    assert waited.count >= 3

    assert SECRET not in collector.text()
    assert "my-service" in collector.text()


def test_what_is_not_sent_yet_is_sent_at_the_end(
    service: Service, migrated: Database, collector: Collector
) -> None:
    with service.serve(**variables(migrated, collector.endpoint)) as server:
        assert server.client.get("/items").status_code == 200
        assert collector.bodies == []
        server.stop(signal.SIGTERM)

    assert {"GET /items", "SELECT"} <= {span.name for span in collector.spans()}
    assert len(collector.points("http.server.request.duration")) == 1


def test_a_collector_that_does_not_answer_holds_nothing_up(
    service: Service, migrated: Database
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with service.serve(**variables(migrated, endpoint)) as server:
            assert server.client.get("/items").status_code == 200
            start = time.monotonic()
            server.stop(signal.SIGTERM)

    assert time.monotonic() - start < 8  # 3 s for the collector, and a busy machine's
    assert "engine disposed of" in server.log()


def test_one_signal_can_be_left_out(
    service: Service, migrated: Database, collector: Collector
) -> None:
    with service.serve(
        **variables(migrated, collector.endpoint, OTEL_TRACES_EXPORTER="none")
    ) as server:
        assert server.client.get("/items").status_code == 200
        server.stop(signal.SIGTERM)

    assert collector.spans() == []
    assert len(collector.points("http.server.request.duration")) == 1


def test_a_service_without_telemetry_imports_nothing_of_it(
    service: Service, migrated: Database
) -> None:
    done = service.run("uv", "run", "--no-sync", "python", "-c", OFF, variables=migrated.variables)

    assert done.stdout.splitlines()[-1] == "[]"


def test_telemetry_without_its_packages_is_refused_at_the_start(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    place = {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "environment")}
    start = ("uv", "run", "--no-sync", "python", "-c", "import app.main")
    on = migrated.variables | {"TELEMETRY_ENABLED": "true"} | place

    service.run("uv", "sync", "--quiet", "--no-dev", variables=place)
    refused = service.run(*start, variables=on, check=False)
    service.run("uv", "sync", "--quiet", "--no-dev", "--extra", "telemetry", variables=place)
    service.run(*start, variables=on)

    assert refused.returncode == 1
    assert refused.stdout.splitlines() == [
        "Wrong settings:",
        "  TELEMETRY_ENABLED: needs packages that are not installed; run uv sync --extra telemetry",
        "See .env.example.",
    ]

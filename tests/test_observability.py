"""What a service sends to a collector: traces and metrics, and no secrets."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import promql_parser as promql
import pytest
import yaml
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.support.databases import Database
from tests.support.pages import DOCS, block_text, page_text, table
from tests.support.processes import wait_for
from tests.support.services import Service

PAGE = "how-to/metrics-and-traces.md"
SECRET = "hunter2"
NOWHERE = {
    "sqlite": {"DATABASE_URL": "sqlite:///./nowhere.db"},
    "postgresql": {"DATABASE_URL": "postgresql://user@127.0.0.1:1/nowhere"},
}
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


def labels(attributes: Any) -> dict[str, str]:
    return {name.replace(".", "_"): str(value) for name, value in plain(attributes).items()}


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
            if path.endswith("/v1/traces")
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resources(self) -> list[Any]:
        """Return what was sent of metrics, oldest first."""
        return [
            resource
            for path, body in self.bodies
            if path.endswith("/v1/metrics")
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        ]

    def metrics(self) -> dict[str, list[Any]]:
        """Return the newest points of each metric."""
        return {
            metric.name: [*metric.sum.data_points, *metric.histogram.data_points]
            for resource in self.resources()
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def series(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield what Prometheus makes of the metrics: each series by its name and its labels.

        By its default strategy, as the page on operation says.
        """
        for resource in self.resources():
            process = labels(resource.resource.attributes)
            job, instance = process.pop("service_name"), process.pop("service_instance_id")
            always = {"job": job, "instance": instance}
            yield "target_info", always | process
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                name = metric.name.replace(".", "_") + "_seconds" * (metric.unit == "s")
                for point in metric.sum.data_points:
                    total = "_total" * metric.sum.is_monotonic
                    yield f"{name}{total}", always | labels(point.attributes)
                for point in metric.histogram.data_points:
                    given = always | labels(point.attributes)
                    yield from ((f"{name}_{part}", given) for part in ("count", "sum"))
                    for bound in (*point.explicit_bounds, "+Inf"):
                        yield f"{name}_bucket", given | {"le": str(bound)}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = Thread(target=collector.server.serve_forever, args=(0.05,))
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def variables(title: str, endpoint: str) -> dict[str, str]:
    """Return the variables that the documentation shows, for the collector at `endpoint`."""
    text = block_text(page_text(PAGE), title)
    lines = re.sub(r"http://127.0.0.1:\d+", endpoint, text).splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_a_collector_gets_traces_and_metrics_without_secrets(
    service: Service, migrated: Database, collector: Collector
) -> None:
    on = variables("environment", collector.endpoint) | migrated.variables
    item = {"name": f"{SECRET} name", "description": SECRET}

    with service.serve(**on, LOG_FORMAT="json", OTEL_BSP_SCHEDULE_DELAY="60000") as server:
        server.client.get("/health/ready")
        created = server.client.post("/items", json=item)
        assert created.status_code == 201
        assert server.client.post("/items", json=item).status_code == 409
        assert server.client.get("/items/1", headers={"X-Request-ID": "mine"}).status_code == 200
        assert server.client.get("/items", params={"token": SECRET}).status_code == 422
        assert collector.bodies == []  # all of it is sent at the end
        server.stop(signal.SIGTERM)

    spans = collector.spans()
    requests = {span.span_id.hex(): span for span in spans if not span.parent_span_id}
    names = [span.name for span in requests.values()]
    assert names == ["POST /items", "POST /items", "GET /items/{item_id}", "GET /items"]
    statements = [span for span in spans if span.parent_span_id]
    for span in statements:
        assert span.trace_id == requests[span.parent_span_id.hex()].trace_id
    assert {"INSERT", "SELECT"} <= {span.name for span in statements}
    [failed] = [span for span in statements if span.status.code]
    assert (failed.name, failed.status.message, len(failed.events)) == ("INSERT", "", 0)

    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    logged = {line["span_id"]: line for line in lines if line["logger"] == "app.access"}
    assert logged.keys() == requests.keys()
    assert all(logged[key]["trace_id"] == span.trace_id.hex() for key, span in requests.items())
    assert created.headers["x-request-id"] == next(iter(logged.values()))["trace_id"]

    metrics = {
        name: [(plain(point.attributes), point) for point in points]
        for name, points in collector.metrics().items()
    }
    documented = {name: cells for name, cells in table(PAGE).items() if "." in name}
    unseen = {"app.unavailable", "db.client.connection.timeouts"}  # of a database that is well
    assert metrics.keys() == documented.keys() - unseen
    for name in metrics:
        cells = documented[name]
        assert set(re.findall(r"`([^`]+)`", cells[0])) <= metrics[name][0][0].keys()
    assert {
        (found["http.request.method"], found["http.route"], found["http.response.status_code"])
        for found, _ in metrics["http.server.request.duration"]
    } == {
        ("POST", "/items", 201),
        ("POST", "/items", 409),
        ("GET", "/items/{item_id}", 200),
        ("GET", "/items", 422),
    }
    assert {
        found["db.client.connection.state"] for found, _ in metrics["db.client.connection.count"]
    } == {"used", "idle"}
    assert metrics["db.client.connection.idle.max"][0][1].as_int == 15
    assert metrics["db.client.connection.max"][0][1].as_int == 15
    assert metrics["db.client.connection.wait_time"][0][1].count >= 3

    assert SECRET not in collector.text()
    assert "my-service" in collector.text()


HOLD = """
import asyncio

from fastapi import APIRouter
from opentelemetry import trace
from sqlalchemy import literal, select

from app.dependencies import SessionDep

router = APIRouter()


@router.get("/hold")
async def hold(session: SessionDep) -> None:
    await session.execute(select(literal(1)))
    await asyncio.sleep(3)


@router.get("/failing")
async def fail(value: str) -> None:
    with trace.get_tracer("mine").start_as_current_span("mine"):
        int(value)
"""


def test_what_goes_wrong_is_counted_and_its_message_is_not_sent(
    service: Service, migrated: Database, collector: Collector, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    copy.extend(routes=HOLD)
    on = variables("environment", collector.endpoint) | migrated.variables
    pool = {"DATABASE_POOL_SIZE": "1", "DATABASE_POOL_TIMEOUT": "0.2"}

    with copy.serve(**on, **pool) as server, ThreadPoolExecutor() as threads:
        held = threads.submit(server.client.get, "/hold")
        wait_for(lambda: server.client.get("/items").status_code == 503, 10)
        assert held.result().status_code == 200
        assert server.client.get("/failing", params={"value": SECRET}).status_code == 500
        server.stop(signal.SIGTERM)

    metrics = collector.metrics()
    [unavailable] = metrics["app.unavailable"]
    [timeouts] = metrics["db.client.connection.timeouts"]
    assert plain(unavailable.attributes) == {"reason": "pool full"}
    assert unavailable.as_int == timeouts.as_int > 0
    [mine] = [span for span in collector.spans() if span.name == "mine"]
    [event] = mine.events
    assert plain(event.attributes)["exception.type"] == "ValueError"
    assert SECRET not in collector.text()


def queries() -> Iterator[str]:
    """Yield those of the alerts and the dashboard, as Grafana fills them in."""
    rules = yaml.safe_load((DOCS / "how-to/prometheus-alerts.yaml").read_text())
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])
    dashboard = json.loads((DOCS / "how-to/grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m").replace("$job", "my-service")
    [job] = [
        each["query"]["query"] for each in dashboard["templating"]["list"] if "refresh" in each
    ]
    yield re.sub(r"label_values\((\w+), (\w+)\)", r"count by (\2) (\1)", job)


def parts(query: str) -> list[Any]:
    """Return the nodes of a query's tree; a query that is none is an error."""
    found: list[Any] = []
    promql.walk(promql.parse(query), found.append)
    return found


def selects(matcher: Any, value: str) -> bool:
    """Tell whether a matcher takes a label's value, which is empty where there is no label."""
    if matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe):
        matches = re.fullmatch(matcher.value, value) is not None
    else:
        matches = matcher.value == value
    return matches == (matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re))


def test_alerts_and_dashboard_ask_for_what_a_service_sends(
    service: Service, migrated: Database, collector: Collector, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    copy.extend(routes=HOLD)
    on = variables("environment", collector.endpoint) | migrated.variables
    pool = {"DATABASE_POOL_SIZE": "1", "DATABASE_POOL_TIMEOUT": "0.2"}
    with copy.serve(**on, **pool) as server, ThreadPoolExecutor() as threads:
        for status in (201, 409):
            assert server.client.post("/items", json={"name": "a"}).status_code == status
        held = threads.submit(server.client.get, "/hold")
        wait_for(lambda: server.client.get("/items").status_code == 503, 10)
        held.result()
        server.stop(signal.SIGTERM)
    sent = list(collector.series())

    asked = set()
    for query in queries():
        nodes = parts(query)
        selectors = [node for node in nodes if isinstance(node, promql.VectorSelector)]
        grouped = {
            label
            for node in nodes
            if isinstance(node, promql.AggregateExpr) and node.modifier
            for label in node.modifier.labels
        }
        assert selectors, query
        for selector in selectors:
            found = [
                given
                for name, given in sent
                if name == selector.name
                and all(
                    selects(matcher, given.get(matcher.name, ""))
                    for matcher in selector.matchers.matchers
                )
            ]
            assert found, f"{selector.prettify()} is never sent"
            assert any(grouped <= given.keys() for given in found), query
            asked.add(str(selector.name))
    # No metric is forgotten, but for what says the same as another.
    named = {re.sub(r"_(bucket|count|sum)$", "", name) for name, _ in sent}
    assert named - {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} == {
        "db_client_connection_idle_max"
    }


def test_each_alert_of_the_page_is_one_of_the_file() -> None:
    rules = yaml.safe_load((DOCS / "how-to/prometheus-alerts.yaml").read_text())
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]

    assert names == [name.strip("`") for name in table("how-to/operate.md", "Five alerts")]
    assert len(names) == 5


def test_a_stranger_does_not_decide_which_traces_are_kept(
    service: Service, collector: Collector
) -> None:
    sampling = block_text(page_text("how-to/operate.md"), "sampling")
    on = variables("environment", collector.endpoint) | NOWHERE[service.database]
    on |= dict(line.split("=", 1) for line in sampling.splitlines())
    kept, left_out = f"{1:032x}", "f" * 32  # by the last 64 bits

    with service.serve(**on) as server:
        for trace, sampled in ((kept, "00"), (left_out, "01")):
            parent = f"00-{trace}-{1:016x}-{sampled}"
            answer = server.client.get("/nowhere", headers={"traceparent": parent})
            assert answer.headers["X-Request-ID"] == trace
        server.stop(signal.SIGTERM)

    assert {span.trace_id.hex() for span in collector.spans()} == {kept}


def test_a_collector_that_does_not_answer_delays_nothing(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        on = variables("environment", endpoint) | NOWHERE[service.database]
        with service.serve(**on) as server:
            assert server.client.get("/nowhere").status_code == 404
            start = time.monotonic()
            server.stop(signal.SIGTERM)

    assert time.monotonic() - start < 8  # 3 s for the collector, and a busy machine's
    assert "engine disposed of" in server.log()


def test_prometheus_gets_metrics_and_nobody_gets_traces(
    service: Service, collector: Collector
) -> None:
    on = variables("prometheus", collector.endpoint) | NOWHERE[service.database]
    with service.serve(**on) as server:
        assert server.client.get("/nowhere").status_code == 404
        server.stop(signal.SIGTERM)

    assert {path for path, _ in collector.bodies} == {"/api/v1/otlp/v1/metrics"}
    assert "http.server.request.duration" in collector.metrics()


def test_a_service_without_telemetry_imports_nothing_of_it(service: Service) -> None:
    nowhere = NOWHERE[service.database]
    done = service.run("uv", "run", "--no-sync", "python", "-c", OFF, variables=nowhere)

    assert done.stdout.splitlines()[-1] == "[]"


def test_telemetry_without_its_packages_is_refused_at_the_start(
    service: Service, tmp_path: Path
) -> None:
    place = {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "environment")}
    on = NOWHERE[service.database] | {"TELEMETRY_ENABLED": "true"} | place
    start = ("uv", "run", "--no-sync", "python", "-c", "import app.main")
    [install] = re.findall(r"uv sync .*", (service.folder / "Dockerfile").read_text())

    service.run("sh", "-c", install, variables=place)
    refused = service.run(*start, variables=on, check=False)
    service.run("sh", "-c", install, variables=place | {"EXTRA": "telemetry"})
    service.run(*start, variables=on)

    assert refused.returncode == 1
    assert refused.stdout.splitlines() == [
        "Wrong settings:",
        "  TELEMETRY_ENABLED: needs packages that are not installed; run uv sync --extra telemetry",
        "See .env.example.",
    ]

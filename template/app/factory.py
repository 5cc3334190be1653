"""The application factory: read it from top to bottom."""

from collections.abc import Callable

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from app import DESCRIPTION, TITLE, VERSION
from app.caching import answer_not_modified
from app.error_handlers import add_error_handlers
from app.health import is_probe
from app.health import router as health
from app.lifespan import lifespan
from app.limits import limit_bodies, limit_requests
from app.logging import configure_logging
from app.middleware import answer_head, trace_requests
from app.openapi.document import add_openapi
from app.settings import ServiceSettings
from app.urls import check_hosts, refuse_encoded_slashes
from app.validation import check_request
from app.websockets import close_websockets


def create_app(
    settings: ServiceSettings, add_features: Callable[[FastAPI], None] | None = None
) -> FastAPI:
    """Create the application from its settings, and with its features, if any.

    Configures logging for the process; opens no connection.
    """
    configure_logging(settings)

    request_telemetry: TelemetryConfig = {
        "tracing": settings.telemetry_enabled,
        "metrics": settings.telemetry_enabled,
        "logs": False,  # they would contain the messages of exceptions
        "operation_spans": False,  # each costs as much as the span of a request
        "auto_configure": False,  # the lifespan configures it, and shuts it down in bounded time
        "exclude": is_probe,
    }

    # FastAPIOffline bundles Swagger UI: the documentation's pages load nothing from other hosts.
    create: Callable[..., FastAPI] = FastAPIOffline if settings.docs_enabled else FastAPI
    app = create(
        title=TITLE,
        description=DESCRIPTION,
        version=VERSION,
        lifespan=lifespan,
        dependencies=[Depends(check_request)],
        generate_unique_id_function=lambda route: route.name,  # which names clients' functions
        redirect_slashes=False,  # it would redirect to the host in the client's Host header
        openapi_url="/openapi.json" if settings.docs_enabled else None,
        redoc_url=None,
        telemetry=request_telemetry,
    )
    app.state.settings = settings

    add_error_handlers(app)

    if add_features is not None:
        add_features(app)

    app.include_router(health)

    # Each is outside those that are added before it, and so outside the features' own, added above:
    # their responses have an id, a line in the log and CORS headers. CORS, the outermost, answers
    # preflight requests itself, without an id or a line.
    app.add_middleware(answer_not_modified)
    app.add_middleware(limit_bodies, max_body_size=settings.max_body_size)
    if settings.allowed_hosts != ("*",):
        app.add_middleware(check_hosts, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(refuse_encoded_slashes)
    app.add_middleware(answer_head)
    app.add_middleware(limit_requests)
    app.add_middleware(trace_requests)
    app.add_middleware(close_websockets)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("*",),
            allow_headers=("*",),
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-ID"],
        )

    add_openapi(app)

    return app

"""The service, put together: read it from top to bottom."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import DESCRIPTION, TITLE
from app.errors import add_error_handlers
from app.features import add_features
from app.health import router as health
from app.lifespan import lifespan
from app.middleware import check_hosts, limit_bodies, trace_requests
from app.observability import configure_logging
from app.settings import Settings, load_settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the service from `settings`, by default the environment's. Opens nothing.

    Raises:
        SystemExit: if the environment is not valid; the message says what to mend.
    """
    settings = settings or load_settings()
    configure_logging(settings)

    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url="/openapi.json" if settings.docs_enabled else None,
    )
    app.state.settings = settings

    # The last one added is the first to see a request.
    app.add_middleware(limit_bodies, max_body_size=settings.max_body_size)
    if settings.allowed_hosts != ("*",):
        app.add_middleware(check_hosts, allowed_hosts=settings.allowed_hosts, exempt=health.prefix)
    app.add_middleware(trace_requests, silent=health.prefix)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("*",),
            allow_headers=("*",),
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-ID"],
        )

    add_error_handlers(app)

    app.include_router(health)
    add_features(app)

    return app


app = create_app()

"""The service with nineteen resources more, whose routes come before those of the example."""

from app.factory import create_app
from app.features.items.routes import router as items
from app.features.registration import add_features
from app.routing import Router
from app.settings import Settings, load_settings
from fastapi import FastAPI


def add_twenty(app: FastAPI) -> None:
    for number in range(19):
        router = Router(prefix=f"/resources-{number}")
        for route in items.routes:
            router.add_api_route(
                route.path.removeprefix(items.prefix),
                route.endpoint,
                name=f"{route.name}_{number}",
                methods=route.methods,
                response_model=route.response_model,
                status_code=route.status_code,
                response_class=route.response_class,
            )
        app.include_router(router)
    add_features(app)


app = create_app(load_settings(Settings), add_twenty)

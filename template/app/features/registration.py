"""The features of the service, registered one by one. Yours: an update leaves it alone."""

from fastapi import FastAPI

from app.features.items.routes import router as items


def add_features(app: FastAPI) -> None:
    """Register routers, and whatever else the features need of FastAPI or logging."""
    app.include_router(items)

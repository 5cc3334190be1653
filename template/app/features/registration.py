"""What the service is for, feature by feature. Yours: an update leaves it alone."""

from fastapi import FastAPI

from app.features.items.routes import router as items


def add_features(app: FastAPI) -> None:
    """Register routers, and whatever else of FastAPI or logging the features need."""
    app.include_router(items)

"""What the service is for: its features, registered one by one."""

from fastapi import FastAPI

from app.items import router as items


def add_features(app: FastAPI) -> None:
    """Register routers, and whatever else of FastAPI or the log the features need."""
    app.include_router(items)

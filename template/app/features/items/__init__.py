"""An example feature, yours to copy, to change or to delete: an update leaves it alone."""

from app.features.items.routes import router

__all__ = ["router"]

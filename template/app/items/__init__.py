"""An example feature: copy it, change it, or delete it."""

from app.items.routes import router

__all__ = ["router"]

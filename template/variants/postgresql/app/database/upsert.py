"""The `insert` that can update what is stored already: `on_conflict_do_update` and `_do_nothing`."""

from sqlalchemy.dialects.postgresql import insert

__all__ = ["insert"]

"""The `insert` that can update what is stored already: `on_conflict_do_update` and `_do_nothing`.

An update by it runs no `onupdate`: set `updated_at`, and a `version`, in its `set_` as well.
"""

from sqlalchemy.dialects.postgresql import insert

__all__ = ["insert"]

"""What readiness and the doctor ask the database."""

from sqlalchemy import Row, column, false, func, select

READ_ONLY = false()
"""Whether the database accepts no writes: a read-only file is never opened."""

DAMAGE = select(column("quick_check")).select_from(func.pragma_quick_check(1)).scalar_subquery()
SERVER = select(
    func.sqlite_version().label("version"), column("journal_mode"), DAMAGE.label("damage")
).select_from(func.pragma_journal_mode())
"""What the doctor asks."""


def describe_server(server: Row[str, str, str], connections: int) -> tuple[str, str]:
    """Return a description of the database, and a problem: damage, or no WAL mode."""
    text = f"SQLite {server.version}; this service may open {connections} connections"
    if server.damage != "ok":
        return "", f"damaged: {' '.join(server.damage.split())}; restore a backup"
    if server.journal_mode == "wal":
        return text, ""
    return "", "not in WAL mode, so that readers and writers wait; run alembic upgrade head"

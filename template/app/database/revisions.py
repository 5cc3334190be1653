"""The revision of the database, compared with the migrations that this release has."""

import asyncio
from functools import cache
from pathlib import Path
from typing import Literal

from sqlalchemy import String, column, select, table

from app.database.reader import Reader
from app.database.server_info import READ_ONLY

Schema = Literal["up to date", "behind", "ahead"]

MIGRATIONS = Path(__file__).parents[2] / "migrations"
VERSIONS = select(column("version_num", String), READ_ONLY.label("read_only")).select_from(
    table("alembic_version")
)


async def compare_revisions(reader: Reader) -> tuple[Schema, bool]:
    """Compare the database with the migrations; return also whether it is read-only.

    A revision that the migrations don't have is a newer release's, or another branch's.
    """
    rows = (await reader.execute(VERSIONS)).all()
    current = {row.version_num for row in rows}
    heads, known = await asyncio.to_thread(revisions)
    read_only = any(row.read_only for row in rows)
    if current == heads:
        return "up to date", read_only
    return ("behind" if current <= known else "ahead"), read_only


@cache
def revisions() -> tuple[set[str], set[str]]:
    """Read the heads, and all revisions, from the migrations' files."""
    # Importing Alembic takes a tenth of the startup, and it is needed once: import it then.
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    return set(scripts.get_heads()), {script.revision for script in scripts.walk_revisions()}

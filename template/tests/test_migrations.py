import asyncio
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from app.settings import ServiceSettings
from tests.database import alembic
from tests.isolation import ALEMBIC
from tests.rows import fill, names


async def run(operation: Callable[..., Any], settings: ServiceSettings, *arguments: str) -> None:
    await asyncio.to_thread(operation, alembic(settings), *arguments)


async def test_the_models_have_no_change_without_a_migration(settings: ServiceSettings) -> None:
    await run(command.check, settings)


async def test_every_migration_can_be_downgraded_and_upgraded_again(
    unmigrated_settings: ServiceSettings,
) -> None:
    await run(command.upgrade, unmigrated_settings, "head")
    await run(command.downgrade, unmigrated_settings, "base")
    await run(command.upgrade, unmigrated_settings, "head")
    await run(command.check, unmigrated_settings)


async def test_every_migration_is_upgraded_and_downgraded_with_rows_in_the_tables(
    unmigrated_settings: ServiceSettings,
) -> None:
    scripts = ScriptDirectory.from_config(alembic(unmigrated_settings))
    for script in reversed(list(scripts.walk_revisions())):
        before = await names(unmigrated_settings)
        await run(command.upgrade, unmigrated_settings, script.revision)
        await fill(unmigrated_settings)
        if not script.is_merge_point:
            await run(command.downgrade, unmigrated_settings, str(script.down_revision or "base"))
            for name in sorted(await names(unmigrated_settings) - before):
                pytest.fail(
                    f"{script.path}: downgrade() leaves {name} behind, and upgrade() will fail."
                    f' Add: op.execute("DROP {name}")'
                )
            await run(command.upgrade, unmigrated_settings, script.revision)
            await fill(unmigrated_settings)


async def test_replicas_may_migrate_at_the_same_time(unmigrated_settings: ServiceSettings) -> None:
    url = unmigrated_settings.driver_url.render_as_string(hide_password=False)

    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ALEMBIC, "upgrade", "head"),
            env=os.environ | {"DATABASE_URL": url},
        )
        for _ in range(2)
    ]
    codes = [await process.wait() for process in processes]

    assert codes == [0, 0]
    await run(command.check, unmigrated_settings)


def test_an_unreachable_database_ends_a_migration_in_one_line(
    unreachable_settings: ServiceSettings,
) -> None:
    with pytest.raises(SystemExit) as stopped:  # Python shows its text, and exits with 1
        command.upgrade(alembic(unreachable_settings), "head")

    assert re.fullmatch(r"\S+ is not available: .*", str(stopped.value))

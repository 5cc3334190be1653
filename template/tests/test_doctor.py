import re
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, Table

from app.doctor import examine
from app.settings import ServiceSettings, load_settings


async def test_a_migrated_database_is_well(settings: ServiceSettings) -> None:
    findings = await examine(settings, processes=1)

    assert [finding for finding in findings if finding.wrong] == []
    assert {"database", "server", "schema"} <= {finding.subject for finding in findings}


async def test_a_schema_that_is_behind_is_wrong_and_the_command_is_named(
    unmigrated_settings: ServiceSettings,
) -> None:
    *_, schema = await examine(unmigrated_settings, processes=1)

    assert (schema.subject, schema.wrong) == ("schema", True)
    assert re.search(r"alembic upgrade head .*\(.*alembic_version.*\)$", schema.text)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("tested_dropped", "tested_dropped"), ("alembic_version", "column.*alembic_version.colour")],
)
async def test_a_table_or_a_column_that_is_missing_is_wrong_and_named(
    settings: ServiceSettings, name: str, reason: str
) -> None:
    *_, table = await examine(settings, 1, [Table(name, MetaData(), Column("colour"))])

    assert (table.subject, table.wrong) == ("table", True)
    assert re.search(f"^{name} can't be read: .*{reason}", table.text)


async def test_an_unreachable_database_is_wrong(unreachable_settings: ServiceSettings) -> None:
    *_, database = await examine(unreachable_settings, processes=1)

    assert (database.subject, database.wrong) == ("database", True)


async def test_each_explicit_setting_is_reported_with_its_source(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.driver_url.render_as_string(hide_password=False))
    monkeypatch.setenv("DATABASE_POOL_SIZE", "7")
    monkeypatch.setenv("LOG_LEVEL", "")

    told = [finding.text for finding in await examine(load_settings(ServiceSettings), processes=1)]

    assert "DATABASE_POOL_SIZE=7 from the environment" in told
    assert not any(text.startswith("LOG_LEVEL") for text in told)


async def test_the_development_server_is_not_a_setting(settings: ServiceSettings) -> None:
    findings = await examine(settings, processes=1, folder=".server/")

    assert not any("DATABASE_URL" in finding.text for finding in findings)
    [database] = [finding for finding in findings if finding.subject == "database"]
    assert database.text.endswith("(.server/)")


async def test_an_unknown_name_in_the_env_file_is_reported(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_text("LOG_LEVELS=hunter2\nLOG_FORMAT=text\nX_OF_COMPOSE=1\n")
    monkeypatch.setitem(ServiceSettings.model_config, "env_file", file)

    findings = await examine(settings, processes=1)

    assert [finding.text for finding in findings if finding.doubtful] == [
        "LOG_LEVELS is not a setting; is it LOG_LEVEL?",
        "X_OF_COMPOSE is not a setting",
    ]
    assert not any(finding.wrong for finding in findings)

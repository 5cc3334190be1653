import os
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator, AliasChoices, Field, SecretStr

from app.settings import ServiceSettings, load_settings
from app.settings_sources import unknown_names, variables
from tests.isolation import hide_variables


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "mysql://user:hunter2@host/name"),
        ("DATABASE_POOL_SIZE", "hunter2"),
        ("DATABASE_POOL_SIZE", "0"),
        ("DATABASE_POOL_TIMEOUT", "-1"),
        ("LOG_LEVEL", "hunter2"),
        ("LOG_FORMAT", "hunter2"),
        ("MAX_BODY_SIZE", "1e"),
        ("ALLOWED_HOSTS", "https://hunter2"),
        ("ALLOWED_HOSTS", "hunter2:8000"),
        ("CORS_ORIGINS", "hunter2"),
        ("CORS_ORIGINS", "https://hunter2/"),
    ],
)
def test_a_wrong_value_is_named_and_not_shown(
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as stopped:
        load_settings(ServiceSettings)

    message = capsys.readouterr().err
    assert stopped.value.code == 1
    assert f"  {name}: " in message
    assert "hunter2" not in message


def test_a_value_that_a_validator_repeats_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Own(ServiceSettings):
        key: Annotated[SecretStr, AfterValidator(lambda key: int(key.get_secret_value()))]

    monkeypatch.setenv("KEY", "hunter2")

    with pytest.raises(SystemExit):
        load_settings(Own)

    assert "  KEY: is not valid" in capsys.readouterr().err


@pytest.mark.parametrize("link", [True, False])
def test_an_env_file_that_cannot_be_read_is_not_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, link: bool
) -> None:
    file = tmp_path / ".env"
    file.symlink_to("nowhere") if link else file.mkdir()
    monkeypatch.setitem(ServiceSettings.model_config, "env_file", file)

    with pytest.raises(SystemExit, match="is a folder, or a link to a file that is not there"):
        load_settings(ServiceSettings)


@pytest.mark.parametrize("value", ["example.com", "other.example", "https://example.com/"])
def test_an_origin_without_a_scheme_is_told_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("CORS_ORIGINS", value)

    with pytest.raises(SystemExit):
        load_settings(ServiceSettings)

    assert "  CORS_ORIGINS: wants origins without a path" in capsys.readouterr().err


def test_an_unknown_name_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("SOMETHING_ELSE=1\nLOG_LEVEL=error\n")
    monkeypatch.setitem(ServiceSettings.model_config, "env_file", file)

    assert load_settings(ServiceSettings).log_level == "ERROR"


def test_a_setting_may_be_read_from_a_variable_of_another_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Own(ServiceSettings):
        key: Annotated[str, Field(validation_alias=AliasChoices("STRIPE_KEY", "old_key"))] = ""

    file = tmp_path / ".env"
    file.write_text("STRIPE_KEY=a\nOLD_KEY=b\nKEY=c\n")
    monkeypatch.setitem(Own.model_config, "env_file", file)

    settings = load_settings(Own)

    monkeypatch.setattr("tests.isolation.KINDS", (Own,))
    for name in {"STRIPE_KEY", *(os.environ.keys() & {*variables(Own)})}:
        monkeypatch.setenv(name, "the developer's")  # and back, at the end
    hide_variables()

    assert "STRIPE_KEY" not in os.environ
    assert settings.key == "a"
    assert [text.partition(" ")[0] for text in unknown_names(settings)] == ["KEY"]


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://B.example,")

    assert ServiceSettings().cors_origins == ("https://a.example", "https://b.example")


def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "")

    assert ServiceSettings().log_level == "INFO"

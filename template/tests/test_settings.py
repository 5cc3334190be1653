from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator, SecretStr

from app.settings import ServiceSettings, load_settings


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


def test_a_wrong_value_ends_the_start_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "loud")

    with pytest.raises(SystemExit) as stopped:  # of which Python shows no traceback
        load_settings(ServiceSettings)

    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "LOG_LEVEL" in said
    assert "Traceback" not in said


def test_an_unknown_name_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_ELSE", "1")

    load_settings(ServiceSettings)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://B.example,")

    assert ServiceSettings().cors_origins == ("https://a.example", "https://b.example")


def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "")

    assert ServiceSettings().log_level == "INFO"

"""Every environment variable of the service, read once at the start."""

import re
import sys
from importlib.util import find_spec
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from pydantic_settings import NoDecode, SettingsConfigDict, SettingsError

from app.database.json_serializer import dump, load
from app.database.pool import FairPool
from app.database.settings import DatabaseSettings, Seconds
from app.features.settings import FeatureSettings
from app.settings_sources import names_in


def split(value: str | tuple[str, ...]) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    return tuple(item.strip() for item in items if item.strip())


def each(pattern: str, wanted: str) -> AfterValidator:
    """Lower-case each name and check its pattern: hosts and origins are case-insensitive."""

    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(map(str.lower, names))
        if not all(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"wants {wanted}, separated by commas")
        return names

    return AfterValidator(check)


def require_telemetry_packages(enabled: bool) -> bool:
    if enabled and find_spec("opentelemetry.sdk") is None:
        raise ValueError("needs packages that are not installed; run uv sync --extra telemetry")
    return enabled


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]
Origins = Annotated[
    CommaSeparated,
    each(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", "origins without a path, such as https://example.com"),
]
Hosts = Annotated[
    CommaSeparated,
    each(r"[a-z0-9*._-]+|[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*", "names without scheme or port"),
]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class ServiceSettings(DatabaseSettings):
    """The template's variables, typed; `.env.example` explains each.

    They suffice for migrations, and for whatever else needs no feature.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    log_level: Annotated[LogLevel, BeforeValidator(str.upper)] = "INFO"
    log_format: Literal["text", "json"] = "text"
    log_values: bool = False  # messages of errors, libraries and warnings; never as JSON
    telemetry_enabled: Annotated[bool, AfterValidator(require_telemetry_packages)] = False

    docs_enabled: bool = True
    cors_origins: Origins = ()
    allowed_hosts: Hosts = ("*",)
    max_body_size: PositiveInt = 262_144  # bytes

    # SQLAlchemy keeps five connections, and opens and closes up to ten more under load: with 8
    # clients, 50 to 100 connections are opened per second, each delaying a request. Here every
    # connection is kept once it is opened, and a quiet service opens fewer.
    database_pool_size: PositiveInt = 15
    database_max_overflow: NonNegativeInt = 0
    # After SQLAlchemy's default of 30 s the client has given up, and its retry waits as well.
    # Seconds.
    database_pool_timeout: Seconds = 5
    # A long-lived connection would miss that its host name now resolves to another server; a new
    # one costs some milliseconds. Seconds; -1: never.
    database_pool_recycle: Annotated[int, Field(ge=-1)] = 300
    database_pool_pre_ping: bool = True
    database_echo: bool = False
    database_slow_statement: Annotated[float, Field(ge=0, le=86_400)] = 1  # seconds; 0: never

    @property
    def database_capacity(self) -> int:
        """The most connections that this process opens."""
        return self.database_pool_size + self.database_max_overflow

    @property
    def engine_options(self) -> dict[str, Any]:
        """The arguments of `create_async_engine` besides `driver_url`."""
        return {
            "poolclass": FairPool,
            "pool_size": self.database_pool_size,
            "max_overflow": self.database_max_overflow,
            "pool_timeout": self.database_pool_timeout,
            "pool_recycle": self.database_pool_recycle,
            "pool_pre_ping": self.database_pool_pre_ping,
            "hide_parameters": True,
            "json_serializer": dump,
            "json_deserializer": load,
            "connect_args": self.connect_args,
        }


class Settings(FeatureSettings, ServiceSettings):
    """All variables: those of the features and those of the template."""


AnySettings = TypeVar("AnySettings", bound=ServiceSettings)


def load_settings(kind: type[AnySettings]) -> AnySettings:
    """Read the environment and `.env`, or exit with a message that shows no value."""
    names_in(kind.model_config.get("env_file"))  # can be read
    try:
        return kind()
    except SettingsError as error:  # names the setting alone
        sys.exit(f"Wrong settings: {error}")
    except ValidationError as error:
        errors = error.errors(include_context=False)
    problems = [
        f"  {'_'.join(map(str, problem['loc'])).upper() or 'DATABASE_URL'}: {complaint_of(problem)}"
        for problem in errors
    ]
    wrong = {problem["loc"][0] for problem in errors if problem["loc"]}
    own = "" if wrong <= ServiceSettings.model_fields.keys() else " and app/features/settings.py"
    print("Wrong settings:", *problems, f"See .env.example{own}.", sep="\n", file=sys.stderr)
    raise SystemExit(1)


def complaint_of(problem: Any) -> str:
    text: str = problem["msg"].removeprefix("Value error, ")
    # A feature's validator may pass on what `int()` says, for one.
    own = bool(problem["loc"]) and problem["loc"][0] in ServiceSettings.model_fields
    repeated = problem["type"] == "value_error" and str(problem["input"]) in text and not own
    return "is not valid" if repeated else text

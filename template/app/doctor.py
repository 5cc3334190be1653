"""Report what a process would run with here, and what is wrong: `python -m app.doctor`."""

import argparse
import asyncio
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI
from sqlalchemy import Table, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.database.errors import SCHEMA_CHANGED, explain
from app.database.revisions import compare_revisions, revisions
from app.database.server_info import SERVER, describe_server
from app.lifespan import lifespan
from app.logging import configure_logging
from app.redaction import describe, origin, reason_of
from app.settings import ServiceSettings, Settings, load_settings
from app.settings_sources import describe_database, source_of, unknown_names
from migrations.runner import TWO_HEADS

SCHEMA = {
    "behind": "behind: alembic upgrade head brings it up to date",
    "ahead": "ahead, at a revision that is not here: a newer release's, or another branch's",
}
ANSWERS = Path(__file__).parent.parent / ".copier-answers.yml"  # not in the image


class Finding(NamedTuple):
    subject: str
    text: str
    wrong: bool = False
    doubtful: bool = False


async def examine(
    settings: ServiceSettings,
    processes: int,
    tables: Iterable[Table] = (),
    folder: str | None = None,
    not_made: str | None = None,
) -> list[Finding]:
    """Examine the settings, the database and its schema, as far as they can be reached.

    `folder` has the data of a server of the service's own; `not_made` says that the development
    database does not exist yet.
    """
    own = folder is not None or not_made is not None
    findings = [Finding("setting", text) for text in explicit_settings(settings, own)]
    findings += [Finding(".env", text, doubtful=True) for text in unknown_names(settings)]
    answers = ANSWERS.read_text() if ANSWERS.exists() else ""
    if release := re.search(r"(?m)^_commit: (.+)$", answers):
        findings.append(Finding("template", release[1]))
    two_heads = len(revisions()[0]) > 1
    if two_heads:
        findings.append(Finding("schema", TWO_HEADS, True))
    if not_made:
        return [*findings, Finding("database", not_made, doubtful=True)]

    app = FastAPI()
    app.state.settings = settings.model_copy(update={"telemetry_enabled": False})
    async with lifespan(app):  # which owns the engine here too
        reader = app.state.reader
        url = describe_database(settings, folder)
        try:
            server = (await reader.execute(SERVER)).first()
        except (SQLAlchemyError, TimeoutError) as error:
            text = f"{url} does not answer: {reason_of(error)}"
            return [*findings, Finding("database", text, True)]
        findings.append(Finding("database", url))
        text, complaint = describe_server(server, processes * settings.database_capacity)
        findings.append(Finding("server", complaint or text, bool(complaint)))
        missing = ""
        try:
            schema, read_only = await compare_revisions(reader)
        except (SQLAlchemyError, TimeoutError) as error:
            if not isinstance(error, DBAPIError) or explain(error)[1] != SCHEMA_CHANGED:
                return [*findings, Finding("schema", f"can't be read: {reason_of(error)}", True)]
            schema, read_only, missing = "behind", False, f" ({reason_of(error)})"
        if read_only and settings.database_writes:
            findings.append(Finding("server", "takes no writes", True))
        text = SCHEMA.get(schema, schema) + missing
        if not two_heads:
            findings.append(Finding("schema", text, schema == "behind", schema == "ahead"))
        for table in tables if schema != "behind" else ():
            try:
                await reader.execute(select(table).limit(0))
            except (SQLAlchemyError, TimeoutError) as error:
                text = f"{table.fullname} can't be read: {reason_of(error)}"
                findings.append(Finding("table", text, True))
        return findings


def import_service(settings: Settings) -> tuple[list[Finding], list[Table]]:
    """Make the application, which opens nothing, and return the models' tables."""
    from app.factory import create_app

    try:
        from app.features.registration import add_features
        from migrations.metadata import metadata  # which imports all models

        create_app(settings, add_features)
    except Exception as error:  # noqa: BLE001 - whatever an import raises
        text = f"the service can't start: {describe(error)}{origin(error)}"
        return [Finding("code", text, True)], []
    return [], metadata.sorted_tables


def explicit_settings(settings: ServiceSettings, own_server: bool) -> Iterator[str]:
    """Yield each setting that is set explicitly, and where; a `SecretStr` is masked."""
    given = settings.model_fields_set - ({"database_url"} if own_server else set())
    for name, value in sorted(settings.model_dump(mode="json", include=given).items()):
        yield f"{name.upper()}={value} from {source_of(name)}"


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main(folder: str | None = None, not_made: str | None = None, prefix: str = "") -> None:
    parser = argparse.ArgumentParser(prog="python -m app.doctor", description=__doc__)
    parser.add_argument(
        "--processes",
        type=count,
        default=1,
        help="how many processes use the database, in all replicas together",
    )
    processes = parser.parse_args().processes
    settings = load_settings(Settings)
    quiet = settings.model_copy(update={"log_level": "WARNING"})
    configure_logging(quiet)
    findings, tables = import_service(quiet)
    # A command of its own may start an event loop (E14).
    findings += asyncio.run(examine(settings, processes, tables, folder, not_made))  # noqa: TID251
    for subject, text, wrong, doubtful in findings:
        text = text.replace("alembic upgrade", f"{prefix}alembic upgrade")
        print("WRONG" if wrong else "look " if doubtful else "ok   ", f"{subject:9}", text)
    sys.exit(any(finding.wrong for finding in findings))


if __name__ == "__main__":
    main()

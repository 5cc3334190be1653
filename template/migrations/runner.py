"""Runs each migration in its own transaction, and again if it could not get its locks."""

import asyncio
import logging
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.database.errors import OUTCOME_UNKNOWN, SCHEMA_CHANGED, explain
from app.redaction import describe, reason_of
from app.settings import ServiceSettings

ATTEMPTS = 30  # for each migration
PAUSE = 1.0  # seconds between attempts, in which queued requests are answered
POLL = 0.5  # seconds between attempts to get the migration lock

VERSIONS = Path(__file__).parent / "versions"
ALLOW_AHEAD = "allow-ahead"
TWO_HEADS = (
    "two heads, of branches that were merged:"
    ' uv run alembic merge heads -m "join the branches" joins them'
)

# Reasons of `explain`: to try again, and to blame the server rather than a migration.
CONTENDED = {"lock timeout", "deadlock"}
AWAY = {
    "connection lost",
    "login refused",
    "no such database",
    "not accepting connections",
    "shutting down",
    "too many connections",
    "unreachable",
}

logger = logging.getLogger(__name__)


class LocksNotFreeError(Exception):
    """A migration could not get its locks in any of its attempts."""


class PendingMigrations:
    """The migrations that a command still has to run."""

    def __init__(self, migration: MigrationContext) -> None:
        self.failures = 0  # of the first remaining one
        self._wanted = migration.opts["fn"]
        self._remaining: list[Any] | None = None
        # After a failure Alembic would compute them again, and `-2` would count from there.
        migration._migrations_fn = self._run

    def __str__(self) -> str:
        return self._remaining[0].short_log if self._remaining else "the revision"

    def _run(self, heads: tuple[str, ...], migration: MigrationContext) -> Iterator[Any]:
        if self._remaining is None:
            check_heads()
            self._remaining = [] if is_ahead(heads) else list(self._wanted(heads, migration))
        while self._remaining:
            yield self._remaining[0]  # Alembic asks for the next one after the commit
            del self._remaining[0]
            self.failures = 0


def check_heads() -> None:
    """Name the command that joins two heads, which Alembic's message does not."""
    upgrades = context.get_context().opts.get("destination_rev") == "head"
    if upgrades and len(context.script.get_heads()) > 1:
        raise CommandError(TWO_HEADS)


def is_ahead(heads: tuple[str, ...]) -> bool:
    """Return whether a newer release has migrated the database, so that nothing is left to do.

    Raises:
        CommandError: the revision is unknown, and may be another branch's.
    """
    known = {script.revision for script in context.script.walk_revisions()}
    unknown = ", ".join(sorted(set(heads) - known))
    if not unknown:
        return False
    text = f"The database is at revision {unknown}, which is not among these migrations"
    upgrades = context.get_context().opts.get("destination_rev") in ("head", "heads")
    if not upgrades or ALLOW_AHEAD not in context.get_x_argument(as_dictionary=True):
        raise CommandError(
            f"{text}: a newer release's, which `alembic -x {ALLOW_AHEAD} upgrade head` accepts,"
            " another branch's, or one that was deleted here. In development, delete the database"
            " too: the README says how, below 'Without the example'."
        )
    logger.warning("%s: accepted as a newer release's", text)
    return True


def run(connection: Connection, /, **options: Any) -> None:
    """Run the command's migrations, each in its own transaction.

    One that times out waiting for a lock, or ends in a deadlock, is rolled back alone and retried;
    what it ran in an `autocommit_block` is committed, and runs again.

    Raises:
        LocksNotFreeError: a migration never got its locks; those before it are committed.
    """
    context.configure(connection=connection, transaction_per_migration=True, **options)
    migration = context.get_context()
    pending = PendingMigrations(migration)
    while True:
        try:
            context.run_migrations()
            connection.commit()  # for a command without migrations
            return
        except DBAPIError as error:
            connection.rollback()
            if explain(error)[1] not in CONTENDED:
                raise
            pending.failures += 1
            reason = reason_of(error)
            if pending.failures == ATTEMPTS:
                statement = " ".join((error.statement or "BEGIN").split())[:200]
                raise LocksNotFreeError(
                    f"{pending} was rolled back {ATTEMPTS} times, at last for: {reason}. It was at:"
                    f" {statement} - Migrations before it are committed. Run the command again."
                ) from error
        logger.warning("%s: %s; attempt %d of %d", pending, reason, pending.failures, ATTEMPTS)
        time.sleep(PAUSE)


def end_on_sigterm() -> None:
    """End as by Ctrl-C: the first process of a container would ignore the signal."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError, RuntimeError, ValueError):  # on Windows; in a thread
        task.get_loop().add_signal_handler(signal.SIGTERM, task.cancel)


@contextmanager
def exits(settings: ServiceSettings) -> Iterator[None]:
    """Exit with one line where a traceback would add nothing."""
    try:
        yield
    except LocksNotFreeError as error:
        sys.exit(str(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("Interrupted: the running migration is rolled back.")
    except CommandError:  # which says what is wrong, and what to do
        raise
    except DBAPIError as error:
        status, reason = explain(error)
        if status != 503 or reason == SCHEMA_CHANGED:
            if failed := place_of(error):
                raise CommandError(failed) from error
            raise
        what = "refused a migration, which is rolled back"
        if reason == OUTCOME_UNKNOWN:
            what = "did not confirm a migration: `alembic current` says whether it is committed"
        elif reason in AWAY:
            what = "is not available"
        sys.exit(f"{settings.driver_url} {what}: {reason_of(error)}")
    except Exception as error:
        if was_cancelled(error):
            sys.exit("Interrupted: what its autocommit_block has done is kept, and is run again.")
        if failed := place_of(error):
            raise CommandError(failed) from error
        raise


def was_cancelled(error: BaseException | None) -> bool:
    """Return whether an error was raised while a cancelled task cleaned up."""
    while error is not None and not isinstance(error, asyncio.CancelledError):
        error = error.__context__
    return error is not None


def place_of(error: Exception) -> str | None:
    """Return the line of the migration in which an error was raised, and the error in one line."""
    if isinstance(error, SyntaxError) and Path(error.filename or "").parent == VERSIONS:
        return describe(error)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.parent == VERSIONS:
            place = f"{VERSIONS.name}/{file.name}, line {frame.lineno}"
            return f"{place}: {describe(error)}. It is rolled back. The line is: {frame.line}"
    return None

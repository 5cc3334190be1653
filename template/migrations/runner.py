"""How migrations run: each in a transaction of its own, and again if its locks were not free."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.database.errors import explain
from app.settings import ServiceSettings

ATTEMPTS = 30  # at each migration
PAUSE = 1.0  # seconds between two, in which the requests that queued behind one are answered
POLL = 0.5  # seconds after which a process that waits for its turn to migrate looks again

ALLOW_AHEAD = "allow-ahead"

# Reasons of `explain`: those for another attempt, and those that are no matter of a migration.
CONTENDED = {"lock timeout", "deadlock"}
AWAY = {
    "connection lost",
    "login refused",
    "no such database",
    "shutting down",
    "too many connections",
    "unreachable",
}

logger = logging.getLogger(__name__)


class LocksNotFreeError(Exception):
    """A migration was tried as often as it may be."""


class PendingMigrations:
    """The migrations that a command has still to run."""

    def __init__(self, migration: MigrationContext) -> None:
        self.failures = 0  # of the first that is left
        self._wanted = migration.opts["fn"]
        self._remaining: list[Any] | None = None
        # Alembic would ask the command again after a failure, and `-2` would go back from there.
        migration._migrations_fn = self._run

    def __str__(self) -> str:
        return self._remaining[0].short_log if self._remaining else "the revision"

    def _run(self, heads: tuple[str, ...], migration: MigrationContext) -> Iterator[Any]:
        if self._remaining is None:
            self._remaining = [] if is_ahead(heads) else list(self._wanted(heads, migration))
        while self._remaining:
            yield self._remaining[0]  # and is asked for the next one after the commit
            del self._remaining[0]
            self.failures = 0


def is_ahead(heads: tuple[str, ...]) -> bool:
    """Tell whether there is nothing to do, since a newer release has migrated the database.

    Raises:
        CommandError: it may as well be another branch's migration that is not here.
    """
    known = {script.revision for script in context.script.walk_revisions()}
    unknown = ", ".join(sorted(set(heads) - known))
    if not unknown:
        return False
    text = f"The database is at revision {unknown}, which is not among the files here"
    upgrades = context.get_context().opts.get("destination_rev") in ("head", "heads")
    if not upgrades or ALLOW_AHEAD not in context.get_x_argument(as_dictionary=True):
        raise CommandError(
            f"{text}: a newer release's, which `alembic -x {ALLOW_AHEAD} upgrade head` lets be, or"
            " another branch's."
        )
    logger.warning("%s: taken for a newer release's, and left as it is", text)
    return True


def run(connection: Connection, /, **options: Any) -> None:
    """Run the command's migrations, each in a transaction of its own.

    One whose locks were not free in time, or that a deadlock ended, is rolled back alone, and tried
    again.

    Raises:
        LocksNotFreeError: the migrations before that one are made.
    """
    context.configure(connection=connection, transaction_per_migration=True, **options)
    migration = context.get_context()
    pending = PendingMigrations(migration)
    while True:
        try:
            context.run_migrations()
            connection.commit()  # of what a command does without a migration
            return
        except DBAPIError as error:
            connection.rollback()
            if explain(error)[1] not in CONTENDED:
                raise
            pending.failures += 1
            reason = str(error.orig).partition("\n")[0]
            if pending.failures == ATTEMPTS:
                current = ", ".join(migration.get_current_heads()) or "none"
                connection.rollback()
                raise LocksNotFreeError(
                    f"{pending} was rolled back {ATTEMPTS} times, at last for: {reason}. It was at:"
                    f" {' '.join((error.statement or '').split())[:200]} - The database is at"
                    f" revision {current}. Run the command again."
                ) from error
        logger.warning("%s: %s; attempt %d of %d", pending, reason, pending.failures, ATTEMPTS)
        time.sleep(PAUSE)


@contextmanager
def exits(settings: ServiceSettings) -> Iterator[None]:
    """End the process with one line where a traceback would tell nothing more."""
    try:
        yield
    except LocksNotFreeError as error:
        sys.exit(str(error))
    except DBAPIError as error:
        status, reason = explain(error)
        if status != 503:
            raise
        what = "is not available" if reason in AWAY else "refused a migration, which is rolled back"
        sys.exit(f"{settings.driver_url} {what}: {error.orig or error}")

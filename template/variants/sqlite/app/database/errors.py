"""What SQLite's errors mean: the status of the response, and the reason for a 503."""

import re
import sqlite3

from sqlalchemy.exc import DBAPIError, IntegrityError

from app.database.connections import OutcomeUnknown
from app.database.statements import is_read

# Result codes, https://sqlite.org/rescode.html
#
# Values cause these, in a write: 422.
REFUSED_WHEN_WRITTEN = {
    sqlite3.SQLITE_CONSTRAINT_NOTNULL,
    sqlite3.SQLITE_CONSTRAINT_CHECK,
    sqlite3.SQLITE_MISMATCH,  # not an integer, for a key
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT | (12 << 8),  # not of the type of a STRICT table's column
}
CONSTRAINTS = {
    sqlite3.SQLITE_CONSTRAINT_CHECK: "check",
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: "foreign_key",
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: "not_null",
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: "unique",
    sqlite3.SQLITE_CONSTRAINT_ROWID: "unique",
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: "unique",
}
# Messages of SQLITE_ERROR that repeat only names. Others quote what a function refuses: a path of
# JSON, a search pattern. A column in quotes may be a text that was quoted as one.
NAMES_ALONE = re.compile(
    r'no such table|table |error in |Cannot add a |near "[A-Z]+": syntax error$'
    r"|(no such column|(ambiguous|duplicate) column name): [\w.]+$"
)
MISSING = re.compile(r"no such (table|column)|table .* has no column named")

SCHEMA_CHANGED = "schema changed"
# The file's state: 503, with this reason.
UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "lock timeout",
    sqlite3.SQLITE_CANTOPEN: "unreachable",
    sqlite3.SQLITE_CORRUPT: "server error",
    sqlite3.SQLITE_FULL: "out of resources",
    sqlite3.SQLITE_INTERRUPT: "connection lost",  # to a file that was replaced
    sqlite3.SQLITE_IOERR: "server error",
    sqlite3.SQLITE_LOCKED: "lock timeout",
    sqlite3.SQLITE_NOMEM: "out of resources",
    sqlite3.SQLITE_NOTADB: "server error",
    sqlite3.SQLITE_PERM: "permission denied",
    sqlite3.SQLITE_PROTOCOL: "lock timeout",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_SCHEMA: SCHEMA_CHANGED,
}
OUTCOME_UNKNOWN = "outcome unknown"


def explain(error: DBAPIError) -> tuple[int, str]:
    """Return the status of the response to a request that failed with `error`, and a 503's reason."""
    code = getattr(error.driver_exception, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    primary = code & 0xFF
    if isinstance(error.orig, OutcomeUnknown):
        return 503, OUTCOME_UNKNOWN
    if reason := UNAVAILABLE.get(primary):
        return 503, reason
    if error.connection_invalidated:
        return 503, "connection lost"
    if code == sqlite3.SQLITE_ERROR and MISSING.match(str(error.driver_exception)):
        return 503, SCHEMA_CHANGED
    if {code, primary} & REFUSED_WHEN_WRITTEN and not is_read(error.statement):
        return 422, ""
    return (409 if primary == sqlite3.SQLITE_CONSTRAINT else 500), ""


def violated(error: IntegrityError) -> tuple[tuple[str, ...], str | None]:
    """Return the columns that `error` names, or the name of the constraint."""
    kind, _, names = str(error.orig).partition(" constraint failed: ")
    if index := re.fullmatch(r"index '(.*)'", names):
        return (), index[1]
    if kind == "CHECK":
        return (), names
    return tuple(name.rpartition(".")[2] for name in names.split(", ") if name), None


def violated_table(error: IntegrityError) -> str:
    """Return the name of the table whose constraint a statement has violated, or ""."""
    kind, _, names = str(error.orig).partition(" constraint failed: ")
    return "" if kind == "CHECK" or names.startswith("index ") else names.partition(".")[0]


def constraint(error: IntegrityError) -> str:
    """Return the kind of constraint that a statement has violated."""
    return CONSTRAINTS.get(getattr(error.driver_exception, "sqlite_errorcode", 0), "constraint")


def public_message(error: object) -> str:
    """Return what the log may say of a driver's error: no value of a statement or a row."""
    if not isinstance(error, sqlite3.Error):
        return ""
    text = str(error)
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER:  # a trigger may raise any message
        return "SQLITE_CONSTRAINT_TRIGGER"
    plain = code != sqlite3.SQLITE_ERROR or NAMES_ALONE.match(text)
    return text if plain else "SQLITE_ERROR"

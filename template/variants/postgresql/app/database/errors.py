"""What PostgreSQL's errors mean: the status of the response, and the reason for a 503."""

import re
from typing import Any

from asyncpg import InterfaceError  # type: ignore[import-untyped]
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError, OperationalError

from app.database.connections import NoAnswer, OutcomeUnknown
from app.database.statements import is_read

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
#
# Only a value of the request can cause these: 422 …
REFUSED = {
    "22000",  # one that the driver can't send
    "22021",  # an invalid character, such as NUL
    "22P05",  # … or one that the database's encoding lacks
    "22025",  # a pattern of LIKE
    "2201B",  # a regular expression
    "2201W",  # LIMIT
    "2201X",  # OFFSET
}
# … and these only in a write: a read may come across a stored value.
REFUSED_WHEN_WRITTEN = {
    "22001",  # too long
    "22003",  # a number out of range
    "22007",  # not a date or time
    "22008",  # a date or time out of range
    "22009",  # a time zone out of range
    "22015",  # an interval out of range
    "22023",  # a parameter, such as the name of a time zone
    "22026",  # a string of another length
    "22030",  # a key twice in a JSON object
    "22032",  # not JSON
    "22P02",  # not a value of this type
    "22P03",  # … in its binary form
    "23502",  # a not-null constraint
    "23514",  # a check constraint
    "54000",  # too long for its index
}
CONFLICT = "23"  # the other constraints: 409
CONSTRAINTS = {
    "23001": "foreign_key",  # ON DELETE RESTRICT, from PostgreSQL 18 on
    "23502": "not_null",
    "23503": "foreign_key",
    "23505": "unique",
    "23514": "check",
    "23P01": "exclusion",
}
SCHEMA_CHANGED = "schema changed"
NOT_ACCEPTING = "not accepting connections"  # it starts, recovers, or is set to accept none
# The server's state: 503, with this reason.
UNAVAILABLE = {
    "08": "connection lost",
    "2200H": "server error",  # an exhausted sequence
    "25006": "read-only",
    "26000": "server error",
    "28": "login refused",
    "3D000": "no such database",
    "40": "serialization",
    "40P01": "deadlock",
    "42501": "permission denied",
    "42703": SCHEMA_CHANGED,  # a column is missing
    "42P01": SCHEMA_CHANGED,  # a table is missing, or its schema may not be used
    "53": "out of resources",
    "53300": "too many connections",
    "55P03": "lock timeout",
    "57": "shutting down",
    "57014": "statement timeout",
    "57P03": NOT_ACCEPTING,
    "57P04": "no such database",  # dropped
    "57P05": "connection lost",  # it was idle for longer than the server allows
    "58": "server error",
    "F0": "server error",
    "XX": "server error",
}
OUTCOME_UNKNOWN = "outcome unknown"
WITHOUT_ROWS = (
    AsyncAdapt_asyncpg_dbapi.OperationalError,  # while connecting
    AsyncAdapt_asyncpg_dbapi.InternalClientError,  # about the connection's state, and types
    NoAnswer,
)
# Their messages name constraints, columns, roles; values are in the detail, below the first line.
WITHOUT_VALUES = ("08", "23", "25", "26", "28", "3D", "40", "42", "53", "55", "57", "58", "XX")


def explain(error: DBAPIError) -> tuple[int, str]:
    """Return the status of the response to a request that failed with `error`, and a 503's reason."""
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    reason = UNAVAILABLE.get(sqlstate) or UNAVAILABLE.get(sqlstate[:2])
    if isinstance(error.orig, OutcomeUnknown):
        return 503, OUTCOME_UNKNOWN
    if isinstance(error, OperationalError):  # there was no connection yet
        answered = sqlstate and not sqlstate.startswith("08")
        return 503, (reason or NOT_ACCEPTING) if answered else "unreachable"
    if isinstance(error, NotSupportedError):  # a migration has changed what a statement returns
        return 503, SCHEMA_CHANGED
    if reason or error.connection_invalidated:
        return 503, reason or "connection lost"
    routine = getattr(error.driver_exception, "server_source_function", None) or ""
    if routine.startswith("GetNew"):  # 54000, too: there are no more transaction ids
        return 503, "server error"
    if sqlstate in REFUSED or sqlstate in REFUSED_WHEN_WRITTEN and not is_read(error.statement):
        return 422, ""
    return (409 if sqlstate.startswith(CONFLICT) else 500), ""


def violated(error: IntegrityError) -> tuple[tuple[str, ...], str | None]:
    """Return the columns that `error` names, or the name of the constraint."""
    cause: Any = error.driver_exception
    if column := getattr(cause, "column_name", None):
        return (column,), None
    written = re.search(r"\b(?:INSERT INTO|UPDATE) ([\w.\"]+)", error.statement or "")
    own = written and violated_table(error) in re.split(r"\W+", written[1])
    if constraint(error) == "foreign_key" and not own:
        return (), None  # what still refers to a row is not one of its columns
    return (), cause.constraint_name


def violated_table(error: IntegrityError) -> str:
    """Return the name of the table whose constraint a statement has violated."""
    return getattr(error.driver_exception, "table_name", None) or ""


def constraint(error: IntegrityError) -> str:
    """Return the kind of constraint that a statement has violated."""
    return CONSTRAINTS.get(getattr(error.orig, "sqlstate", ""), "constraint")


def public_message(error: object) -> str:
    """Return what the log may say of a driver's error: no value of a statement or a row."""
    if isinstance(error, WITHOUT_ROWS):
        return str(error).partition("\n")[0]
    cause = getattr(error, "orig", None) or error
    sqlstate = getattr(cause, "sqlstate", None) or ""
    # A database function may raise any message; the context names its language.
    raised = "PL/" in (getattr(cause, "context", None) or "")
    fixed = sqlstate.startswith((*WITHOUT_VALUES, "2200H")) and not raised
    if fixed or isinstance(cause, InterfaceError) and not isinstance(cause, ValueError):
        return str(cause).partition("\n")[0]
    return sqlstate and f"SQLSTATE {sqlstate}"

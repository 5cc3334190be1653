"""Alembic on SQLite: complete copies of tables, and their rows checked."""

import re
from contextlib import suppress
from typing import Any

from alembic.ddl.sqlite import SQLiteImpl
from alembic.operations.batch import ApplyBatchImpl
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Index,
    Table,
    UnaryExpression,
    Uuid,
    text,
)
from sqlalchemy.exc import OperationalError

from app.database.check_constraints import HEX_DIGITS
from migrations.autogenerate import quoted

# Clauses of a table that reflection misses.
UNREFLECTED = ("COLLATE", "ON CONFLICT", "AUTOINCREMENT", "STRICT", "WITHOUT ROWID")

QUOTED = r"""'(?:[^']|'')*'|"(?:[^"]|"")*\""""
TOKEN = re.compile(QUOTED + "|.", re.DOTALL)
COMMENT_OR_QUOTED = re.compile(rf"({QUOTED})|--[^\n]*|/\*.*?\*/", re.DOTALL)
TABLE = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"

ANALYSIS_LIMIT = 1_000  # rows of each index that ANALYZE samples


class SQLite(SQLiteImpl):
    """Copies tables completely; Alembic uses the class that was defined last for a database."""

    __dialect__ = "sqlite"
    _table_copy: "TableCopy | None" = None

    def _compare_identity_default(self, *_: Any) -> tuple[set[str], set[str], bool]:
        return set(), set(), False  # SQLite has none

    def compare_server_default(
        self, inspector_column: Any, metadata_column: Any, wanted: str | None, found: str | None
    ) -> bool:
        if wanted is not None and found == quoted(wanted):
            return False
        return super().compare_server_default(inspector_column, metadata_column, wanted, found)

    def correct_for_autogen_constraints(
        self, found_uniques: Any, found: Any, uniques: Any, indexes: Any
    ) -> None:
        """Compare indexes of expressions by their names: SQLAlchemy does not reflect them here."""
        assert self.connection is not None
        names = "SELECT name FROM sqlite_master WHERE type = 'index'"
        made = {*self.connection.exec_driver_sql(names).scalars()}
        known = {index for index in indexes if index.name in made and has_expressions(index)}
        indexes -= known
        found -= {index for index in found if index.name in {other.name for other in known}}

    def prep_table_for_batch(self, batch_impl: ApplyBatchImpl, table: Table) -> None:
        if self.connection is not None:  # it is None for `--sql`
            self._table_copy = TableCopy(self.connection, batch_impl, table)

    def rename_table(self, old_table_name: str, new_table_name: Any, schema: Any = None) -> None:
        if self._table_copy is None or old_table_name != self._table_copy.temporary:
            super().rename_table(old_table_name, new_table_name, schema)
            return
        # Views and triggers of other tables dangle since the old table was dropped.
        self._exec("PRAGMA legacy_alter_table = ON")
        super().rename_table(old_table_name, new_table_name, schema)
        self._exec("PRAGMA legacy_alter_table = OFF")
        self._table_copy.complete()
        self._table_copy = None


def has_expressions(index: Index) -> bool:
    """Return whether an index has more than columns, in whatever order."""
    parts = [p.element if isinstance(p, UnaryExpression) else p for p in index.expressions]
    return not all(isinstance(part, Column) for part in parts)


class TableCopy:
    """What Alembic's copy of a table, made from reflection, would lack.

    Raises:
        CommandError: something would be lost that was not dropped on purpose.
    """

    def __init__(self, connection: Connection, batch: ApplyBatchImpl, table: Table) -> None:
        assert batch.new_table is not None
        self.connection, self.name, self.temporary = connection, table.name, batch.temp_table_name
        found = connection.exec_driver_sql(
            "SELECT type, name, sql FROM sqlite_master"
            " WHERE tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL",
            (table.name,),
        ).all()
        [self.sql] = [sql for kind, _, sql in found if kind == "table"]
        left = {column.name: str(column.type) for column in batch.new_table.columns}
        gone = {column.name for column in table.columns if column.name not in left}
        changed = gone | {c.name for c in table.columns if left.get(c.name) != str(c.type)}
        self.changed = changed

        self.kept: list[str] = []
        reflected = {index.name for index in table.indexes}
        for kind, name, sql in found:
            if kind == "table" or name in reflected and name not in batch.indexes:
                continue
            if not mentions(sql, gone):
                batch.indexes.pop(name, None)  # the copy would lack DESC, or an expression
                self.kept.append(sql)
            elif name not in reflected or mentions(sql, {"DESC", "WHERE", "COLLATE"}):
                raise CommandError(
                    f"{kind} {name} names {', '.join(sorted(gone))}, which {self.name} loses:"
                    f" drop it first, and create it again afterwards"
                )
        checks = [c for c in table.constraints if isinstance(c, CheckConstraint) and not c.name]
        for check in checks:  # Alembic skips these
            if mentions(str(check.sqltext), gone):
                raise CommandError(
                    f"a CHECK of {self.name} names {', '.join(sorted(gone))}: name it"
                )
            batch.new_table.append_constraint(CheckConstraint(check.sqltext))
        made_of = definitions(self.sql)
        for column in table.columns:
            if HEX_DIGITS in made_of.get(column.name, "") and column.name not in changed:
                batch.columns[column.name].type = Uuid()  # reflected as a CHAR(32)
            if column.computed is not None:
                batch.column_transfers[column.name].pop("expr", None)  # it accepts no value
                # The reflected expression contains the text that follows the column.
                made = made_of.get(column.name, "")
                if expression := re.search(r"AS\s*\((.*)\)", made, re.DOTALL):
                    computed: Any = batch.columns[column.name].computed
                    computed.sqltext = text(expression[1])

        self.newest: int | None = None
        if mentions(self.sql, {"AUTOINCREMENT"}):
            self.newest = connection.exec_driver_sql(
                "SELECT seq FROM sqlite_sequence WHERE name = ?", (self.name,)
            ).scalar()

    def complete(self) -> None:
        execute = self.connection.exec_driver_sql
        for sql in self.kept:
            execute(sql)
        if self.newest is not None:  # so that no key is ever reused
            execute("DELETE FROM sqlite_sequence WHERE name = ?", (self.name,))
            execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (self.name, self.newest))
        made = execute(TABLE, (self.name,)).scalar_one()
        parts = definitions(self.sql)
        for words in UNREFLECTED:
            kept = [part for name, part in parts.items() if name not in self.changed]
            if len(find(words, made)) < len(find(words, ",".join(kept))):
                raise CommandError(
                    f"a copy of {self.name} would lack {words}: name it with"
                    " batch_alter_table(…, copy_from=Table(…))"
                )
        # A rename makes SQLite check all views and triggers.
        execute("CREATE TABLE _alembic_renamed (id INTEGER)")
        execute("ALTER TABLE _alembic_renamed RENAME TO _alembic_tmp_renamed")
        execute("DROP TABLE _alembic_tmp_renamed")


def definitions(sql: str) -> dict[str, str]:
    """Return each column, kind of constraint and option of a CREATE TABLE statement, as it is."""
    parts, depth = [""], 0
    for token in TOKEN.findall(COMMENT_OR_QUOTED.sub(lambda found: found[1] or " ", sql)):
        depth += {"(": 1, ")": -1}.get(token, 0)
        begins, ends = token == "(" and depth == 1 and len(parts) == 1, token == ")" and depth == 0
        if token == "," and depth == 1 or begins or ends:
            parts.append("")
        else:
            parts[-1] += token
    found: dict[str, str] = {}
    for part in parts:
        first = re.match(r"""\s*(?:"((?:[^"]|"")+)"|`([^`]+)`|\[([^]]+)]|(\w+))""", part)
        name = first[first.lastindex or 0].replace('""', '"') if first else ""
        found[name] = found.get(name, "") + part
    return found


def find(words: str, sql: str) -> list[str]:
    return re.findall(rf"(?<!\w){re.escape(words)}(?!\w)", sql, re.IGNORECASE)


def mentions(sql: str, names: set[str]) -> bool:
    return any(find(name, sql) for name in names)


def check_rows(ctx: MigrationContext, **step: Any) -> None:
    """Refuse to commit a migration that violates foreign keys."""
    assert ctx.connection is not None
    if orphans := ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        raise CommandError(f"rows refer to rows that do not exist: {orphans[:10]}")


def analyze(connection: Connection) -> None:
    """Gather statistics: without them, SQLite guesses which index to use."""
    with suppress(OperationalError), connection.begin():  # if it is locked: next time
        connection.exec_driver_sql(f"PRAGMA analysis_limit = {ANALYSIS_LIMIT}")
        connection.exec_driver_sql("ANALYZE")

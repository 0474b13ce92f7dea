"""Why a change of the schema did not happen, each with the exit code that commands end with.

0 is done or nothing to do, 1 an error of Django's own (and `--check` with migrations pending).
"""

from __future__ import annotations

from django.core.management.base import CommandError


class SchemaRefusal(CommandError):
    """Base; the message is one line that says what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message, returncode=self.exit_code)


class WrongUsage(SchemaRefusal):
    exit_code = 2


class Pending(SchemaRefusal):
    exit_code = 3


class DatabaseAhead(SchemaRefusal):
    """The database has migrations that this version does not know."""

    exit_code = 4


class SchemaChanged(SchemaRefusal):
    """An applied file was edited, or the tables are not what the migrations say."""

    exit_code = 5


class MigrationFailed(SchemaRefusal):
    """The database is as it was."""

    exit_code = 6


class MigrationFailedPartWay(SchemaRefusal):
    """What ran before the failure has been committed."""

    exit_code = 7


class LockTimeout(SchemaRefusal):
    """Another process held the migration lock, or a table, for too long."""

    exit_code = 8


class Refused(SchemaRefusal):
    """Refused before anything was changed."""

    exit_code = 9


class Held(SchemaRefusal):
    """A migration was rolled back by hand; only a hand applies it again."""

    exit_code = 10

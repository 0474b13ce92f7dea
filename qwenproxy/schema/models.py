"""The history of the schema: one row per attempt to change it, written beside Django's own record.

Rows are added and settled by `runner`, and never deleted. The newest `ok` row of a migration among
apply, fake and adopt stands exactly where `django_migrations` has its row.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class MigrationEvent(models.Model):
    """What happened to one migration, or to the whole database (backup, restore), and who did it."""

    # One upgrade, rollback, backup or restore; `seq` is the order within it.
    run = models.UUIDField(db_index=True)
    seq = models.PositiveIntegerField(default=0)
    # Empty for a backup or a restore; `name` is the file then.
    app = models.CharField(max_length=255)
    name = models.CharField(max_length=255)
    # apply, unapply, fake, adopt (was there before the history), backup, restore, copy
    action = models.CharField(max_length=16)
    # started, ok, failed, interrupted
    status = models.CharField(max_length=16)
    at = models.DateTimeField(db_index=True)
    ms = models.PositiveIntegerField(null=True)
    # The user of the operating system, or QWENPROXY_ACTOR.
    actor = models.CharField(max_length=255, default="")
    host = models.CharField(max_length=255, default="")
    pid = models.PositiveIntegerField(null=True)
    # cli, serve, test
    source = models.CharField(max_length=16, default="cli")
    app_version = models.CharField(max_length=64, default="")
    django_version = models.CharField(max_length=64, default="")
    db_version = models.CharField(max_length=64, default="")
    # `Migration.author`, where the file has one.
    author = models.CharField(max_length=255, default="")
    # Of the file as it ran; see `files.checksum`.
    checksum = models.CharField(max_length=80, default="")
    # Code from before the migration cannot use the database after it.
    breaking = models.BooleanField(default=False)
    # Table -> rows, of each table that was written anew.
    rows = models.JSONField(null=True)
    # The backup that was made before the run.
    backup = models.TextField(default="")
    error = models.TextField(default="")

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["app", "name", "-id"], name="schema_event_migration")
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.app}.{self.name}: {self.status}"

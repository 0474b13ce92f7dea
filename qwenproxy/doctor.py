"""`manage.py doctor`: whether this installation is well, part by part, and how to mend what is not.

A part that cannot be looked at is a finding of its own and hides no other. Nothing it says holds a
secret. It changes nothing; when told to ask the upstreams, what they answer counts as an account's state.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models import Max, Q

from qwenproxy import display
from qwenproxy.access import accounts, encryption
from qwenproxy.access.account_states import PAUSED, way_out
from qwenproxy.access.models import ApiKey, EncryptionCanary, UpstreamAccount
from qwenproxy.access.playground_key import is_lent
from qwenproxy.proxy.account_test import test_accounts
from qwenproxy.schema import backup, report, verify
from qwenproxy.schema.state import read_state
from requests_app.models import Request
from requests_app.prunings import FULL_SOON_DAYS, days_until_full, growth, last_run
from requests_app.retention import plans

Level = Literal["ok", "warning", "error"]

_SOON = timedelta(days=7)
_RETENTION_LATE = timedelta(hours=24)
_CREDENTIALS_SOON = timedelta(days=3)
_CLOCK_TOLERANCE = timedelta(seconds=5)
_LOW_DISK_BYTES, _NO_DISK_BYTES = 2**30, 100 * 2**20
_LARGE_WAL_BYTES = 2**30
# What anybody else may do to a file.
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Finding:
    part: str
    level: Level
    what: str
    # How to mend it; empty where nothing is to be done.
    mend: str = ""


Found = tuple[Level, str, str]


def examine(*, online: bool = False, quick: bool = False) -> Iterator[Finding]:
    """Look at every part in turn; each gives one finding at least.

    Upstreams are asked where `online`; `quick` leaves out what may take longer than a page should.
    """
    parts = (*_PARTS, ("upstreams", _upstreams)) if online else _PARTS
    for part, look in parts:
        if quick and part in SLOW:
            continue
        if part in _NEEDS_TABLES and not _is_migrated():
            yield Finding(part, "warning", "not looked at: the tables are not up to date")
            continue
        found = list(_guarded(look))
        # "All well" is said of a part, not of what is left of it.
        is_well = all(level == "ok" for level, _, _ in found)
        yield from (Finding(part, *one) for one in found if is_well or one[0] != "ok")


def _is_migrated() -> bool:
    try:
        now = read_state()
    except DatabaseError:
        # The part `database` tells what is wrong with it.
        return False
    return not now.pending and not now.ahead


def _guarded(look: Callable[[], Iterator[Found]]) -> Iterator[Found]:
    try:
        yield from look()
    except (DatabaseError, OSError, ImproperlyConfigured, CommandError) as exc:
        first = str(exc).strip().partition("\n")[0] or type(exc).__name__
        yield "error", f"cannot be looked at: {first}", "mend that first, then call doctor again"


def _configuration() -> Iterator[Found]:
    levels: dict[int, Level] = {checks.WARNING: "warning"}
    for message in checks.run_checks():
        if message.level >= checks.WARNING:
            yield levels.get(message.level, "error"), message.msg, message.hint or ""
    if settings.DEBUG:
        yield (
            "warning",
            "QWENPROXY_DEBUG is on: error pages show code and settings",
            "unset QWENPROXY_DEBUG",
        )
    if settings.PUBLIC_URL.startswith("http:"):
        yield (
            "warning",
            "clients reach the gateway without TLS: keys and conversations can be read on the way",
            "put a TLS proxy in front and set QWENPROXY_PUBLIC_URL to its https:// address",
        )
    admin = "; admin on {}:{} alone".format(*settings.ADMIN_BIND) if settings.ADMIN_BIND else ""
    yield "ok", f"version {settings.VERSION}, {settings.HOST}:{settings.PORT}{admin}", ""


def _files() -> Iterator[Found]:
    data = Path(settings.DATA_DIR)
    if not data.exists():
        yield "ok", "no data directory; nothing is kept in files", ""
        return
    if not os.access(data, os.W_OK | os.X_OK):
        yield (
            "error",
            f"{data} cannot be written",
            f"give it to this user: chown {os.getuid()} {data}",
        )
    is_closed = not _mode(data) & _OTHERS
    if not is_closed:
        yield "warning", f"{data} is open to other users", f"chmod 700 {data}"
    secrets = [data / "secret_key", data / "encryption_keys"]
    backups = backup.directory(connection) if connection.vendor == "sqlite" else data / "backups"
    copies = [*backups.glob("qwen-*"), *backups.glob("log.jsonl")] if backups.is_dir() else []
    others = [] if is_closed else list(data.glob("qwenproxy.sqlite3*"))
    exposed = [
        path for path in (*secrets, *copies, *others) if path.exists() and _mode(path) & _OTHERS
    ]
    for path in exposed:
        level: Level = "error" if path in secrets else "warning"
        yield level, f"{path} can be read by other users", f"chmod 600 {path}"
    yield "ok", str(data), ""


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _disk() -> Iterator[Found]:
    data = Path(settings.DATA_DIR)
    while not data.exists():
        data = data.parent
    free = shutil.disk_usage(data).free
    size = 0
    if connection.vendor == "sqlite":
        size = backup.size_bytes(connection)
    # An upgrade makes a copy first.
    if free < _NO_DISK_BYTES:
        level: Level = "error"
    else:
        level = "warning" if free < max(_LOW_DISK_BYTES, size) else "ok"
    mend = "make room, or let backups go elsewhere: QWENPROXY_MIGRATE_BACKUP_DIR"
    yield level, f"{_size(free)} free in {data}", "" if level == "ok" else mend


def _database() -> Iterator[Found]:
    connection.ensure_connection()
    version = ".".join(map(str, connection.get_database_version()))
    if connection.vendor == "postgresql":
        yield "ok", f"PostgreSQL {version}", ""
        return
    mode = _fetch("PRAGMA journal_mode")
    if mode != "wal":
        yield (
            "warning",
            f"journal mode is {mode}, not wal: readers and the writer wait for each other",
            ("put the database on a local disk: some network disks cannot do it"),
        )
    wal = Path(f"{connection.settings_dict['NAME']}-wal")
    if wal.exists() and wal.stat().st_size > _LARGE_WAL_BYTES:
        yield (
            "warning",
            f"the write-ahead log has {_size(wal.stat().st_size)}: a reader stays open",
            ("end programs that keep the database open; it shrinks by itself then"),
        )
    yield "ok", f"SQLite {version}, {_size(backup.size_bytes(connection))}", ""


def _integrity() -> Iterator[Found]:
    if connection.vendor != "sqlite":
        yield "ok", "PostgreSQL looks after its pages itself", ""
        return
    damage = _fetch("PRAGMA quick_check(1)")
    if damage != "ok":
        yield (
            "error",
            f"the file is damaged: {damage}",
            "manage.py dbrestore BACKUP (dbbackup --list)",
        )
    yield "ok", "the file is whole", ""


def _schema() -> Iterator[Found]:
    with report.read_only(connection):
        now = read_state()
        if now.ahead:
            names = ", ".join(".".join(name) for name in now.ahead)
            yield (
                "error",
                f"the database is ahead of this version: {names}",
                (
                    "start the newer version, or restore a backup from before it (docs/migrations.md)"
                ),
            )
            return
        if now.pending:
            yield (
                "error",
                f"pending migrations: {len(now.pending)}",
                "start the gateway, or: manage.py migrate",
            )
            return
        for difference in verify.differences(connection):
            where = f"{difference.table}: " if difference.table else ""
            yield "error", f"{where}{difference.what}", " ".join(difference.mend)
    yield "ok", "up to date, and the tables are what the migrations say", ""


def _clock() -> Iterator[Found]:
    now = datetime.now(UTC)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            difference = abs(datetime.now(UTC) - cursor.fetchone()[0])
        if difference > _CLOCK_TOLERANCE:
            yield (
                "warning",
                f"this clock and the database's differ by {difference.total_seconds():.0f} s",
                ("let both hosts follow a time server"),
            )
    newest = Request.objects.aggregate(newest=Max("created_at"))["newest"]
    if newest is not None and newest > now + _CLOCK_TOLERANCE:
        yield (
            "error",
            f"the newest request is from the future: {newest:%Y-%m-%d %H:%M:%S} UTC",
            ("set the clock right: limits, sessions and lists go by it"),
        )
    yield "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC", ""


def _encryption() -> Iterator[Found]:
    canary = EncryptionCanary.objects.first()
    if canary is None:
        yield "warning", "nothing was encrypted yet", "start the gateway once: manage.py serve"
        return
    # Its own errors say what to do.
    encryption.decrypt(canary.ciphertext)
    rows = UpstreamAccount.objects.exclude(secrets="").only("secrets")
    old = [row for row in rows if not encryption.is_current(row.secrets)]
    if old or not encryption.is_current(canary.ciphertext):
        yield "warning", "some of it is under an older key", "manage.py rotateencryption"
    yield "ok", f"keys: {len(settings.ENCRYPTION_KEYS)}", ""


def _keys() -> Iterator[Found]:
    now = datetime.now(UTC)
    active = ApiKey.objects.filter(Q(expires_at=None) | Q(expires_at__gt=now), revoked_at=None)
    usable = [key for key in active if key.scope_set & {"chat", "admin"} and not is_lent(key)]
    if not usable:
        yield "error", "no API key can chat", "manage.py createapikey NAME"
    for key in active:
        # A playground's is short by design.
        if is_lent(key):
            continue
        if key.expires_at is not None and key.expires_at < now + _SOON:
            yield (
                "warning",
                f"{key} expires at {key.expires_at:%Y-%m-%d %H:%M} UTC",
                (f"give it longer in the admin or by PATCH /v1/keys/{key.pk}"),
            )
        if key.limits is not None and 0 in _values(key):
            yield (
                "warning",
                f"{key} has a limit of 0: nothing passes",
                "raise the limit, or revoke the key",
            )
    if not get_user_model().objects.filter(is_active=True, is_superuser=True).exists():
        yield "warning", "nobody can manage the admin", "manage.py createsuperuser"
    yield "ok", f"active keys: {len(active)}", ""


def _values(key: ApiKey) -> tuple[int | None, ...]:
    return (
        key.requests_per_minute,
        key.tokens_per_minute,
        key.max_concurrent,
        key.tokens_per_day,
        key.tokens_per_month,
    )


def _accounts() -> Iterator[Found]:
    rows = list(UpstreamAccount.objects.all())
    in_use = [row for row in rows if row.enabled]
    if not in_use:
        yield "error", "no upstream account is in use", "add one: Upstream accounts in the admin"
    elif all(row.kind == "demo" for row in in_use):
        yield (
            "warning",
            "the demo alone answers, with imitations",
            ("add an upstream account: docs/upstreams.md"),
        )
    for row in rows:
        yield from _account(row)


def _account(row: UpstreamAccount) -> Iterator[Found]:
    name = f"{row.name} ({row.get_kind_display()})"
    if not row.enabled:
        yield "ok", f"{name}: {PAUSED}", ""
        return
    try:
        secrets = accounts.get_secrets(row)
    except encryption.EncryptionError as exc:
        yield "error", f"{name}: its credentials cannot be read", str(exc)
        return
    needed = {"qwen_web": "cookies", "dashscope": "api_key"}.get(row.kind)
    if needed and not secrets.get(needed):
        yield "error", f"{name}: it has no credentials ({needed})", way_out(row.kind, "expired")
        return
    if row.state != "ready":
        level: Level = "warning" if row.state == "cooling" else "error"
        yield (
            level,
            f"{name}: {row.state}, {row.state_reason}",
            way_out(row.kind, row.state, row.state_until),
        )
    ends = row.secrets_expire_at
    if ends is not None and ends < datetime.now(UTC) + _CREDENTIALS_SOON:
        yield (
            "warning",
            f"{name}: its credentials end at {ends:%Y-%m-%d %H:%M} UTC",
            way_out(row.kind, "expired"),
        )
    if row.state == "ready":
        yield "ok", f"{name}: ready", ""


def _upstreams() -> Iterator[Found]:
    names = dict(UpstreamAccount.objects.filter(enabled=True).values_list("pk", "name"))
    for pk, tested in test_accounts(list(names)).items():
        if not tested.is_ok:
            yield "error", f"{names[pk]}: {tested.code}: {tested.message}", tested.way_out
        else:
            yield "ok", f"{names[pk]}: answered in {tested.ms:,} ms", ""


def _retention() -> Iterator[Found]:
    now = datetime.now(UTC)
    grown = growth(now)
    if grown is not None and connection.vendor == "sqlite":
        free = shutil.disk_usage(Path(str(connection.settings_dict["NAME"])).parent).free
        days = days_until_full(grown, free)
        if days is not None and days < FULL_SOON_DAYS:
            yield (
                "warning",
                f"the disk is full in about {days:,.0f} days: the database grows by"
                f" {_size(round(grown.bytes_a_day))} a day",
                "make room, or let content expire: QWENPROXY_CONTENT_DAYS (docs/retention.md)",
            )
    run, is_set = last_run(), bool(plans(now))
    told = "nothing is set to expire"
    if run is not None:
        told = (
            f"last ran {display.relative(run.ended_at, now)}: content of {run.content_sessions:,},"
            f" all of {run.record_sessions:,} sessions"
        )
    if is_set and (run is None or now - run.ended_at > _RETENTION_LATE):
        what = "has not run yet" if run is None else told
        yield (
            "warning",
            f"what is to expire is still there: retention {what}",
            "the gateway does it every hour while it serves; at once: manage.py prune",
        )
    yield "ok", told, ""


def _fetch(sql: str) -> object:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"


_PARTS: tuple[tuple[str, Callable[[], Iterator[Found]]], ...] = (
    ("configuration", _configuration),
    ("files", _files),
    ("disk", _disk),
    ("database", _database),
    ("integrity", _integrity),
    ("schema", _schema),
    ("clock", _clock),
    ("encryption", _encryption),
    ("keys", _keys),
    ("accounts", _accounts),
    ("retention", _retention),
)
# A second and more, with the size of the database.
SLOW = frozenset(("integrity", "schema"))
_NEEDS_TABLES = frozenset(("clock", "encryption", "keys", "accounts", "upstreams", "retention"))

"""A migrated database of a benchmark's own, on either engine."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


@contextmanager
def new_database(keep: Path | None = None) -> Iterator[None]:
    """Point the settings at a new database, migrate it, remove it afterwards.

    On the PostgreSQL server that QWENPROXY_TEST_DATABASE_URL names; without one SQLite, in a directory that
    may be one to `keep`, with what is in it.
    """
    directory = str(keep) if keep else tempfile.mkdtemp(prefix="qwenproxy-benchmark-")
    server, name = os.environ.get("QWENPROXY_TEST_DATABASE_URL", ""), f"b_{uuid.uuid4().hex[:12]}"
    url = urlsplit(server)._replace(path=f"/{name}").geturl() if server else ""
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "qwenproxy.settings",
        "QWENPROXY_DATA_DIR": directory,
        "DATABASE_URL": url,
        "QWENPROXY_SECRET_KEY": "k" * 50,
        "QWENPROXY_ENCRYPTION_KEYS": "e" * 50,
    }
    # Only where there is a server.
    import psycopg

    try:
        if server:
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
        # The settings are read from what was just set.
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connections

        call_command("migrate", verbosity=0)
        yield
        connections.close_all()
    finally:
        if server:
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        if keep is None:
            shutil.rmtree(directory)

"""A project of its own for each test: the real settings, one more app, and a database file (or one on
the PostgreSQL server), used through the commands in processes of their own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.schema.preloaded import STARTUP, Command, Preloaded

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = """\
from qwenproxy.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "shop"]
"""

CREATE = """\
migrations.CreateModel("Item{number}", [
    ("id", models.BigAutoField(primary_key=True)), ("name", models.TextField()),
])
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the PostgreSQL server leave out what uses a SQLite file all the same: it runs without one."""
    if not os.environ.get("QWENPROXY_TEST_DATABASE_URL"):
        return
    here = Path(__file__).parent
    on_sqlite = {
        item
        for item in items
        if here in item.path.parents and "project" in getattr(item, "fixturenames", ())
    }
    if on_sqlite:
        config.hook.pytest_deselected(items=list(on_sqlite))
        items[:] = [item for item in items if item not in on_sqlite]


class Project:
    """A directory with settings, an app `shop` without models, and its database."""

    def __init__(self, directory: Path, preloaded: Preloaded, url: str = "") -> None:
        self.directory = directory
        self.database = directory / "data" / "qwenproxy.sqlite3"
        self._preloaded = preloaded
        self._processes: list[Command] = []
        (directory / "shop" / "migrations").mkdir(parents=True)
        for package in ("shop", "shop/migrations"):
            (directory / package / "__init__.py").touch()
        (directory / "project_settings.py").write_text(SETTINGS)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("QWEN", "DATABASE_URL", "DJANGO"))
        }
        self.environ = kept | {
            "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DJANGO_SETTINGS_MODULE": "project_settings",
            "QWENPROXY_DATA_DIR": str(directory / "data"),
            "QWENPROXY_SECRET_KEY": "k" * 50,
            "QWENPROXY_ENCRYPTION_KEYS": "e" * 50,
            "QWENPROXY_DISCOVER": "false",
            "QWENPROXY_MIGRATE_LOCK_WAIT_S": "60",
            "DATABASE_URL": url,
        }

    def add_migration(self, name: str, *operations: str, head: str = "") -> Path:
        """Write a migration that follows the one before it by name."""
        before = sorted(path.stem for path in self.migrations.glob("0*.py") if path.stem < name)
        depends = f"[('shop', '{before[-1]}')]" if before else "[]"
        path = self.migrations / f"{name}.py"
        path.write_text(
            "from django.db import migrations, models\n\n\n"
            f"class Migration(migrations.Migration):\n    dependencies = {depends}\n"
            f"    {head}\n    operations = [{', '.join(operations)}]\n"
        )
        return path

    @property
    def migrations(self) -> Path:
        return self.directory / "shop" / "migrations"

    def start(self, *command: str, **environ: str) -> Command:
        assert not set(environ) & set(STARTUP)
        process = self._preloaded.start(command, self.directory, self.environ | environ)
        self._processes.append(process)
        return process

    def end(self) -> None:
        """End what a failed test has left running."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                process.communicate()

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, **environ)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    @property
    def is_postgresql(self) -> bool:
        return bool(self.environ["DATABASE_URL"])

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        if self.is_postgresql:
            # Only where there is a server.
            import psycopg

            with psycopg.connect(self.environ["DATABASE_URL"]) as server:
                found = server.execute(sql)
                return found.fetchall() if found.description else []
        with closing(sqlite3.connect(self.database)) as connection:
            rows = connection.execute(sql).fetchall()
            connection.commit()
            return rows

    def schema(self) -> list[tuple[Any, ...]]:
        return self.query("SELECT type, name, sql FROM sqlite_master ORDER BY rowid")

    def events(self, *columns: str, where: str = "app = 'shop'") -> list[tuple[Any, ...]]:
        return self.query(
            f"SELECT {', '.join(columns)} FROM schema_migrationevent WHERE {where} ORDER BY id"
        )


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    preloaded = Preloaded()
    yield preloaded
    preloaded.end()


@pytest.fixture
def project(tmp_path, preloaded) -> Iterator[Project]:
    """On SQLite, without a database file yet."""
    project = Project(tmp_path, preloaded)
    yield project
    project.end()


@pytest.fixture
def any_project(tmp_path, preloaded) -> Iterator[Project]:
    """On the engine that the tests run on."""
    url = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")
    if not url:
        project = Project(tmp_path, preloaded)
        yield project
        project.end()
        return
    # Only where there is a server.
    import psycopg

    name = f"project_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        project = Project(tmp_path, preloaded, urlsplit(url)._replace(path=f"/{name}").geturl())
        yield project
        project.end()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgresql_project(any_project) -> Project:
    """On the PostgreSQL server, for what SQLite cannot do."""
    if not any_project.is_postgresql:
        pytest.skip("PostgreSQL alone does this; QWENPROXY_TEST_DATABASE_URL names none")
    return any_project


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory, preloaded) -> Path:
    """A database file at the state of the code, made once."""
    project = Project(tmp_path_factory.mktemp("migrated"), preloaded)
    assert project.run("migrate", "-v0").returncode == 0
    assert not Path(f"{project.database}-wal").exists()
    return project.database


@pytest.fixture
def migrated(project, migrated_file) -> Project:
    """On SQLite; migrated before `shop` had a migration."""
    project.database.parent.mkdir(exist_ok=True)
    project.database.write_bytes(migrated_file.read_bytes())
    return project

"""The project's own migrations: complete, reversible, and the same schema by either way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import RunPython, RunSQL

ROOT = Path(__file__).resolve().parents[1]
SERVER = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")
OWN = sorted(
    config.label
    for config in apps.get_app_configs()
    if Path(config.path).is_relative_to(ROOT)
    and (Path(config.path) / "migrations").is_dir()
    and ".venv" not in config.path
)


@pytest.fixture
def database(tmp_path):
    """Name and URL of an empty database of the test's own."""
    if not SERVER:
        path = tmp_path / "migrations.sqlite3"
        yield str(path), f"sqlite:///{path}"
        return
    name = f"migrations_{uuid4().hex[:12]}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield name, f"{SERVER.rpartition('/')[0]}/{name}"
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty(database, django_db_blocker):
    """A connection to an empty database, under an alias: migrations are recorded by alias."""
    connections.databases["migrations"] = {**connections.databases["default"], "NAME": database[0]}
    with django_db_blocker.unblock():
        yield connections["migrations"]
        connections["migrations"].close()
    del connections["migrations"], connections.databases["migrations"]


def migrate(connection, *targets):
    executor = MigrationExecutor(connection)
    executor.migrate(list(targets) or executor.loader.graph.leaf_nodes())


def schema(connection):
    """Tables of ours with their columns, indexes and constraints."""
    found = {}
    with connection.cursor() as cursor:
        introspection = connection.introspection
        for table in introspection.table_names(cursor):
            if not table.startswith(tuple(f"{label}_" for label in OWN)):
                continue
            columns = {
                (c.name, c.type_code, c.null_ok)
                for c in introspection.get_table_description(cursor, table)
            }
            # Names of generated constraints may differ; what they hold may not.
            constraints = sorted(
                repr({key: value for key, value in constraint.items() if key != "definition"})
                for constraint in introspection.get_constraints(cursor, table).values()
            )
            found[table] = (columns, constraints)
    return found


def test_there_are_apps_to_test():
    assert {"access", "sessions_app", "requests_app"} <= set(OWN)


def test_no_migration_is_missing(db):
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def operations():
    loader = MigrationLoader(None)
    for (label, name), migration in sorted(loader.disk_migrations.items()):
        if label in OWN:
            for index, operation in enumerate(migration.operations):
                yield pytest.param(operation, id=f"{label}.{name}:{index}")


@pytest.mark.parametrize("operation", list(operations()))
def test_every_operation_can_be_reversed(operation):
    assert operation.reversible
    if isinstance(operation, RunPython):
        assert operation.reverse_code is not None
    if isinstance(operation, RunSQL):
        assert operation.reverse_sql is not None


def test_forward_back_to_nothing_and_forward_again(empty):
    migrate(empty)
    whole = schema(empty)
    assert any(table.startswith("requests_app_") for table in whole)
    migrate(empty, *((label, None) for label in OWN))
    assert schema(empty) == {}
    migrate(empty)
    assert schema(empty) == whole


@pytest.mark.parametrize("label", OWN)
def test_each_app_goes_back_to_nothing_and_forward_again(empty, label):
    migrate(empty)
    whole = schema(empty)
    migrate(empty, (label, None))
    assert not [table for table in schema(empty) if table.startswith(f"{label}_")]
    migrate(empty)
    assert schema(empty) == whole


def test_each_step_can_be_taken_back_and_repeated(empty):
    graph = MigrationLoader(empty).graph
    migrate(empty, *(node for node in graph.leaf_nodes() if node[0] not in OWN))
    executor = MigrationExecutor(empty)
    plan = [(m.app_label, m.name) for m, _ in executor.migration_plan(graph.leaf_nodes())]
    before = {}
    for node in plan:
        before[node] = schema(empty)
        migrate(empty, node)
    for node in reversed(plan):
        parents = [parent for parent in graph.node_map[node].parents if parent[0] == node[0]]
        migrate(empty, max(parents).key if parents else (node[0], None))
        assert schema(empty) == before[node], node


class TestCommand:
    """`manage.py migrate`, as an operator runs it."""

    @pytest.fixture
    def manage(self, tmp_path, database):
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("QWEN", "DASHSCOPE_", "OPENAI_", "DJANGO_", "DATABASE_"))
        }
        environ |= {
            "DATABASE_URL": database[1],
            "QWENPROXY_DATA_DIR": str(tmp_path / "data"),
            "QWENPROXY_SECRET_KEY": "k" * 50,
            "QWENPROXY_ENCRYPTION_KEYS": "e" * 50,
        }

        def manage(*arguments: str) -> str:
            done = subprocess.run(
                [sys.executable, "manage.py", *arguments],
                cwd=ROOT, env=environ, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        return manage

    @pytest.mark.slow
    def test_sessions_go_to_zero_and_come_back_with_data_around_them(self, manage):
        fill = (
            "from tests.factories import *; from requests_app.models import Request;"
            "from sessions_app.models import Session;"
            "key = ApiKey.objects.filter(name='kept').first() or make_api_key('kept');"
            "before = Session.objects.count(); make_turn(make_session(key));"
            "print(before, Request.objects.count(), ApiKey.objects.count())"
        )
        manage("migrate")
        assert manage("shell", "--no-imports", "-c", fill).split() == ["0", "1", "1"]
        manage("migrate", "sessions_app", "zero")
        assert "[X]" not in manage("showmigrations", "sessions_app", "requests_app")
        manage("migrate")
        assert manage("shell", "--no-imports", "-c", fill).split() == ["0", "1", "1"]

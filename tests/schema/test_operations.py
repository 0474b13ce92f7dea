"""`FastAddField` leaves what `AddField` leaves: schema, data and state."""

from __future__ import annotations

import pytest
from django.db import connection, models
from django.db.migrations import AddField, CreateModel
from django.db.migrations.state import ProjectState
from django.db.models import Value
from django.test.utils import CaptureQueriesContext

from qwenproxy.schema.operations import FastAddField

pytestmark = pytest.mark.django_db(transaction=True)


def apply(operation, state):
    after = state.clone()
    operation.state_forwards("schema", after)
    with connection.schema_editor() as editor:
        operation.database_forwards("schema", editor, state, after)
    return after


def columns(table):
    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, table)
        cursor.execute(f"SELECT * FROM {table} ORDER BY id")
        return [(c.name, c.null_ok, c.default) for c in described], cursor.fetchall()


@pytest.fixture
def tables():
    states = {}
    for name in ("Plain", "Fast"):
        create = CreateModel(
            name, [("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())]
        )
        states[name] = apply(create, ProjectState())
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO schema_{name.lower()} (name) VALUES ('one'), ('two')")
    yield states
    with connection.cursor() as cursor:
        for name in states:
            cursor.execute(f"DROP TABLE schema_{name.lower()}")


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(models.TextField(db_default="x"), id="text"),
        pytest.param(models.TextField(db_default="it's 5%"), id="text to be quoted"),
        pytest.param(models.TextField(null=True, db_default="x"), id="nullable with a literal"),
        pytest.param(models.IntegerField(db_default=Value(7)), id="value"),
        pytest.param(models.BooleanField(db_default=False), id="boolean"),
        pytest.param(models.IntegerField(db_default=1, db_index=True), id="indexed"),
        pytest.param(models.IntegerField(db_default=1, unique=False, null=True), id="nullable"),
        pytest.param(models.IntegerField(default=3), id="no db_default"),
    ],
)
def test_it_adds_what_django_adds(tables, field):
    plain = apply(AddField("plain", "extra", field), tables["Plain"])
    fast = apply(FastAddField("fast", "extra", field.clone()), tables["Fast"])
    assert columns("schema_plain") == columns("schema_fast")
    assert (
        plain.models["schema", "plain"].fields["extra"].deconstruct()[1:]
        == fast.models["schema", "fast"].fields["extra"].deconstruct()[1:]
    )


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite remakes tables")
def test_it_copies_no_table(tables):
    with CaptureQueriesContext(
        connection,
    ) as queries:
        apply(FastAddField("fast", "extra", models.TextField(db_default="x")), tables["Fast"])
    assert not [query for query in queries if "new__" in query["sql"]]
    assert [query for query in queries if "ADD COLUMN" in query["sql"]]

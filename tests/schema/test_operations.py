"""Our operations leave what Django's leave, schema, data and state, and make fewer wait for it."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal

import pytest
from django.db import DatabaseError, NotSupportedError, connection, models, transaction
from django.db.migrations import AddField, AddIndex, CreateModel
from django.db.migrations.state import ProjectState
from django.db.models import Value
from django.db.models.functions import Now, Upper
from django.test.utils import CaptureQueriesContext

from qwenproxy.schema.operations import AddIndexOnline, FastAddField, is_plain

pytestmark = pytest.mark.django_db(transaction=True)

is_sqlite = connection.vendor == "sqlite"
NOON = datetime.datetime(2026, 11, 22, 12, 30, 1, 250, tzinfo=datetime.UTC)
CHOICES = [("a", "A"), ("b", "B")]


def apply(operation, state, *, atomic=True):
    after = state.clone()
    operation.state_forwards("schema", after)
    with connection.schema_editor(atomic=atomic) as editor:
        operation.database_forwards("schema", editor, state, after)
    return after


def undo(operation, before, after, *, atomic=True):
    with connection.schema_editor(atomic=atomic) as editor:
        operation.database_backwards("schema", editor, after, before)


def schema(table):
    """All that is known of a table's columns and constraints, but names made of the table's."""
    with connection.cursor() as cursor:
        columns = connection.introspection.get_table_description(cursor, table)
        constraints = connection.introspection.get_constraints(cursor, table).values()
    found = [
        {key: value for key, value in one.items() if key != "definition"} for one in constraints
    ]
    return [tuple(column) for column in columns], sorted(found, key=repr)


def rows(table):
    kind = "typeof" if is_sqlite else "pg_typeof"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT *, CAST({kind}(extra) AS text) FROM {table} ORDER BY id")
        return [
            tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
            for row in cursor.fetchall()
        ]


def insert(table, **values):
    values = {"name": "three"} | values
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",
            list(values.values()),
        )


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


def param(field, *, plain=True, id):
    return pytest.param(field, plain, id=id)


FIELDS = [
    param(models.TextField(db_default="x"), id="text"),
    param(models.TextField(db_default="it's 5%"), id="text to be quoted"),
    param(models.TextField(db_default=""), id="empty text"),
    param(models.CharField(max_length=9, db_default="a", choices=CHOICES), id="choices"),
    param(models.CharField(max_length=9, default="p", db_default="d"), id="both defaults"),
    param(models.SlugField(db_default="x", allow_unicode=True), id="slug with its index"),
    param(models.EmailField(db_default="a@example.org"), id="email"),
    param(models.GenericIPAddressField(db_default="127.0.0.1"), id="address"),
    param(models.UUIDField(db_default=uuid.UUID(int=7)), id="uuid"),
    param(models.IntegerField(db_default=Value(7)), id="value"),
    param(models.IntegerField(db_default=-7), id="negative"),
    param(models.BigIntegerField(db_default=2**62), id="large"),
    param(models.PositiveIntegerField(db_default=1), id="with a check"),
    param(models.IntegerField(db_default=1, db_index=True), id="indexed"),
    param(models.BooleanField(db_default=False), id="boolean"),
    param(models.FloatField(db_default=0.1), id="float"),
    param(models.FloatField(db_default=2), id="float of an int"),
    param(
        models.DecimalField(max_digits=9, decimal_places=4, db_default=Decimal("1.5")), id="decimal"
    ),
    param(models.BinaryField(db_default=b"\x00'\xff"), id="bytes"),
    param(models.DateTimeField(db_default=NOON), id="datetime"),
    param(models.DateField(db_default=NOON.date()), id="date"),
    param(models.TimeField(db_default=NOON.time()), id="time"),
    param(models.DurationField(db_default=datetime.timedelta(seconds=1.5)), id="duration"),
    param(models.JSONField(db_default={"a": ["'%", 1]}), id="json"),
    param(models.TextField(db_default="x", db_column="elsewhere"), id="column of another name"),
    param(models.DateTimeField(db_default=Now()), plain=False, id="time of the insert"),
    param(models.TextField(db_default=Upper(Value("x"))), plain=False, id="expression"),
    param(models.IntegerField(default=3), plain=False, id="no db_default"),
]


@pytest.mark.parametrize("null", [False, True], ids=["not null", "nullable"])
@pytest.mark.parametrize(("field", "plain"), FIELDS)
def test_it_adds_what_django_adds(tables, field, plain, null):
    field = field.clone()
    field.null = null
    assert is_plain(field) == plain
    added = apply(AddField("plain", "extra", field), tables["Plain"])
    with CaptureQueriesContext(connection) as queries:
        fast = apply(FastAddField("fast", "extra", field.clone()), tables["Fast"])
    if plain:
        assert not [query for query in queries if "new__" in query["sql"]]
    if field.db_column:
        for table in ("plain", "fast"):
            with connection.cursor() as cursor:
                cursor.execute(f"ALTER TABLE schema_{table} RENAME elsewhere TO extra")
    # A row that came after, from code that does not know the column.
    for table in ("schema_plain", "schema_fast"):
        try:
            insert(table)
        except DatabaseError:
            assert not field.has_db_default()
    assert schema("schema_plain") == schema("schema_fast")
    plain_rows, fast_rows = rows("schema_plain"), rows("schema_fast")
    if isinstance(field.db_default, Now):
        assert [row[:2] for row in plain_rows] == [row[:2] for row in fast_rows]
    else:
        assert plain_rows == fast_rows
    assert (
        added.models["schema", "plain"].fields["extra"].deconstruct()[1:]
        == fast.models["schema", "fast"].fields["extra"].deconstruct()[1:]
    )


def test_a_column_without_a_value_for_its_rows_is_not_plain():
    assert not is_plain(models.TextField(db_default=Value(None)))
    assert is_plain(models.TextField(db_default=Value(None), null=True))
    assert not is_plain(models.TextField(db_default="x", unique=True))
    assert not is_plain(models.TextField(db_default="x", primary_key=True))
    assert not is_plain(
        models.ForeignKey("auth.User", on_delete=models.CASCADE, db_default=1, null=True)
    )


def test_a_check_holds_for_what_comes_after(tables):
    field = models.PositiveIntegerField(db_default=1)
    apply(FastAddField("fast", "extra", field), tables["Fast"])
    with pytest.raises(DatabaseError):
        insert("schema_fast", extra=-1)


def test_the_column_goes_again(tables):
    before = schema("schema_fast")
    operation = FastAddField("fast", "extra", models.PositiveIntegerField(db_default=1))
    undo(operation, tables["Fast"], apply(operation, tables["Fast"]))
    assert schema("schema_fast") == before


ONLINE = AddIndexOnline("fast", models.Index(fields=["name"], name="fast_name"))


def index_statements(queries):
    return [query["sql"] for query in queries if "INDEX" in query["sql"]]


def test_an_index_is_made_and_removed_while_others_write(tables):
    before = schema("schema_fast")
    with CaptureQueriesContext(connection) as queries:
        after = apply(ONLINE, tables["Fast"], atomic=False)
        assert "fast_name" in repr(after.models["schema", "fast"].options["indexes"])
        apply(AddIndex("plain", models.Index(fields=["name"], name="p_name")), tables["Plain"])
        assert schema("schema_fast") == schema("schema_plain")
        undo(ONLINE, tables["Fast"], after, atomic=False)
    assert schema("schema_fast") == before
    made, _, removed = index_statements(queries)
    assert ("CONCURRENTLY" in made and "CONCURRENTLY" in removed) == (not is_sqlite)


def test_an_index_left_by_a_killed_attempt_is_made_anew(tables):
    with connection.cursor() as cursor:
        cursor.execute("CREATE INDEX fast_name ON schema_fast (id)")
    after = apply(ONLINE, tables["Fast"], atomic=False)
    apply(AddIndex("plain", models.Index(fields=["name"], name="p_name")), tables["Plain"])
    assert schema("schema_fast") == schema("schema_plain")
    undo(ONLINE, tables["Fast"], after, atomic=False)
    # And the way back that was killed after it.
    undo(ONLINE, tables["Fast"], after, atomic=False)


@pytest.mark.skipif(is_sqlite, reason="only PostgreSQL has CONCURRENTLY")
def test_an_index_online_is_refused_in_a_transaction(tables):
    with pytest.raises(NotSupportedError):
        apply(ONLINE, tables["Fast"])

"""The text of a new migration of each kind, safe as it stands: what is left to do is marked FILL IN.

Each goes both ways, uses the models of its own place in history, and imports; none can be applied
before it is filled in, because it names a model or a statement that there is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template


@dataclass(frozen=True, slots=True)
class MigrationTemplate:
    # The file's name without its number, where no other is given.
    name: str
    text: str

    def render(self, app_label: str, dependencies: Sequence[tuple[str, str]], author: str) -> str:
        return Template(self.text).substitute(
            app=app_label,
            # As Python and its formatter write them.
            author=json.dumps(author),
            dependencies=", ".join(
                f"({json.dumps(app)}, {json.dumps(name)})" for app, name in dependencies
            ),
        )


_DATA = '''\
"""FILL IN: which rows are changed, and why.

The rows are found by what is still to be changed in them: run again, it changes what is left. All
batches are of the upgrade's one transaction. For millions of rows on PostgreSQL `atomic = False` in the
class commits each by itself; a failure then leaves the batches before it done.
"""

from __future__ import annotations

from django.db import migrations

MODEL = ""  # FILL IN: "Item"
BEFORE = {}  # FILL IN: the rows to change, as {"stock": 0}
AFTER = {}  # FILL IN: what they get, as {"stock": 1}
BATCH_ROWS = 1000


def fill(apps, schema_editor):
    """FILL IN: the line that `migrate --sql` shows."""
    # The model as it is here in the history: the code's has other columns one day.
    model = apps.get_model("$app", MODEL)
    rows = model.objects.using(schema_editor.connection.alias).filter(**BEFORE).order_by("pk")
    keys = list(rows.values_list("pk", flat=True)[:BATCH_ROWS])
    while keys:
        rows.filter(pk__gte=keys[0], pk__lte=keys[-1]).update(**AFTER)
        keys = list(rows.filter(pk__gt=keys[-1]).values_list("pk", flat=True)[:BATCH_ROWS])


class Migration(migrations.Migration):
    author = $author
    # FILL IN: False where the version before can live with what is written.
    breaking = True
    dependencies = [$dependencies]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
'''

_SQL = '''\
"""FILL IN: what the statements do, and why no operation of Django's does.

They run on SQLite and on PostgreSQL; what differs needs RunPython and `schema_editor.connection.vendor`.
"""

from __future__ import annotations

from django.db import migrations

SQL = ["FILL IN"]  # FILL IN: each statement apart
REVERSE_SQL = ["FILL IN"]  # FILL IN: what undoes them, the last first; [] where nothing has to be
STATE_OPERATIONS = []  # FILL IN: what Django is to think has changed, where columns have


class Migration(migrations.Migration):
    author = $author
    # FILL IN: False where the version before can live with the result.
    breaking = True
    dependencies = [$dependencies]
    operations = [migrations.RunSQL(SQL, REVERSE_SQL, state_operations=STATE_OPERATIONS)]
'''

_INDEX = '''\
"""FILL IN: which query needs the index.

PostgreSQL makes it while others write, which it cannot do in a transaction: keep it alone in its file.
"""

from __future__ import annotations

from django.db import migrations, models

from qwenproxy.schema.operations import AddIndexOnline

MODEL = ""  # FILL IN: "Item"
INDEX = models.Index(fields=["FILL_IN"], name="FILL_IN")  # FILL IN: as in the model's Meta.indexes


class Migration(migrations.Migration):
    author = $author
    atomic = False
    dependencies = [$dependencies]
    operations = [AddIndexOnline(MODEL, INDEX)]
'''

_RENAME = '''\
"""FILL IN: which column gets which name, and why.

It takes three releases, so that each can run beside the one before, and be rolled back to it:

1. This file: the new column beside the old, filled from it. The code writes both and reads the old.
2. A migration with this `copy` alone, for what older code wrote meanwhile. The code writes both and
   reads the new.
3. `makemigrations $app --template drop` for the old column. The code knows the new alone.
"""

from __future__ import annotations

from django.db import migrations, models

from qwenproxy.schema.operations import FastAddField

MODEL = ""  # FILL IN: "Item"
OLD = ""  # FILL IN: "stock"
NEW = ""  # FILL IN: "pieces"
FIELD = models.IntegerField(db_default=0)  # FILL IN: the old one's definition, with a db_default
BATCH_ROWS = 1000


def copy(apps, schema_editor):
    """Copy the old column into the new one, where they differ."""
    # The model as it is here in the history: the code's has other columns one day.
    model = apps.get_model("$app", MODEL)
    rows = model.objects.using(schema_editor.connection.alias)
    rows = rows.exclude(**{NEW: models.F(OLD)}).order_by("pk")
    keys = list(rows.values_list("pk", flat=True)[:BATCH_ROWS])
    while keys:
        rows.filter(pk__gte=keys[0], pk__lte=keys[-1]).update(**{NEW: models.F(OLD)})
        keys = list(rows.filter(pk__gt=keys[-1]).values_list("pk", flat=True)[:BATCH_ROWS])


class Migration(migrations.Migration):
    author = $author
    # The version before does not know the new column, and its default is there for it.
    breaking = False
    dependencies = [$dependencies]
    operations = [
        FastAddField(MODEL, NEW, FIELD),
        migrations.RunPython(copy, migrations.RunPython.noop),
    ]
'''

_DROP = '''\
"""FILL IN: which column goes, and why.

It takes two releases, so that each can run beside the one before, and be rolled back to it:

1. HIDE: the code no longer knows the column; the database keeps it, with a default for new rows.
2. DROP, in a file of its own made with the same template: the column goes, with what is in it.
"""

from __future__ import annotations

from django.db import migrations, models

MODEL = ""  # FILL IN: "Item"
NAME = ""  # FILL IN: "stock"
# FILL IN: its definition, with a db_default; a unique one or a relation with null=True in place of it.
FIELD = models.IntegerField(db_default=0)

HIDE = [
    migrations.AlterField(MODEL, NAME, FIELD),
    migrations.SeparateDatabaseAndState(state_operations=[migrations.RemoveField(MODEL, NAME)]),
]
DROP = [
    migrations.SeparateDatabaseAndState(
        database_operations=[
            # What is dropped has to be known, and has been forgotten by HIDE.
            migrations.SeparateDatabaseAndState(
                state_operations=[migrations.AddField(MODEL, NAME, FIELD)]
            ),
            migrations.RemoveField(MODEL, NAME),
        ]
    )
]


class Migration(migrations.Migration):
    author = $author
    dependencies = [$dependencies]
    operations = HIDE  # FILL IN: HIDE in the first of the releases, DROP in the second
    # Code from before HIDE still finds the column, and new rows have its default.
    breaking = operations is DROP
'''

TEMPLATES = {
    "data": MigrationTemplate("fill", _DATA),
    "sql": MigrationTemplate("sql", _SQL),
    "index": MigrationTemplate("add_index", _INDEX),
    "rename": MigrationTemplate("rename_step", _RENAME),
    "drop": MigrationTemplate("drop_step", _DROP),
}

"""Migrations that `makemigrations` writes: by template, filled in, they go forward and back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
from django.core.management import call_command

from qwenproxy.schema.refusals import WrongUsage
from qwenproxy.schema.templates import TEMPLATES
from tests.schema.conftest import ROOT

MODELS = """\
import datetime
from decimal import Decimal

from django.db import models
from django.db.models.functions import Now


class Item(models.Model):
    id = models.BigAutoField(primary_key=True)
    name = models.TextField()
    stock = models.IntegerField()
"""
ITEM = """\
migrations.CreateModel("Item", [
    ("id", models.BigAutoField(primary_key=True, serialize=False)), ("name", models.TextField()),
    ("stock", models.IntegerField()),
])
"""
BEGIN = (
    "migrate -v0",
    "INSERT INTO shop_item (name, stock) VALUES ('a', 0), ('b', 0), ('c', 5), ('d', 0)",
)
COLUMNS_OF = (
    "SELECT name FROM pragma_table_info('shop_item')",
    "SELECT column_name FROM information_schema.columns WHERE table_name = 'shop_item'",
)
# For each template: what its marked places become.
FILLED = {
    "data": {"MODEL": '"Item"', "BEFORE": '{"stock": 0}', "AFTER": '{"stock": 1}', "BATCH_ROWS": 2},
    "sql": {
        "SQL": '["UPDATE shop_item SET stock = stock + 1"]',
        "REVERSE_SQL": '["UPDATE shop_item SET stock = stock - 1"]',
    },
    "index": {"MODEL": '"Item"', "INDEX": 'models.Index(fields=["name"], name="by_name")'},
    "rename": {"MODEL": '"Item"', "OLD": '"stock"', "NEW": '"pieces"', "BATCH_ROWS": 2},
    "drop": {"MODEL": '"Item"', "NAME": '"stock"'},
}
# Starting Django takes longer than any of these commands: a test's steps are of one process.
PLAYER = """\
import json, re, shlex
from pathlib import Path
from django.core.management import execute_from_command_line
from django.db import connection

found = []
for step in STEPS:
    newest = max(Path("shop/migrations").glob("0*.py"))
    if isinstance(step, dict):
        text = newest.read_text()
        for pattern, new in step.items():
            text, count = re.subn(pattern, lambda found: new, text, flags=re.MULTILINE)
            assert count == 1, pattern
        newest.write_text(text)
    elif re.match("SELECT|INSERT|DELETE", step):
        with connection.cursor() as cursor:
            cursor.execute(step)
            if cursor.description:
                found.append(cursor.fetchall())
    else:
        command, _, expected = step.partition(" ! ")
        try:
            execute_from_command_line(["manage.py", *shlex.split(command)])
            code = 0
        except SystemExit as exit:
            code = exit.code
        assert code == int(expected or 0), (step, code)
print(json.dumps(found))
"""


def play(project, *steps):
    """Do one after the other: commands, SQL, what to put in place of what in the newest migration.

    Returns what was selected.
    """
    ended = project.run("shell", "--no-imports", "-c", f"STEPS = {steps!r}\n{PLAYER}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def make(kind, options=""):
    return f"makemigrations shop --template {kind} {options}"


def filled(kind):
    return {rf"^{name} = .*$": f"{name} = {value}" for name, value in FILLED[kind].items()}


def there_and_back(name, before, columns="stock", columns_before="stock"):
    """The SQL, forward, back to the migration before, and forward again."""
    return (
        f"sqlmigrate shop {name}",
        f"sqlmigrate shop {name} --backwards",
        "migrate --sql",
        "migrate -v0 --allow-unsafe",
        f"SELECT {columns} FROM shop_item ORDER BY id",
        f"migrate shop {before} -v0",
        f"SELECT {columns_before} FROM shop_item ORDER BY id",
        "migrate -v0 --allow-unsafe",
    )


def newest(project):
    return max(project.migrations.glob("0*.py"))


@pytest.fixture
def shop(any_project, request):
    """With a model, its migration not yet applied."""
    (any_project.directory / "shop" / "models.py").write_text(MODELS)
    any_project.add_migration("0001_items", ITEM)
    if not any_project.environ["DATABASE_URL"]:
        any_project.database.parent.mkdir()
        shutil.copy(request.getfixturevalue("migrated_file"), any_project.database)
    return any_project


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_passes_the_linter_and_cannot_be_applied_as_it_is(migrated, kind):
    migrated.add_migration("0001_items", ITEM)
    play(migrated, make(kind), "showmigrations shop")
    ruff = shutil.which("ruff", path=f"{ROOT / '.venv' / 'bin'}:{sys.prefix}/bin")
    assert ruff is not None
    # By the rules for code, those for migrations allow everything; but lists are in every migration.
    stdin = ["--config", str(ROOT / "pyproject.toml"), "--stdin-filename", "generated.py", "-"]
    text = newest(migrated).read_text()
    for command in (["check", "--extend-ignore", "RUF012"], ["format", "--check"]):
        ended = subprocess.run([ruff, *command, *stdin], input=text, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert migrated.run("migrate", "-v0").returncode != 0
    applied = migrated.query("SELECT name FROM django_migrations WHERE app = 'shop'")
    assert applied in ([], [("0001_items",)])


def test_data(shop):
    steps = there_and_back("0002_fill", "0001")
    there, back = play(shop, *BEGIN, make("data"), filled("data"), *steps)
    assert there == [[1], [1], [5], [1]] == back


def test_sql(shop):
    steps = there_and_back("0002_sql", "0001")
    there, back = play(shop, *BEGIN, make("sql"), filled("sql"), *steps)
    assert there == [[1], [1], [6], [1]]
    assert back == [[0], [0], [5], [0]]


def test_index(shop):
    models = shop.directory / "shop" / "models.py"
    meta = "\n    class Meta:\n        indexes = [models.Index(fields=['name'], name='by_name')]\n"
    models.write_text(models.read_text() + meta)
    steps = there_and_back("0002_add_index", "0001")
    checks = ("showmigrations --verify", "makemigrations shop --check")
    play(shop, *BEGIN, make("index"), filled("index"), *steps, *checks)


def test_rename(shop):
    there, back, again = play(
        shop,
        *BEGIN,
        make("rename"),
        filled("rename"),
        *there_and_back("0002_rename_step", "0001", columns="stock, pieces"),
        # What the version before writes, and the second release's same copy for that.
        "INSERT INTO shop_item (name, stock) VALUES ('e', 7)",
        make("rename", "-n copy_again"),
        filled("rename") | {r"^ +FastAddField\(.*\n": ""},
        "migrate -v0",
        "SELECT pieces FROM shop_item WHERE name = 'e'",
    )
    assert there == [[0, 0], [0, 0], [5, 5], [0, 0]]
    assert back == [[0], [0], [5], [0]]
    assert again == [[7]]


def test_drop(shop):
    models = shop.directory / "shop" / "models.py"
    models.write_text(models.read_text().replace("    stock = models.IntegerField()\n", ""))
    there, back, columns, dropped_back, left, breaking = play(
        shop,
        *BEGIN,
        make("drop"),
        filled("drop"),
        *there_and_back("0002_drop_step", "0001"),
        "makemigrations shop --check",
        # Code of either side inserts.
        "INSERT INTO shop_item (name, stock) VALUES ('old', 7)",
        "INSERT INTO shop_item (name) VALUES ('new')",
        make("drop"),
        filled("drop") | {"operations = HIDE": "operations = DROP"},
        "migrate ! 9",
        *there_and_back("0003_drop_step", "0002", columns="1")[:4],
        COLUMNS_OF[bool(shop.environ["DATABASE_URL"])],
        "migrate shop 0002 -v0",
        "SELECT stock FROM shop_item ORDER BY id",
        "migrate -v0 --allow-unsafe",
        "SELECT name FROM shop_item ORDER BY id",
        "makemigrations shop --check",
        "SELECT DISTINCT name, CASE WHEN breaking THEN 1 ELSE 0 END FROM schema_migrationevent "
        "WHERE app = 'shop' AND action = 'apply' AND status = 'ok' ORDER BY name",
    )
    assert there == [[0], [0], [5], [0]] == back
    assert sorted(columns) == [["id"], ["name"]]
    assert dropped_back == [[0]] * 6
    assert len(left) == 6
    # Code from before the first release looks for the column.
    assert breaking == [["0001_items", 0], ["0002_drop_step", 0], ["0003_drop_step", 1]]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("labels", "options", "told"),
    [
        pytest.param(["schema"], {"template": "view"}, "There is no template 'view'", id="unknown"),
        pytest.param(["schema"], {"template": ""}, "There is no template ''", id="empty"),
        pytest.param([], {}, "Name one app", id="no-app"),
        pytest.param(["schema", "access"], {}, "Name one app", id="two-apps"),
        pytest.param(["gateway"], {}, "has no migration yet", id="nothing-before"),
        pytest.param(["schema"], {"merge": True}, "leave out --merge", id="merge"),
        pytest.param(["schema"], {"update": True}, "leave out --update", id="update"),
        pytest.param(["schema"], {"check_changes": True}, "leave out --check", id="check"),
    ],
)
def test_wrong_usage_of_a_template(labels, options, told):
    options = {"template": "data", "dry_run": True} | options
    with pytest.raises(WrongUsage, match=told) as refused:
        call_command("makemigrations", *labels, **options)
    assert refused.value.returncode == 2
    assert "\n" not in str(refused.value)


def test_an_app_that_there_is_not(capsys):
    with pytest.raises(SystemExit) as ended:
        call_command("makemigrations", "shops", template="data")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "No installed app with label 'shops'.\n"


def test_the_name_the_author_and_what_it_follows(project):
    project.add_migration("0001_items", ITEM)
    project.environ["QWENPROXY_ACTOR"] = "O'\"Neil"
    play(project, make("sql", "-n count"), make("sql"), make("index", "--dry-run -v3"))
    assert newest(project).name == "0003_sql.py"
    text = (project.migrations / "0002_count.py").read_text()
    assert '    author = "O\'\\"Neil"\n' in text
    assert '    dependencies = [("shop", "0001_items")]\n' in text


COLUMNS = """\
    code = models.CharField(max_length=9, db_default="x")
    price = models.DecimalField(max_digits=9, decimal_places=2, db_default=Decimal("1.5"), null=True)
    day = models.DateField(db_default=datetime.date(2026, 11, 22))
    made = models.DateTimeField(db_default=Now())
    unique = models.TextField(null=True, unique=True, db_default="x")
    note = models.TextField(default="x")
"""


def test_columns_that_can_be_are_added_fast(migrated):
    migrated.add_migration("0001_items", ITEM)
    (migrated.directory / "shop" / "models.py").write_text(MODELS + COLUMNS)
    play(
        migrated,
        *BEGIN,
        # One has to be unique.
        "DELETE FROM shop_item WHERE id > 1",
        "makemigrations shop -n columns",
        "migrate -v0",
        "showmigrations --verify",
        "makemigrations --check --dry-run",
    )
    text = newest(migrated).read_text()
    fast = re.findall(r"FastAddField\(\s*model_name='item',\s*name='(\w+)'", text)
    slow = re.findall(r"migrations\.AddField\(\s*model_name='item',\s*name='(\w+)'", text)
    assert (sorted(fast), sorted(slow)) == (["code", "day", "price"], ["made", "note", "unique"])


def test_an_author_is_written_once_and_kept(project):
    project.add_migration("0001_items", ITEM)
    (project.directory / "shop" / "models.py").write_text(MODELS + COLUMNS.splitlines(True)[0])
    project.run("makemigrations", "shop", "-n", "one", QWENPROXY_ACTOR=r"Ada\1")
    (project.directory / "shop" / "models.py").write_text(
        MODELS + "".join(COLUMNS.splitlines(True)[:2])
    )
    ended = project.run("makemigrations", "shop", "--update", QWENPROXY_ACTOR="Bob")
    assert ended.returncode == 0
    text = newest(project).read_text()
    assert re.findall("author = .*", text) == [r"author = 'Ada\\1'"]
    assert text.count("FastAddField(") == 2


def test_packages_of_others_are_left_as_django_writes_them(project, tmp_path):
    """An installed app's migrations are its authors' own."""
    package = tmp_path / "site-packages" / "bought"
    (package / "migrations").mkdir(parents=True)
    for folder in (package, package / "migrations"):
        (folder / "__init__.py").touch()
    first = "class Thing(models.Model):\n    id = models.BigAutoField(primary_key=True)\n"
    (package / "models.py").write_text(f"from django.db import models\n\n\n{first}")
    settings = project.directory / "project_settings.py"
    settings.write_text(settings.read_text().replace('"shop"', '"shop", "bought"'))
    path = f"{project.environ['PYTHONPATH']}:{package.parent}"
    assert project.run("makemigrations", "bought", PYTHONPATH=path).returncode == 0
    text = (package / "models.py").read_text() + "    code = models.TextField(db_default='x')\n"
    (package / "models.py").write_text(text)
    assert project.run("makemigrations", "bought", "-n", "two", PYTHONPATH=path).returncode == 0
    written = (package / "migrations" / "0002_two.py").read_text()
    assert "migrations.AddField(" in written
    assert "author" not in written

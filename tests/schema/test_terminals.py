"""What is printed where there is no terminal, no colour, and no letter beyond ASCII."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from tests.schema.conftest import CREATE, ROOT, Project

FAILS = "migrations.RunSQL('INSERT INTO größe VALUES (1)', '')"
PYTHON = """\
# A docstring that ASCII has no letters for
from django.db import migrations

def fill(apps, schema_editor):
    \"\"\"Größe 你好 → nachtragen.\"\"\"

class Migration(migrations.Migration):
    dependencies = [("shop", "0001_step")]
    author = "Søren"
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
"""
# As in a container without a locale, where Python is kept from choosing UTF-8 by itself.
C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STATUS = ["showmigrations", "--status"]


@pytest.fixture
def every_state(migrated) -> Project:
    """Applied, held, failed and pending migrations."""
    migrated.add_migration("0001_step", CREATE.format(number=1))
    path = migrated.migrations / "0002_fill.py"
    path.write_text(PYTHON, "utf-8")
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.run("rollback", "--yes", "--force").returncode == 0
    migrated.add_migration("0003_bad").unlink()
    bad = migrated.migrations / "0003_bad.py"
    bad.write_text(
        "from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n"
        f"    dependencies = [('shop', '0002_fill')]\n    operations = [{FAILS}]\n",
        "utf-8",
    )
    return migrated


def in_c_locale(project: Project, *command: str) -> tuple[int, bytes]:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "manage.py", *command],
        cwd=project.directory,
        env={**project.environ, **C_LOCALE},
        capture_output=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.slow
def test_ascii_tells_all(every_state):
    printed = {}
    for code, *command in (
        (6, "migrate"),
        (0, *STATUS),
        (0, "showmigrations", "--json"),
        (0, "showmigrations", "--history"),
        (0, "migrate", "--plan"),
        (0, "migrate", "--plan", "--json"),
        (0, "migrate", "--sql"),
        (0, "dbbackup", "--list"),
        (9, "rollback", "--yes"),
    ):
        found, text = in_c_locale(every_state, *command)
        assert found == code, (command, text.decode())
        assert b"Traceback" not in text, (command, text.decode())
        assert b"\x1b" not in text
        printed[" ".join(command)] = text.decode("ascii")
        if "--json" in command:
            json.loads(text)
    assert "[x] 0001_step" in printed["showmigrations --status"]
    assert "[!] 0003_bad" in printed["showmigrations --status"]
    assert "failed" in printed["showmigrations --history"]
    assert "nachtragen" in printed["migrate --sql"]
    assert json.loads(printed["showmigrations --json"])["failed"][0]["error"].count("größe") == 2


def on_a_terminal(project: Project, **environ: str) -> bytes:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", ROOT / "manage.py", *STATUS],
        cwd=project.directory,
        env={**project.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environ},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:
        # How Linux tells the end of a terminal.
        pass
    os.close(ours)
    assert process.wait(60) == 0, text
    return text


def test_colour_is_for_terminals_that_want_it(every_state):
    assert b"\x1b[" in on_a_terminal(every_state)
    plain = on_a_terminal(every_state, NO_COLOR="1")
    assert b"\x1b" not in plain
    assert "✓ 0001_step" in plain.decode()
    assert "\x1b" not in every_state.run(*STATUS).stdout


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("QWEN")}
    process = subprocess.Popen(
        [sys.executable, "manage.py", "help", "--commands"],
        cwd=ROOT,
        env=environ
        | {"QWENPROXY_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "qwenproxy.settings"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(60) == 128 + signal.SIGPIPE

"""The pages about migrations: what they show is what happens, and every command and status is right."""

from __future__ import annotations

import re
import shlex

import pytest
from django.core.management import load_command_class
from django.core.management.base import CommandError

from qwenproxy.schema import refusals
from qwenproxy.schema.report import SYMBOLS
from tests.schema.conftest import ROOT
from tests.schema.guide import Guide, matches

GUIDE = ROOT / "docs" / "migrations.md"
REFERENCE = ROOT / "docs" / "migrations-reference.md"
STATUSES = {0, 1} | {
    cls.exit_code for cls in vars(refusals).values() if getattr(cls, "exit_code", 0) > 1
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_guide_print_what_it_shows(project):
    wrong = [
        f"$ {command}\n{printed}"
        for command, told, printed in Guide(project, GUIDE).steps()
        if not matches(told, printed)
    ]
    assert "\n".join(wrong) == ""


def commands() -> list[str]:
    text = GUIDE.read_text("utf-8") + REFERENCE.read_text("utf-8")
    found = re.findall(r"(?:`|^\$ )manage\.py ([^`\n]+)", text, re.MULTILINE)
    return sorted({re.sub(r"\s*#.*", "", command) for command in found})


@pytest.mark.parametrize("command", commands())
def test_every_command_has_these_options(command):
    name, *arguments = shlex.split(command)
    parser = load_command_class("qwenproxy", name).create_parser("manage.py", name)
    try:
        parser.parse_args(arguments)
    except CommandError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize("page", [GUIDE, REFERENCE], ids=lambda page: page.name)
def test_every_exit_status_is_explained(page):
    told = re.findall(r"^\| (\d+) \|", page.read_text("utf-8"), re.MULTILINE)
    assert [int(number) for number in told] == sorted(STATUSES)


def test_every_symbol_is_explained():
    text = REFERENCE.read_text("utf-8")
    for symbol, plain in SYMBOLS.values():
        assert re.search(rf"^\| {re.escape(symbol)} \| .* \| `{re.escape(plain)}` \|", text, re.M)


@pytest.mark.parametrize(
    ("told", "is_same"),
    [
        pytest.param("a\n…\nd\n", True, id="lines-left-out"),
        pytest.param("a\nb\nc\nd\n", True, id="whole"),
        pytest.param("a\nd\n", False, id="short"),
        pytest.param("a\n…\nx\n", False, id="other"),
    ],
)
def test_comparing(told, is_same):
    assert matches(told, "a\nb\nc\nd\n") == is_same

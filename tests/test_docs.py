"""The documentation names what the code has: settings, routes, commands, checks, the version."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from django.urls import URLPattern

import qwenproxy
from qwenproxy import errors, urls
from qwenproxy.api import api

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    path
    for top in ("qwenproxy", "sessions_app", "requests_app")
    for path in sorted((ROOT / top).rglob("*.py"))
]


@cache
def rows() -> list[str]:
    """The lines of all tables."""
    return [line for p in PAGES for line in p.read_text("utf-8").splitlines() if line[:2] == "| "]


def settings_variables() -> list[str]:
    """Names that the settings read, not those that their messages mention."""
    source = (ROOT / "qwenproxy" / "settings.py").read_text("utf-8")
    names = re.findall(r'_[a-z]+\(\s*"([A-Z][A-Z0-9_]+)"', source)
    assert len(names) > 30
    return sorted(set(names))


def file_variables() -> list[str]:
    source = (ROOT / "qwenproxy" / "settings.py").read_text("utf-8")
    return sorted(set(re.findall(r'_(?:own_)?secret\(\s*"([A-Z0-9_]+)"', source)))


def routes() -> list[str]:
    operations = [
        f"{method.upper()} {path}"
        for path, methods in api.get_openapi_schema()["paths"].items()
        for method in methods
    ]
    plain = [
        f"/{pattern.pattern}" for pattern in urls.urlpatterns if isinstance(pattern, URLPattern)
    ]
    return [*operations, *(f"GET {path}" for path in plain if path != "/")]


def commands() -> list[str]:
    return sorted(
        path.stem
        for path in SOURCES
        if path.parent.name == "commands" and not path.stem.startswith("_")
    )


def check_ids() -> list[str]:
    pattern = re.compile(r'id="([a-z_]+\.[EW]\d{3})"')
    return sorted({found for path in SOURCES for found in pattern.findall(path.read_text("utf-8"))})


def error_classes() -> list[type[errors.GatewayError]]:
    found = [errors.GatewayError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return [cls for cls in found if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("name", settings_variables())
def test_every_variable_has_a_row(name):
    assert any(row.startswith(f"| `{name}` ") for row in rows())


@pytest.mark.parametrize("name", file_variables())
def test_every_secret_is_marked_as_readable_from_a_file(name):
    assert any(row.startswith(f"| `{name}` *file* ") for row in rows())


def test_every_variable_of_the_documentation_is_read():
    named = {name for p in PAGES for name in re.findall(r"QWENPROXY_[A-Z_]+", p.read_text("utf-8"))}
    # Beside the settings: the tests' own, and what pages call the key in a shell.
    known = set(settings_variables()) | {"QWENPROXY_TEST_DATABASE_URL", "QWENPROXY_KEY"}
    assert named <= known | {f"{name}_FILE" for name in file_variables()}


@pytest.mark.parametrize("route", routes())
def test_every_route_has_a_row(route):
    assert any(f"`{route}`" in row for row in rows())


@pytest.mark.parametrize("name", commands())
def test_every_command_has_a_row(name):
    assert any(re.match(rf"\| `{name}[ `]", row) for row in rows())


@pytest.mark.parametrize("check_id", check_ids())
def test_every_check_is_explained(check_id):
    assert any(f"`{check_id}`" in p.read_text("utf-8") for p in PAGES)


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_every_error_has_a_row(cls):
    same = [row for row in rows() if row.startswith(f"| {cls.status} | `{cls.type}`")]
    assert any(cls.code is None or f"`{cls.code}`" in row for row in same)


def test_every_test_that_proves_something_exists():
    text = (ROOT / "docs" / "migrations-proofs.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 34
    for file, name in named:
        source = (ROOT / "tests" / "schema" / file).read_text("utf-8")
        assert f"def {name}(" in source, f"{file}::{name}"


def test_the_version_is_the_same_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert newest is not None
    assert newest[1] == qwenproxy.__version__ == project["project"]["version"]


def anchors(path: Path) -> set[str]:
    """The names of a page's headings in links, as the usual hosts make them."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_inside_the_documentation_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target

"""Who may import whom, and the few forms every module keeps: docs/architecture.md, read with `ast`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = ("qwenproxy", "sessions_app", "requests_app")
MAX_LINES = 700

# Roots put the parts together; nobody but another root knows them.
ROOTS = (
    "qwenproxy.admin_site",
    "qwenproxy.api",
    "qwenproxy.asgi",
    "qwenproxy.asgi_handler",
    "qwenproxy.asgi_limits",
    "qwenproxy.asgi_uploads",
    "qwenproxy.dashboard",
    "qwenproxy.doctor",
    "qwenproxy.health",
    "qwenproxy.management",
    "qwenproxy.settings",
    "qwenproxy.urls",
)
# Every module may import these.
SHARED = ("qwenproxy.wire", "qwenproxy.errors", "qwenproxy.display")
# Package -> which of our others it may import; an entry covers what lies below it.
MAY_IMPORT = {
    "qwenproxy.wire": (),
    "qwenproxy.errors": ("qwenproxy.wire",),
    "qwenproxy.metrics": ("qwenproxy.wire",),
    "qwenproxy.display": (),
    "qwenproxy.admin_pages": (),
    "qwenproxy.templatetags": ("qwenproxy.display",),
    "qwenproxy.checks": (),
    "qwenproxy.logs": SHARED,
    "qwenproxy.database": SHARED,
    "qwenproxy.reports": (*SHARED, "qwenproxy.database"),
    "qwenproxy.transaction": SHARED,
    "qwenproxy.upstream": (*SHARED, "qwenproxy.metrics"),
    "qwenproxy.access": (*SHARED, "qwenproxy.database", "qwenproxy.transaction"),
    "qwenproxy.schema": (*SHARED, "qwenproxy.database", "qwenproxy.transaction"),
    "sessions_app": (
        *SHARED,
        "qwenproxy.database",
        "qwenproxy.transaction",
        "qwenproxy.access.models",
        "qwenproxy.access.staff",
    ),
    "requests_app": (
        *SHARED,
        "qwenproxy.database",
        "qwenproxy.reports",
        "qwenproxy.transaction",
        "qwenproxy.access.models",
        "qwenproxy.access.staff",
        "sessions_app",
    ),
}
# Name -> the modules that are its home.
HOMES = {
    "httpx": ("qwenproxy.upstream",),
    "aiohttp": ("qwenproxy.upstream",),
    "concurrent": ("qwenproxy.database", "requests_app.recorder"),
    "sync_to_async": ("qwenproxy.database", "requests_app.recorder"),
    "async_to_sync": ("qwenproxy.database", "requests_app.recorder"),
    "run_in_executor": ("qwenproxy.database", "requests_app.recorder"),
    "Thread": (
        "qwenproxy.database",
        "requests_app.recorder",
        "qwenproxy.schema.responder",
        "qwenproxy.schema.watch",
    ),
    # asgi closes the pool at shutdown, where no loop may wait for it.
    # A long answer is checked against its schema beside the loop.
    "to_thread": (
        "qwenproxy.database",
        "requests_app.recorder",
        "qwenproxy.asgi",
        "qwenproxy.upstream.json_answers",
    ),
    # asgi names the settings module, as every Django project's does.
    "environ": ("qwenproxy.settings", "qwenproxy.asgi"),
    "getenv": (),
}
# Ids and times are arguments of codecs.
NOT_IN_WIRE = {"asyncio", "datetime", "os", "random", "secrets", "socket", "threading", "time"}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    source: str
    tree: ast.Module

    def within(self, *packages: str) -> bool:
        return any(_covers(package, self.name) for package in packages)

    def imports(self, *, typing: bool = False) -> Iterator[tuple[str, ast.stmt]]:
        """Every imported name in full; with `typing` also what only the type checker sees."""
        for node in _nodes(self.tree, typing=typing):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def _covers(package: str, name: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _nodes(tree: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if typing or not is_typing:
            yield node
            yield from _nodes(node, typing=typing)


def _modules() -> Iterator[Module]:
    for top in OWN:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            source = path.read_text()
            if "migrations" not in parts and source.strip():
                name = ".".join(part for part in parts if part != "__init__")
                yield Module(name, path, source, ast.parse(source))


MODULES = list(_modules())


def each(*packages: str, but: Sequence[str] = ()) -> pytest.MarkDecorator:
    chosen = [m for m in MODULES if m.within(*(packages or OWN)) and not m.within(*but)]
    return pytest.mark.parametrize("module", chosen, ids=lambda module: module.name)


@each(*MAY_IMPORT)
def test_a_package_imports_only_what_its_rule_names(module):
    package = next(package for package in MAY_IMPORT if module.within(package))
    allowed = (package, *MAY_IMPORT[package])
    wrong = {
        name
        for name, _ in module.imports(typing=True)
        if name.split(".")[0] in OWN and not any(_covers(entry, name) for entry in allowed)
    }
    assert wrong <= {"qwenproxy.__version__"}


@each(but=ROOTS)
def test_only_roots_import_roots_and_the_request_path(module):
    hidden = ROOTS if module.within("qwenproxy.proxy") else (*ROOTS, "qwenproxy.proxy")
    assert not [name for name, _ in module.imports() if any(_covers(p, name) for p in hidden)]


@each("qwenproxy.wire")
def test_codecs_import_the_standard_library_and_orjson_without_clock_or_chance(module):
    tops = {name.split(".")[0] for name, _ in module.imports(typing=True)} - {"qwenproxy"}
    assert tops <= ({*sys.stdlib_module_names, "orjson"} - NOT_IN_WIRE)


@each("qwenproxy.upstream")
def test_upstream_clients_know_django_by_its_settings_in_one_module(module):
    django = {name for name, _ in module.imports(typing=True) if name.split(".")[0] == "django"}
    assert django <= (
        {"django.conf.settings"} if module.within("qwenproxy.upstream.http") else set()
    )


@each()
def test_each_of_these_has_one_home(module):
    used = {part for name, _ in module.imports() for part in name.split(".")}
    used |= {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in HOMES if name in used and not module.within(*HOMES[name])]


@each()
def test_nothing_prints(module):
    names = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    assert "print" not in names


@each()
def test_an_import_inside_a_function_says_why(module):
    lines = module.source.splitlines()
    for function in ast.walk(module.tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                above = lines[node.lineno - 2].strip()
                assert above.startswith("#"), f"{module.path.name}:{node.lineno}"


@each()
def test_a_module_says_what_it_is_and_stays_small(module):
    assert ast.get_docstring(module.tree)
    assert len(module.source.splitlines()) <= MAX_LINES

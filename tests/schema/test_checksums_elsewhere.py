"""A migration's checksum is the same on every Python: an upgrade of Python is no edited migration."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.db.migrations.loader import MigrationLoader

from qwenproxy.schema import files

# The standard library alone: Django and the gateway are not installed there.
HASH = """\
from __future__ import annotations
import ast, hashlib, json, sys
from typing import Iterator
{tokens}
found = {{}}
for path in json.load(sys.stdin):
    digest = hashlib.sha256()
    for part in _tokens(ast.parse(open(path, "rb").read())):
        digest.update(part.encode("utf-8", "surrogatepass"))
    found[path] = "ast1:" + digest.hexdigest()
json.dump(found, sys.stdout)
"""
# What later versions of Python parse in another way, or have more fields for.
ODD = """\
from __future__ import annotations
class Migration(Base, metaclass=Meta):
    a: int = 0x10; b = 1_000.5e3; c = 2j; d = b"\\xff\\0"; e = "\\ud800 Grüße 你好"; f = ...
    g = f"{a!r:>{b}} {{}} {'x' 'y'} {c=}"
    @decorator(1)
    async def up(self, x, /, y=None, *z, w: "int" = 2, **v) -> None:
        async with one as o, two: yield await x[1:2, ...]
        try: lambda: (z := -1)
        except (A, B) as error: raise C from error
        finally: del a; global h; assert not a is b <= c, ""
        for i, *j in [k async for k in l if m]: continue
        else: pass
"""


def pythons() -> list[str]:
    """Other versions that run here, of PATH and of pyenv."""
    found = []
    for minor in (9, 10, 12, 13, 14):
        name = f"python3.{minor}"
        versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        places = [*versions.glob(f"3.{minor}.*/bin/{name}"), shutil.which(name)]
        for place in filter(None, places):
            tried = subprocess.run([place, "-c", ""], capture_output=True, check=False)
            if tried.returncode == 0:
                found.append(str(place))
                break
    return found


def test_it_is_the_same(tmp_path):
    others = pythons()
    if not others:
        pytest.skip("NO OTHER PYTHON IS INSTALLED: checksums are compared with themselves alone")
    here = {}
    for migration in MigrationLoader(None).disk_migrations.values():
        here[str(files.source_of(migration))] = files.checksum(migration)
    assert len(here) > 20
    odd = tmp_path / "odd.py"
    odd.write_text(ODD, encoding="utf-8", errors="surrogatepass")
    source = Path(files.__file__).read_text()
    [tokens] = [
        ast.get_source_segment(source, node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "_tokens"
    ]
    paths = json.dumps([*here, str(odd)])
    found = {}
    for python in [sys.executable, *others]:
        ended = subprocess.run(
            [python, "-c", HASH.format(tokens=tokens)],
            input=paths,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        found[python] = json.loads(ended.stdout)
    of_odd = found[sys.executable][str(odd)]
    for python in others:
        assert found[python] == {**here, str(odd): of_odd}, python

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "qwenproxy" / "static" / "qwenproxy" / "vendor"


def test_files_of_others_are_as_they_were_published_with_their_licence():
    packages = tomllib.loads((DIRECTORY / "vendor.toml").read_text())
    named = {"vendor.toml"}
    for package in packages.values():
        assert (DIRECTORY / package["license_file"]).stat().st_size > 100
        named.add(package["license_file"])
        for name, digest in package["sha256"].items():
            assert hashlib.sha256((DIRECTORY / name).read_bytes()).hexdigest() == digest
            named.add(name)
    assert {path.name for path in DIRECTORY.iterdir()} == named

"""The locked requirements: whole, hashed, from nowhere in particular; and the document made of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements", "requirements-dev")


def pins(name: str) -> dict[str, str]:
    """Normalised names and versions; extras are left out."""
    text = (ROOT / name).read_text("utf-8")
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\\n]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", each.lower()): version for each, version in found}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_is_asked_for_directly(name):
    direct = pins(f"{name}.in")
    assert len(direct) > 10
    assert direct.items() <= pins(f"{name}.txt").items()


def test_tests_run_with_what_runs():
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_has_its_hashes_and_no_address(name):
    text = (ROOT / f"{name}.txt").read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text.partition("\n")[2].strip())
    assert len(blocks) == len(pins(f"{name}.txt"))
    for block in blocks:
        first, *hashes = block.replace("\\", "").split("\n")
        assert "==" in first
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64} ?", line) for line in hashes), (
            first
        )


@pytest.mark.slow
def test_the_bill_of_materials_is_valid_and_has_the_lock_s_versions_and_hashes(tmp_path):
    # It checks what it writes against CycloneDX's own schema, and fails where that does not hold.
    made = tmp_path / "sbom.json"
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "requirements", str(ROOT / "requirements.txt"),
         "--validate", "--output-reproducible", "--of", "JSON", "-o", str(made)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    document = json.loads(made.read_text("utf-8"))
    assert document["bomFormat"] == "CycloneDX"
    listed = {
        re.sub(r"[-_.]+", "-", c["name"].lower()): c["version"] for c in document["components"]
    }
    assert listed == pins("requirements.txt")
    text = json.dumps(document)
    hashes = re.findall(r"sha256:([0-9a-f]{64})", (ROOT / "requirements.txt").read_text("utf-8"))
    assert all(each in text for each in hashes)

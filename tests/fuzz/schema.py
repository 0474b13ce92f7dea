"""Schemathesis over the gateway's own OpenAPI document, run as a program beside us.

It is installed apart (`tests/clients/install`): it brings a web framework, a GraphQL parser and a pytest
plugin that the tests have no use for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fuzz.rig import Rig

PROGRAM = Path(__file__).resolve().parents[2] / ".clients" / "schemathesis" / "bin" / "schemathesis"
# 502 to 504 tell of an upstream: cases make accounts of hosts where nobody listens.
_CONFIGURATION = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 502, 503, 504]
"""
# Not the others: what a document allows is wider than what a gateway may refuse (an unknown model).
_CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def by_schema(rig: Rig, examples: int, seed: int) -> int:
    """Ask every operation with an admin's key, a chat key and none; 0 where nothing was found."""
    if not PROGRAM.exists():
        sys.stderr.write("NO SCHEMATHESIS: tests/clients/install\n")
        return 0
    found = 0
    for key in (rig.known.key, rig.known.chat_key, ""):
        found |= _run(rig, key, examples, seed)
    return found


def _run(rig: Rig, key: str, examples: int, seed: int) -> int:
    directory = rig.gateway.data.parent
    configuration = directory / "schemathesis.toml"
    configuration.write_text(_CONFIGURATION)
    command = [str(PROGRAM), "--no-color", "--config-file", str(configuration), "run"]
    command += [f"{rig.gateway.url}/v1/openapi.json"]
    command += ["--checks", _CHECKS, "--seed", str(seed), "--max-examples", str(examples)]
    command += ["--request-timeout", "60", "--phases", "examples,coverage,fuzzing", "--mode", "all"]
    # They would take the rig's own key away, and ask whatever host an account names.
    command += ["--exclude-path-regex", "/keys/.+|/accounts/.+/test"]
    if key:
        command += ["-H", f"Authorization: Bearer {key}"]
    return subprocess.run(command, cwd=directory, stdout=sys.stderr, check=False).returncode

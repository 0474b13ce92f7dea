"""`check --deploy` with the settings that the documentation tells for a public address."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_public_https_address_deploys_without_a_warning(tmp_path):
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QWEN", "DASHSCOPE_", "OPENAI_", "DJANGO_", "DATABASE_"))
    }
    environ |= {
        "QWENPROXY_DATA_DIR": str(tmp_path / "data"),
        "QWENPROXY_HOST": "0.0.0.0",
        "QWENPROXY_PUBLIC_URL": "https://llm.example.org",
        "QWENPROXY_ADMIN_BIND": "127.0.0.1:8101",
    }
    checked = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr

"""Claude Code itself reads a file through the gateway; where `claude` is installed, else skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from requests_app.models import Request
from sessions_app.models import Session
from tests.doubles.server import Reply
from tests.proxy.conftest import open_gateway, serve_upstream, upstream  # noqa: F401  # fixtures

CLAUDE = shutil.which("claude")
WORD = "heron-0123456789ab"

pytestmark = pytest.mark.skipif(CLAUDE is None, reason="Claude Code is not installed")


def _environment(home: str, url: str, api_key: str, model: str) -> dict[str, str]:
    """Nothing of the developer's own, and no way to anywhere but this machine."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": api_key,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }


def _call_reply(kind: str, path: str) -> Reply:
    arguments = {"file_path": path}
    if kind == "qwen_web":
        call = json.dumps({"name": "Read", "arguments": arguments})
        return Reply(text=f"Let me look.\n<tool_call>\n{call}\n</tool_call>")
    call = {"name": "Read", "arguments": json.dumps(arguments)}
    return Reply(tool_calls=[{"id": "call_1", "type": "function", "function": call}])


@pytest.mark.timeout(180)
def test_claude_code_reads_a_file(open_gateway, upstream, tmp_path):  # noqa: F811
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    notes = work / "notes.txt"
    notes.write_text(f"The word is {WORD}.\n")
    upstream.enqueue(_call_reply(upstream.kind, str(notes)), Reply(text="I have read it."))
    gateway = open_gateway()
    # All its tools make a prompt longer than the web upstream takes.
    command = [CLAUDE, "-p", "What is in notes.txt?", "--output-format", "json"]
    command += ["--tools", "Read,Edit,Write,Bash"]
    run = subprocess.run(
        command,
        cwd=work,
        env=_environment(str(home), gateway.url, gateway.api_key, upstream.model),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["result"] == "I have read it."
    assert len(upstream.turns) == 2
    assert WORD in json.dumps(upstream.turns[1].body)
    assert set(Request.objects.values_list("dialect", flat=True)) == {"anthropic"}
    assert Session.objects.count() == 1
    if upstream.kind == "qwen_web":
        assert list(Request.objects.order_by("id").values_list("upstream", flat=True)) == [
            "new",
            "continued",
        ]

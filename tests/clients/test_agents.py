"""Coding agents read a file through the gateway, on both kinds of upstream, as `docs/clients.md` sets them up."""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import TASK
from tests.clients.running import NODE, needs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


@needs(NODE / "claude")
def test_claude_code_reads_a_file(reading):
    output = reading.home.run(
        *(NODE / "claude", "-p", TASK, "--output-format", "json"),
        ANTHROPIC_BASE_URL=reading.url,
        ANTHROPIC_AUTH_TOKEN=reading.api_key,
        ANTHROPIC_MODEL=reading.model,
        ANTHROPIC_DEFAULT_HAIKU_MODEL=reading.model,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
        DISABLE_ERROR_REPORTING="1",
        DISABLE_TELEMETRY="1",
    )
    reading.check(json.loads(output)["result"], "anthropic")


@needs(NODE / "qwen")
def test_qwen_code_reads_a_file(reading):
    settings = reading.home.path / ".qwen" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(
        json.dumps(
            {
                "security": {"auth": {"selectedType": "openai"}},
                "privacy": {"usageStatisticsEnabled": False},
                "general": {"disableAutoUpdate": True, "enableAutoUpdate": False},
            }
        )
    )
    output = reading.home.run(
        *(NODE / "qwen", TASK),
        OPENAI_BASE_URL=f"{reading.url}/v1",
        OPENAI_API_KEY=reading.api_key,
        OPENAI_MODEL=reading.model,
        # It asks the proxy even for what NO_PROXY names.
        HTTP_PROXY="",
        HTTPS_PROXY="",
    )
    reading.check(output)


@needs(NODE / "opencode")
def test_opencode_reads_a_file(reading):
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Qwen Proxy",
        "options": {"baseURL": f"{reading.url}/v1", "apiKey": "{env:QWENPROXY_KEY}"},
        "models": {reading.model: {}},
    }
    model = f"qwenproxy/{reading.model}"
    config = {
        "provider": {"qwenproxy": provider},
        "model": model,
        "small_model": model,
        "autoupdate": False,
        "share": "disabled",
    }
    (reading.home.work / "opencode.json").write_text(json.dumps(config))
    output = reading.home.run(
        *(NODE / "opencode", "run", TASK),
        QWENPROXY_KEY=reading.api_key,
        OPENCODE_DISABLE_AUTOUPDATE="1",
        OPENCODE_DISABLE_LSP_DOWNLOAD="1",
        OPENCODE_DISABLE_MODELS_FETCH="1",
    )
    reading.check(output)


@needs(NODE / "codex")
def test_codex_reads_a_file(reading):
    config = reading.home.path / ".codex" / "config.toml"
    config.parent.mkdir()
    config.write_text(
        f"""
model = "{reading.model}"
model_provider = "qwenproxy"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.qwenproxy]
name = "Qwen Proxy"
base_url = "{reading.url}/v1"
env_key = "QWENPROXY_KEY"
wire_api = "responses"
"""
    )
    output = reading.home.run(
        *(NODE / "codex", "exec", "--skip-git-repo-check"),
        # Its own sandbox needs what a container does not give.
        *("--dangerously-bypass-approvals-and-sandbox", TASK),
        QWENPROXY_KEY=reading.api_key,
    )
    reading.check(output, "responses")

"""The page that shows a secret, once: with what its owner needs to use it right away."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from django.conf import settings
from django.http import HttpRequest

from qwenproxy.access.models import ApiKey

_PATTERN = re.compile(r"[*?\[]")


def secret_context(request: HttpRequest, api_key: ApiKey, secret: str) -> dict[str, Any]:
    base_url = (settings.PUBLIC_URL or request.build_absolute_uri("/")).rstrip("/") + "/v1"
    may_chat = bool(api_key.scope_set & {"chat", "admin"})
    return {
        "title": f"The secret of {api_key.name}",
        "api_key": api_key,
        "secret": secret,
        "base_url": base_url,
        "snippets": list(_snippets(base_url, secret, _model(api_key)).items())
        if may_chat
        else [("curl", _curl(f"{base_url}/sessions", secret))],
    }


def _snippets(base_url: str, secret: str, model: str) -> dict[str, str]:
    """Lines that answer as they stand: without a name the gateway's default is asked, or the first listed."""
    question = {"messages": [{"role": "user", "content": "Hello"}]}
    body = json.dumps({"model": model, **question} if model else question, ensure_ascii=False)
    named = repr(model) if model else "client.models.list().data[0].id"
    return {
        "curl": f"{_curl(f'{base_url}/chat/completions', secret)} \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}",
        "Environment": f"export OPENAI_BASE_URL={base_url}\nexport OPENAI_API_KEY={secret}",
        "Python": f"from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base_url}", api_key="{secret}")\n'
        f"answer = client.chat.completions.create(\n    model={named},\n"
        '    messages=[{"role": "user", "content": "Hello"}],\n)',
    }


def _curl(url: str, secret: str) -> str:
    return f"curl {shlex.quote(url)} \\\n  -H 'Authorization: Bearer {secret}'"


def _model(api_key: ApiKey) -> str:
    """A model that the key may use, as far as its row and the settings tell; else empty."""
    named = [text for text in api_key.allowed_models.splitlines() if not _PATTERN.search(text)]
    return named[0] if named else settings.DEFAULT_MODEL

"""From an account as it is stored to a client of its upstream: the one place that knows all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from qwenproxy.access.accounts import StoredAccount
from qwenproxy.upstream.dashscope import DashScope
from qwenproxy.upstream.demo import Demo
from qwenproxy.upstream.openai_compatible import OpenAICompatible
from qwenproxy.upstream.protocol import Account, Credentials, Upstream
from qwenproxy.upstream.qwen_web import QwenWeb

if TYPE_CHECKING:
    import httpx


def make_upstream(
    client: httpx.AsyncClient, stored: StoredAccount, *, json_by_instruction: Sequence[str] = ()
) -> Upstream:
    """Make the client of an account.

    Args:
        json_by_instruction: shell-style patterns of the accounts whose server has no `response_format`.
    """
    account = _account(stored)
    by_instruction = any(fnmatchcase(account.name, pattern) for pattern in json_by_instruction)
    match account.kind:
        case "qwen_web":
            return QwenWeb(client, account)
        case "dashscope":
            return DashScope(client, account, json_by_instruction=by_instruction)
        case "demo":
            return Demo(account)
        case "openai_compatible":
            return OpenAICompatible(client, account, json_by_instruction=by_instruction)


def _account(stored: StoredAccount) -> Account:
    secrets = stored.secrets
    headers = secrets.get("headers")
    return Account(
        id=stored.id,
        name=stored.name,
        kind=stored.kind,  # type: ignore[arg-type]  # checked by the model's choices
        base_url=stored.base_url,
        credentials=Credentials(
            api_key=str(secrets.get("api_key", "")),
            cookies=str(secrets.get("cookies", "")),
            token=str(secrets.get("token", "")),
            user_agent=str(secrets.get("user_agent", "")),
            headers=headers if isinstance(headers, dict) else {},
        ),
    )

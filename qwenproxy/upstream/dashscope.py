"""Alibaba Model Studio (DashScope) in its OpenAI-compatible mode: a thin profile of that client.

Keys belong to one region, so the base URL may be given as a region's name or a bare host. Qwen's own
fields (`top_k`, ...) are part of the client's parameters and pass as they are; thinking is asked for as
`enable_thinking` and `thinking_budget`. There are no legacy completions: a prompt is sent as a chat.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from qwenproxy.errors import InvalidRequest
from qwenproxy.upstream.openai_compatible import OpenAICompatible
from qwenproxy.upstream.parameters import refuse
from qwenproxy.upstream.protocol import UpstreamCall
from qwenproxy.upstream.reasoning import for_dashscope
from qwenproxy.wire.json import JSONObject

REGION_HOSTS = {
    "cn": "dashscope.aliyuncs.com",
    "intl": "dashscope-intl.aliyuncs.com",
    "us": "dashscope-us.aliyuncs.com",
    "hk": "cn-hongkong.dashscope.aliyuncs.com",
}
DEFAULT_REGION = "intl"

_COMPLETIONS_ONLY = ("best_of", "echo", "logprobs", "suffix")


class DashScope(OpenAICompatible):
    has_completions = False
    leaks_calls = False

    @staticmethod
    def resolve_base_url(base_url: str) -> str:
        base_url = base_url.strip().rstrip("/").removesuffix("/chat/completions")
        region = base_url.lower() or DEFAULT_REGION
        if region in REGION_HOSTS:
            base_url = f"https://{REGION_HOSTS[region]}"
        parts = urlsplit(base_url)
        if parts.path:
            return base_url
        # Plans have hosts of their own, with the API at another path.
        is_coding_plan = (parts.hostname or "").startswith("coding")
        return f"{base_url}/v1" if is_coding_plan else f"{base_url}/compatible-mode/v1"

    async def embed(self, body: JSONObject) -> bytes:
        # It gives lists alone, and refuses to be asked for anything else.
        if body.get("encoding_format") is not None:
            body = {**body, "encoding_format": "float"}
        return await super().embed(body)

    def reasoned(self, parameters: JSONObject, call: UpstreamCall) -> JSONObject:
        return for_dashscope(parameters, call.reasoning)

    def parameters(self, call: UpstreamCall) -> JSONObject:
        refuse("dashscope", call.parameters)
        if call.prompt is None:
            return super().parameters(call)
        if call.parameters.get("logprobs"):
            # A chat's have another form.
            raise InvalidRequest(
                "logprobs of a legacy completion are not supported by this upstream (dashscope);"
                " ask for a chat completion",
                param="logprobs",
                code="unsupported_parameter",
            )
        parameters = super().parameters(call)
        return {k: v for k, v in parameters.items() if k not in _COMPLETIONS_ONLY}

"""Finds OpenAI-compatible servers with Qwen models at the usual ports of this machine.

Asked once at start, on loopback only; what was found is offered in the admin, never used unasked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from qwenproxy.errors import GatewayError

_USUAL_PORTS = (
    ("Ollama", 11434),
    ("LM Studio", 1234),
    ("vLLM", 8000),
    ("SGLang", 30000),
    ("llama.cpp", 8080),
)
_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    name: str
    base_url: str
    # Ids of the Qwen models it lists.
    models: Sequence[str]


_found: list[Found] = []


def found() -> Sequence[Found]:
    """What the last search found."""
    return tuple(_found)


async def discover(
    *, own_port: int, ports: Sequence[tuple[str, int]] = _USUAL_PORTS
) -> Sequence[Found]:
    """Ask every usual port but our own which models it has; takes half a second at most."""
    # Not at the top: who only asks what was found needs no HTTP client.
    from qwenproxy.upstream.http import open_client

    # As above.
    from qwenproxy.upstream.openai_compatible import OpenAICompatible

    # As above.
    from qwenproxy.upstream.protocol import Account

    async with open_client() as client:

        async def ask(name: str, port: int) -> Found | None:
            base_url = f"http://127.0.0.1:{port}/v1"
            upstream = OpenAICompatible(client, Account(0, name, "openai_compatible", base_url))
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    models = await upstream.list_models()
            except (GatewayError, TimeoutError):
                return None
            ids = [info.id for info in models if "qwen" in info.id.lower()]
            return Found(name, base_url, ids) if ids else None

        answers = await asyncio.gather(
            *(ask(name, port) for name, port in ports if port != own_port)
        )
    _found[:] = [answer for answer in answers if answer is not None]
    return found()

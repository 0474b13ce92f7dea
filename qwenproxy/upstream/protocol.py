"""What the gateway asks of an upstream: the one protocol class of the tree and its arguments."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from qwenproxy.errors import GatewayError, UpstreamError
from qwenproxy.wire.events import Event, Started
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.reasoning import NOTHING, Reasoning

Kind = Literal["openai_compatible", "dashscope", "qwen_web", "demo"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Decrypted secrets of an account; `repr` shows none of them."""

    api_key: str = field(default="", repr=False)
    # The web upstream's whole cookie header, device token (`bx-umidtoken`) and browser headers.
    cookies: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    user_agent: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def texts(self) -> set[str]:
        """Every text that must not be shown: keys, the cookie header and its values, headers' values."""
        cookies = {part.partition("=")[2].strip() for part in self.cookies.split(";")}
        secrets = {self.api_key, self.cookies, self.token, *cookies, *self.headers.values()}
        return {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}


# Shorter ones are words such as `web` or `no-cache`, which say nothing.
_SHORTEST_SECRET = 8


def hide_secrets(error: GatewayError, credentials: Credentials) -> None:
    """Put `***` for the account's secrets where an upstream quoted them in its error."""
    for secret in sorted(credentials.texts(), key=len, reverse=True):
        error.message = error.message.replace(secret, "***")
        if isinstance(error, UpstreamError):
            error.body = error.body.replace(secret, "***")


@dataclass(frozen=True, slots=True)
class Account:
    id: int
    name: str
    kind: Kind
    base_url: str
    credentials: Credentials = field(default_factory=Credentials, repr=False)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as an upstream lists it; `details` holds what else it said, for `GET /v1/models`."""

    id: str
    # Seconds since 1970; 0 where the upstream does not say.
    created: int = 0
    owned_by: str = "qwen"
    # Tokens; null where the upstream does not say.
    context_length: int | None = None
    details: JSONObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """Where a turn goes on inside a chat that the upstream keeps."""

    chat_id: str
    # The node the turn hangs below; null opens a new line at the chat's root.
    parent_id: str | None
    # Messages before this index are known to the chat; from it on they are sent.
    first_message: int


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """One turn, as the client sent it.

    `messages` is the whole history, system messages included, in OpenAI's chat form. `parameters` is
    the rest of the client's body without `model`, `messages`, `tools`, `stream`, `stream_options`.
    `prompt` is set instead of meaning by `messages` where a legacy completion goes to an upstream that
    has `/completions` (`messages` then holds it as one user message).
    """

    model: str
    messages: Sequence[JSONObject]
    parameters: JSONObject = field(default_factory=dict)
    tools: JSONValue = None
    # What `parameters` and the model's name ask for.
    reasoning: Reasoning = NOTHING
    prompt: str | None = None
    # What this turn alone is told besides, by the gateway.
    note: str = ""
    # Web upstream only: null opens a new chat with the whole history as one text.
    chat: ChatTarget | None = None


@runtime_checkable
class Embedder(Protocol):
    """An upstream that has embeddings."""

    async def embed(self, body: JSONObject) -> bytes:
        """Ask for the embeddings of a whole body and return the answer's.

        Raises:
            UpstreamError: its family.
        """
        ...


class Upstream(Protocol):
    """A client of one account. Its methods run on the event loop and never block it."""

    @property
    def account(self) -> Account: ...

    # It keeps conversations on its side (chat id and parent id).
    keeps_chats: bool
    # Its default when a client leaves.
    on_client_left: Literal["finish", "cancel"]

    def stream(self, call: UpstreamCall) -> AsyncGenerator[Sequence[Event], None]:
        """Ask for an answer and yield its events, all of one network read together.

        The first batch begins with `Sent`, then `Started` as soon as the upstream accepts the turn; the
        last event is `Finished`, after any `UsageReport`. Closing the iterator closes the connection.

        Raises:
            UpstreamError: its family, before or after events were yielded; events that were read
                before the error have been yielded by then.
        """
        ...

    async def stop(self, started: Started) -> None:
        """Stop a running answer that its turn abandons; nothing to do where closing it does that."""
        ...

    async def list_models(self) -> list[ModelInfo]:
        """List what the upstream serves now.

        Raises:
            UpstreamError: its family; `NotFound` where the upstream has no model list.
        """
        ...

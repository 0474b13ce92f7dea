"""A client protocol as a turn uses it: how its ids begin, how its answers and errors are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwenproxy.errors import GatewayError, to_openai_error
from qwenproxy.wire.events import Event, UsageReport
from qwenproxy.wire.json import JSONObject


class Encoder(Protocol):
    """The streamed form of one client protocol."""

    def encode(self, events: Sequence[Event]) -> bytes: ...
    def finish(self, reason: str, usage: UsageReport | None) -> bytes: ...
    def error(self, body: JSONObject) -> bytes: ...
    def keep_alive(self) -> bytes: ...


class Whole(Protocol):
    """The whole form of one client protocol."""

    def __call__(
        self,
        *,
        response_id: str,
        model: str,
        created: int,
        message: JSONObject,
        reasoning: str,
        finish_reason: str,
        usage: UsageReport | None,
    ) -> JSONObject: ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """A client protocol: what its ids begin with and how answers and errors are written."""

    id_prefix: str
    make_encoder: Callable[..., Encoder]
    whole: Whole
    error_body: Callable[[GatewayError], JSONObject] = to_openai_error
    # Puts log probabilities into a whole answer; null where the protocol has no place for them.
    add_logprobs: Callable[[JSONObject, JSONObject], None] | None = None
    # Names in a whole answer the stop text that ended it.
    mark_stop: Callable[[JSONObject, str], None] | None = None

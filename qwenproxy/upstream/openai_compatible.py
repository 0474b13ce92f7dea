"""A client of any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, LM Studio, Model Studio.

The whole history goes up with every call, as the client sent it; the answer is always asked for as a
stream with usage. What a server says instead of an answer is mapped to errors here, whether it comes
as an HTTP status, as JSON with status 200 or inside the stream.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Literal
from urllib.parse import urlsplit

import httpx

from qwenproxy.errors import (
    ContextLengthExceeded,
    NotFound,
    UpstreamAuthExpired,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwenproxy.upstream import http
from qwenproxy.upstream.json_answers import checked
from qwenproxy.upstream.protocol import Account, ModelInfo, UpstreamCall
from qwenproxy.upstream.reasoning import for_server
from qwenproxy.upstream.text_tools import leaked_calls
from qwenproxy.wire import json, openai_chat
from qwenproxy.wire.events import Event, Sent, Started
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.openai_chat import ChatStreamDecoder, StreamError
from qwenproxy.wire.sse import SSEDecoder

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|range of input length|prompt is too long|too many (input )?tokens",
    re.IGNORECASE,
)
_TOO_LONG_CODES = {
    "context_length_exceeded",
    "exceed_context_size_error",
    "string_above_max_length",
}
_RATE_CODES = {
    "429",
    "insufficient_quota",
    "limit_burst_rate",
    "limit_requests",
    "limit_tokens",
    "quota_exhausted",
    "rate_limit_error",
    "rate_limit_exceeded",
    "requests",
    "tokens",
}
# An unpaid account (DashScope: `Arrearage`, with status 400) is its owner's business as well.
_ACCOUNT_CODES = {
    "401",
    "403",
    "accessdenied",
    "arrearage",
    "authentication_error",
    "invalid_api_key",
}
_REFUSED_CODES = {
    "badrequesterror",
    "data_inspection_failed",
    "datainspectionfailed",
    "invalid_parameter_error",
    "invalid_request_error",
    "invalidparameter",
}
# Where servers put a model's id and window in their list.
# A code goes to clients and is recorded where no content is: what else stands there is none.
_CODE = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)
_ID_FIELDS = ("id", "name", "model")
_CONTEXT_FIELDS = ("max_model_len", "context_length", "max_context_length", "context_window")


class OpenAICompatible:
    """One account's client; see `Upstream`."""

    keeps_chats = False
    on_client_left: Literal["finish", "cancel"] = "cancel"
    # It has `/completions`; elsewhere a prompt is sent as a chat with one user message.
    has_completions = True
    # It may run without a parser for calls, and leave them in the text.
    leaks_calls = True

    def __init__(
        self, client: httpx.AsyncClient, account: Account, *, json_by_instruction: bool = False
    ) -> None:
        self._client = client
        self._account = account
        # The server has no `response_format`.
        self._json_by_instruction = json_by_instruction
        self._base_url = self.resolve_base_url(account.base_url)
        self._headers: httpx.Headers | None = None
        # Model -> whom the list names as its owner: most servers name themselves.
        self._owners: dict[str, str] = {}
        # Models, and whether they were to think, whose template was seen to open the thinking.
        self._opens_thinking: set[tuple[str, bool | None]] = set()

    @property
    def account(self) -> Account:
        return self._account

    @staticmethod
    def resolve_base_url(base_url: str) -> str:
        """Complete what the user typed: without a path the API is below `/v1`."""
        base_url = base_url.strip().rstrip("/").removesuffix("/chat/completions")
        return base_url if urlsplit(base_url).path else f"{base_url}/v1"

    def stream(self, call: UpstreamCall) -> AsyncGenerator[Sequence[Event], None]:
        if self._json_by_instruction and call.parameters.get("response_format"):
            return checked(call, self._stream)
        return self._stream(call)

    async def _stream(self, call: UpstreamCall) -> AsyncGenerator[Sequence[Event], None]:
        path, sent, content = self._encode(call)
        request = self._new_request("POST", path, content=content)
        yield (sent,)
        name, tail = self._account.name, http.Tail()
        events: list[Event]
        async with (
            http.open_response(self._client, request, account_name=name) as response,
            aclosing(http.body_chunks(response)) as chunks,
        ):
            if not response.is_success:
                body = await http.collect(b"", chunks, max_bytes=http.MAX_ERROR_BODY_BYTES)
                raise status_error(response, body, account_name=name)
            first, kind = await http.sniff(chunks)
            if kind == "html":
                raise self._web_page_error(response, first)
            if kind == "json":
                events = await self._decode_whole(first, chunks)
                leaks = leaked_calls(call) if self.leaks_calls and call.tools else None
                yield events if leaks is None else leaks.read(events, is_last=True)
                return
            # One loop and no generators inside it: this runs for every chunk.
            lines, decoder = SSEDecoder(), self._new_decoder(call)
            leaks = leaked_calls(call) if self.leaks_calls and call.tools else None
            read: bytes | None = first
            while not decoder.is_done:
                events = []
                for payload in lines.finish() if read is None else lines.feed(read):
                    events += decoder.feed(payload)
                if read is None:
                    events += decoder.finish()
                if leaks is not None:
                    events = leaks.read(events, is_last=decoder.is_done)
                if events:
                    yield events
                if not decoder.is_done:
                    read = await (tail.read(chunks) if decoder.has_finish else anext(chunks, None))
            if decoder.error is not None:
                raise stream_error(decoder.error, account_name=name)
            self._learn(call, decoder)
            if read is not None:
                await http.drain(chunks)

    async def stop(self, started: Started) -> None:
        """Nothing to do: these servers stop when the connection closes."""

    async def list_models(self) -> list[ModelInfo]:
        name = self._account.name
        request = self._new_request("GET", "/models", max_idle_s=http.LIST_TIMEOUT_S)
        async with http.open_response(self._client, request, account_name=name) as response:
            body = await http.read_body(response, max_bytes=http.MAX_JSON_BODY_BYTES)
        if response.status_code == 404:
            raise NotFound(f"Upstream account {name} has no model list.")
        if not response.is_success:
            raise status_error(response, body, account_name=name)
        try:
            models = read_models(json.refuse_deep(json.loads(body), body))
        except ValueError as exc:
            raise UpstreamProtocolError(
                f"Upstream account {name} answered its model list with something else.",
                body=body.decode("utf-8", "replace"),
            ) from exc
        self._owners = {info.id: info.owned_by for info in models}
        return models

    async def embed(self, body: JSONObject) -> bytes:
        name = self._account.name
        request = self._new_request("POST", "/embeddings", content=json.dumps(body))
        async with http.open_response(self._client, request, account_name=name) as response:
            told = await http.read_body(response, max_bytes=http.MAX_JSON_BODY_BYTES)
        if not response.is_success:
            raise status_error(response, told, account_name=name)
        return told

    def _new_request(
        self, method: str, path: str, *, content: bytes = b"", max_idle_s: float | None = None
    ) -> httpx.Request:
        name = self._account.name
        if self._headers is None:
            headers = {"accept": "text/event-stream, application/json"}
            if key := self._account.credentials.api_key.strip():
                headers["authorization"] = f"Bearer {key}"
            headers |= {k.lower(): v for k, v in self._account.credentials.headers.items()}
            headers["content-type"] = "application/json"
            self._headers = http.checked_headers(headers, account_name=name)
        return http.new_request(
            self._client,
            method,
            self._base_url + path,
            headers=self._headers,
            account_name=name,
            content=content,
            max_idle_s=max_idle_s,
        )

    def _encode(self, call: UpstreamCall) -> tuple[str, Sent, bytes]:
        """Build the body in two halves, so that the text is written as JSON once."""
        is_completion = call.prompt is not None and self.has_completions
        text: JSONObject
        if is_completion:
            text = {"prompt": f"{call.prompt}\n\n{call.note}" if call.note else call.prompt}
        else:
            text = {"messages": _with_note(call.messages, call.note)}
            if call.tools is not None:
                text["tools"] = call.tools
        rest: JSONObject = {
            **self.reasoned(self.parameters(call), call),
            "model": call.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        text_json = json.dumps(text)
        sent = Sent({**rest, **dict.fromkeys(text)}, text_json.decode())
        content = json.dumps(rest)[:-1] + b"," + text_json[1:]
        return ("/completions" if is_completion else "/chat/completions"), sent, content

    def parameters(self, call: UpstreamCall) -> JSONObject:
        """The client's parameters in the form in which this kind of server takes them."""
        if not self._json_by_instruction or "response_format" not in call.parameters:
            return call.parameters
        return {k: v for k, v in call.parameters.items() if k != "response_format"}

    def _new_decoder(self, call: UpstreamCall) -> ChatStreamDecoder:
        is_open = (call.model, call.reasoning.is_on) in self._opens_thinking
        return ChatStreamDecoder(new_id=_new_call_id, think_open=is_open)

    def _learn(self, call: UpstreamCall, decoder: ChatStreamDecoder) -> None:
        if decoder.opens_thinking:
            self._opens_thinking.add((call.model, call.reasoning.is_on))
        elif decoder.opens_thinking is False:
            self._opens_thinking.discard((call.model, call.reasoning.is_on))

    def reasoned(self, parameters: JSONObject, call: UpstreamCall) -> JSONObject:
        """The parameters with the wish for thinking as this server takes it."""
        return for_server(parameters, call.reasoning, self._owners.get(call.model, ""))

    async def _decode_whole(self, first: bytes, chunks: AsyncIterator[bytes]) -> list[Event]:
        """Decode the answer of a server that does not stream."""
        body = await http.collect(first, chunks, max_bytes=http.MAX_JSON_BODY_BYTES)
        events, error = openai_chat.decode_completion(body, new_id=_new_call_id)
        if error is not None:
            raise stream_error(error, account_name=self._account.name)
        return events

    def _web_page_error(self, response: httpx.Response, first: bytes) -> UpstreamError:
        return UpstreamProtocolError(
            f"Upstream account {self._account.name} answered with a web page instead of an answer:"
            " its base URL may be wrong, or a proxy is in between.",
            body=first.decode("utf-8", "replace"),
            upstream_status=response.status_code,
        )


def _with_note(messages: Sequence[JSONObject], note: str) -> list[JSONValue]:
    """The messages with a note at their end, in the last one where that is a user's text.

    Not as a system message: newer Qwen templates refuse one that is not the first.
    """
    if not note:
        return list(messages)
    last = messages[-1]
    if last.get("role") == "user" and isinstance(text := last.get("content"), str):
        return [*messages[:-1], {**last, "content": f"{text}\n\n{note}"}]
    return [*messages, {"role": "user", "content": note}]


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def read_models(listed: JSONValue) -> list[ModelInfo]:
    """Read a model list: `{"data": [...]}`, as some have it `{"models": [...]}` or the bare list.

    Entries are objects, or ids alone; others are left out.

    Raises:
        ValueError: there is no list, or nothing in it can be read: that is not an empty list.
    """
    if isinstance(listed, dict):
        # Null is how Ollama writes an empty list.
        lists = [listed[name] or [] for name in ("data", "models") if name in listed]
        # Some write both, and fill one.
        listed = next((some for some in lists if some), lists[0] if lists else None)
    if not isinstance(listed, list):
        raise ValueError("there is no list")
    models = [info for entry in listed if (info := _read_model(entry)) is not None]
    if listed and not models:
        raise ValueError("no entry has an id")
    return models


def _read_model(entry: JSONValue) -> ModelInfo | None:
    if isinstance(entry, str):
        entry = {"id": entry}
    if not isinstance(entry, dict):
        return None
    ids = {name: entry[name] for name in _ID_FIELDS if name in entry}
    found = next(((name, i) for name, i in ids.items() if isinstance(i, str) and i.strip()), None)
    if found is None:
        return None
    name, model_id = found
    created, owner = entry.get("created"), entry.get("owned_by")
    read = (name, "object", "created", "owned_by")
    return ModelInfo(
        str(model_id),
        created=created if isinstance(created, int) else 0,
        owned_by=owner if isinstance(owner, str) else "qwen",
        context_length=_context_length(entry),
        details={name: value for name, value in entry.items() if name not in read},
    )


def _context_length(entry: JSONObject) -> int | None:
    meta = entry.get("meta")
    # llama.cpp tells it in `meta`.
    found = [entry.get(name) for name in _CONTEXT_FIELDS]
    if isinstance(meta, dict):
        found += [meta.get("n_ctx"), meta.get("n_ctx_train")]
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def status_error(response: httpx.Response, body: bytes, *, account_name: str) -> UpstreamError:
    """Map an HTTP error answer."""
    error = openai_chat.parse_error(response.status_code, body)
    mapped = _map_error(error, response.status_code, account_name)
    mapped.retry_after_s = http.retry_after_s(response.headers)
    mapped.body = body.decode("utf-8", "replace")[:2048]
    return mapped


def stream_error(error: StreamError, *, account_name: str) -> UpstreamError:
    """Map what came instead of an answer, or of its rest, with status 200."""
    if error.raw is None:
        raw = ""
    else:
        raw = error.raw if isinstance(error.raw, str) else json.dumps_text(error.raw)
    if error.code == "upstream_malformed":
        mapped: UpstreamError = UpstreamProtocolError(error.message)
    elif error.code in ("upstream_cut", "upstream_empty"):
        mapped = UpstreamError(error.message)
    else:
        code = error.code or ""
        status = int(code) if re.fullmatch(r"[45][0-9]{2}", code) else None
        mapped = _map_error(error, status, account_name)
    mapped.body = raw[:2048]
    return mapped


def _map_error(error: StreamError, status: int | None, account_name: str) -> UpstreamError:
    """Map by what the server means; the status decides where the codes are unknown."""
    who = f"Upstream account {account_name}"
    names = {name.lower() for name in (error.code, error.type) if name}
    if names & _TOO_LONG_CODES or (
        status in (None, 400, 413, 422) and _TOO_LONG.search(error.message)
    ):
        return ContextLengthExceeded(error.message, param="messages", upstream_status=status)
    if status == 429 or names & _RATE_CODES or any(n.startswith("throttling") for n in names):
        return UpstreamRateLimited(f"{who}: {error.message}", upstream_status=status)
    if status in (401, 402, 403) or names & _ACCOUNT_CODES:
        # Such messages can quote the key.
        return UpstreamAuthExpired(
            f"{who} was refused: its API key is wrong, expired, or may not do this.",
            upstream_status=status,
        )
    if status in (408, 504):
        return UpstreamTimeout(f"{who}: {error.message}", upstream_status=status)
    if status == 404 and "model" not in error.message.lower():
        return UpstreamError(
            f"{who} has no such path: its base URL may be wrong.", upstream_status=status
        )
    if (status is not None and 400 <= status < 500) or (status is None and names & _REFUSED_CODES):
        return UpstreamRefused(
            error.message,
            param=_param(error.raw),
            code=error.code if error.code and _CODE.fullmatch(error.code) else None,
            status=404 if status == 404 else 400,
            upstream_status=status,
        )
    if status is not None and 300 <= status < 400:
        return UpstreamError(
            f"{who} answered with a redirect: its base URL may be wrong.", upstream_status=status
        )
    return UpstreamError(f"{who} failed: {error.message}", upstream_status=status)


def _param(raw: JSONValue) -> str | None:
    inner = raw.get("error") if isinstance(raw, dict) else None
    param = inner.get("param") if isinstance(inner, dict) else None
    return param if isinstance(param, str) else None

"""A client of the chat.qwen.ai web API, with a session that its owner copied from their own browser.

The conversation lives upstream: a turn is one text below a node of a chat. The pasted headers and the
whole cookie header are sent as given; where only cookies and a token were pasted, the rest is what a
browser's request holds. A challenge, a quota or an ended session is reported as what it is, and never
worked around.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Literal
from urllib.parse import quote

import httpx

from qwenproxy.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    UpstreamAuthExpired,
    UpstreamChallenged,
    UpstreamChatBusy,
    UpstreamChatGone,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwenproxy.upstream import http
from qwenproxy.upstream.forced_calls import asks_for_call, with_call
from qwenproxy.upstream.json_answers import checked
from qwenproxy.upstream.parameters import refuse
from qwenproxy.upstream.protocol import Account, ModelInfo, UpstreamCall
from qwenproxy.upstream.qwen_web_files import Uploads
from qwenproxy.upstream.reasoning import for_web
from qwenproxy.upstream.text_tools import TextTools
from qwenproxy.wire import json, qwen_web
from qwenproxy.wire.events import Event, Sent, Started
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.qwen_failures import FailureKind, WebFailure, classify
from qwenproxy.wire.qwen_files import list_files, without_signature
from qwenproxy.wire.qwen_prompt import UnsupportedContent, render_prompt
from qwenproxy.wire.stop_texts import StopReader, read_stop

logger = logging.getLogger(__name__)

DEFAULT_BASE_URL = "https://chat.qwen.ai"
# Longer texts are answered with a challenge instead of an error, which then covers the account.
MAX_PROMPT_CHARS = 50_000
STOP_TIMEOUT_S = 5.0

# What a browser sent with the newest request that was captured.
_DEFAULT_HEADERS = {
    "accept": "application/json",
    "accept-language": "en-US,en;q=0.9",
    "bx-v": "2.5.37",
    "sec-fetch-dest": "empty",
    "sec-fetch-mode": "cors",
    "sec-fetch-site": "same-origin",
    "source": "web",
    "user-agent": (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/141.0.0.0 Safari/537.36"
    ),
    # Without it completions fail with `Bad_Request`, whatever else is right.
    "version": "0.3.12",
}
# Of one request or connection: never taken from the pasted one.
_OWN_HEADERS = (
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "referer",
    "timezone",
    "transfer-encoding",
    "x-accel-buffering",
    "x-request-id",
)
_PASTE_AGAIN = (
    "open the site in the browser, send a message there, then paste that request (Copy as cURL)"
    " into the account"
)
_LISTED_META = (
    "capabilities",
    "chat_type",
    "max_generation_length",
    "max_summary_generation_length",
    "max_thinking_generation_length",
    "modality",
    "short_description",
)


class QwenWeb:
    """One account's client; see `Upstream`."""

    keeps_chats = True
    # Leaving does not stop the answer upstream, and it is part of the chat.
    on_client_left: Literal["finish", "cancel"] = "finish"

    def __init__(self, client: httpx.AsyncClient, account: Account) -> None:
        self._client = client
        self._account = account
        self._base_url = account.base_url.strip().rstrip("/") or DEFAULT_BASE_URL
        self._uploads = Uploads(client, account.name, self._base_url, self.ask)

    @property
    def account(self) -> Account:
        return self._account

    @property
    def base_url(self) -> str:
        return self._base_url

    def stream(self, call: UpstreamCall) -> AsyncGenerator[Sequence[Event], None]:
        refuse("qwen_web", call.parameters)
        ask = partial(with_call, ask=self._stream) if asks_for_call(call) else self._stream
        if call.parameters.get("response_format"):
            return checked(call, ask)
        return ask(call)

    async def _stream(self, call: UpstreamCall) -> AsyncGenerator[Sequence[Event], None]:
        tools, stops = TextTools(call), _stops(call)
        first_message = call.chat.first_message if call.chat else 0
        parts = list_files(call.messages, first_message)
        prompt = _render(call, tools, has_files=bool(parts))
        files = await self._uploads.entries(parts) if parts else []
        chat_id = call.chat.chat_id if call.chat else await self._open_chat(call.model)
        body = _completion_body(call, chat_id, prompt, files)
        request = self._new_request(
            "POST",
            "/api/v2/chat/completions",
            chat_id=chat_id,
            content=json.dumps(body),
            extra={"x-accel-buffering": "no"},
        )
        yield (Sent(_without_text(body), prompt, first_message),)
        started = Started()
        try:
            async with aclosing(self._read_answer(request, chat_id, tools, stops)) as batches:
                async for events in batches:
                    started = next((e for e in events if isinstance(e, Started)), started)
                    yield events
            if stops is not None and stops.is_done:
                await self.stop(started)
        except UpstreamError:
            # The upstream goes on writing what nobody reads, and the chat stays busy.
            await self.stop(started)
            raise

    async def stop(self, started: Started) -> None:
        if started.chat_id is None or started.response_id is None:
            return
        body = {"chat_id": started.chat_id, "response_id": started.response_id}
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.ask(
                    "POST",
                    "/api/v2/chat/completions/stop",
                    chat_id=started.chat_id,
                    content=json.dumps(body),
                )
        except (UpstreamError, TimeoutError) as exc:
            # The chat is rebuilt elsewhere if it stays busy.
            logger.warning("an abandoned answer could not be stopped: %s", exc)

    async def list_models(self) -> list[ModelInfo]:
        body = await self.ask("GET", "/api/models")
        try:
            listed = qwen_web.models(body)
        except ValueError as exc:
            raise UpstreamProtocolError(
                f"Upstream account {self._account.name} answered its model list with something else.",
                body=body.decode("utf-8", "replace"),
            ) from exc
        return [info for model in listed if (info := _read_model(model)) is not None]

    async def _open_chat(self, model: str) -> str:
        body = qwen_web.chat_new_body(model, timestamp_ms=int(time.time() * 1000))
        answer = await self.ask("POST", "/api/v2/chats/new", content=json.dumps(body))
        try:
            parsed = json.loads(answer)
        except json.JSONError:
            parsed = None
        data = parsed.get("data") if isinstance(parsed, dict) else None
        chat_id = data.get("id") if isinstance(data, dict) else None
        # It goes into addresses and headers.
        if not isinstance(chat_id, str) or not (
            chat_id.isascii() and chat_id.isprintable() and chat_id
        ):
            raise UpstreamProtocolError(
                f"Upstream account {self._account.name} opened a chat without an id.",
                body=answer.decode("utf-8", "replace"),
            )
        return chat_id

    async def ask(
        self,
        method: str,
        path: str,
        *,
        base_url: str | None = None,
        chat_id: str | None = None,
        content: bytes = b"",
        extra: dict[str, str] | None = None,
    ) -> bytes:
        """Make a small call and give its body; `base_url` is another host of the same site.

        Raises:
            UpstreamError: its family, also for failures with status 200.
        """
        name = self._account.name
        request = self._new_request(
            method,
            path,
            base_url=base_url,
            chat_id=chat_id,
            content=content,
            is_short=True,
            extra=extra,
        )
        async with http.open_response(self._client, request, account_name=name) as response:
            body = await http.read_body(response, max_bytes=http.MAX_JSON_BODY_BYTES)
        if failure := classify(response.status_code, response.headers, body):
            raise self._mapped(failure, body.decode("utf-8", "replace"))
        return body

    async def _read_answer(
        self, request: httpx.Request, chat_id: str, tools: TextTools, stops: StopReader | None
    ) -> AsyncGenerator[Sequence[Event], None]:
        name = self._account.name
        decoder = qwen_web.StreamDecoder(new_id=tools.new_call_id)
        calls = tools.new_reader()
        async with (
            http.open_response(self._client, request, account_name=name) as response,
            aclosing(http.body_chunks(response)) as chunks,
        ):
            first, kind = await http.sniff(chunks)
            if kind != "stream" or not response.is_success:
                body = await http.collect(first, chunks, max_bytes=http.MAX_ERROR_BODY_BYTES)
                raise self._refusal(response, body)
            async with aclosing(http.payload_batches(first, chunks)) as reads:
                async for payloads, is_last in reads:
                    events: list[Event] = []
                    for payload in payloads:
                        events += decoder.feed(payload)
                    if is_last:
                        events += decoder.finish()
                    events = calls.read(events, is_last=decoder.error is not None)
                    if stops is not None:
                        events = stops.read(events, is_last=decoder.error is not None)
                    if events:
                        yield [_in_chat(event, chat_id) for event in events]
                    if stops is not None and stops.is_done:
                        return
                    if decoder.error is not None:
                        raw = json.dumps_text(decoder.error.raw)
                        raise self._mapped(decoder.error.failure, raw)
                    if calls.intercepted:
                        raise self._interception()
                    if decoder.is_done:
                        break
            if not is_last:
                await http.drain(chunks)

    def _interception(self) -> UpstreamError:
        return UpstreamError(
            f"Upstream account {self._account.name} took a tool call for one of its own tools and"
            " did not deliver it. Ask again, or rename the tool.",
            code="upstream_tool_intercepted",
        )

    def _refusal(self, response: httpx.Response, body: bytes) -> UpstreamError:
        text = body.decode("utf-8", "replace")
        failure = classify(response.status_code, response.headers, body)
        if failure is not None:
            return self._mapped(failure, text)
        return UpstreamProtocolError(
            f"Upstream account {self._account.name} answered with something that is no answer.",
            body=text,
            upstream_status=response.status_code,
        )

    def _new_request(
        self,
        method: str,
        path: str,
        *,
        base_url: str | None = None,
        chat_id: str | None = None,
        content: bytes = b"",
        is_short: bool = False,
        extra: dict[str, str] | None = None,
    ) -> httpx.Request:
        name = self._account.name
        url = (
            (base_url or self._base_url) + path + (f"?chat_id={quote(chat_id)}" if chat_id else "")
        )
        return http.new_request(
            self._client,
            method,
            url,
            headers=http.checked_headers(self._headers(chat_id, extra or {}), account_name=name),
            account_name=name,
            content=content,
            max_idle_s=http.LIST_TIMEOUT_S if is_short else None,
        )

    def _headers(self, chat_id: str | None, extra: dict[str, str]) -> dict[str, str]:
        credentials = self._account.credentials
        pasted = {name.lower(): value for name, value in credentials.headers.items()}
        own = {
            "cookie": credentials.cookies,
            "bx-umidtoken": credentials.token,
            "user-agent": credentials.user_agent,
        }
        return {
            **_DEFAULT_HEADERS,
            "origin": self._base_url,
            **{name: value for name, value in pasted.items() if name not in _OWN_HEADERS},
            **{name: value for name, value in own.items() if value},
            "content-type": "application/json",
            "referer": f"{self._base_url}/c/{chat_id}" if chat_id else f"{self._base_url}/",
            "timezone": _javascript_date(datetime.now(UTC).astimezone()),
            "x-request-id": str(uuid.uuid4()),
            **extra,
        }

    def _mapped(self, failure: WebFailure, body: str) -> UpstreamError:
        error = _map_failure(failure, f"Upstream account {self._account.name}")
        error.retry_after_s = failure.retry_after_s
        error.upstream_status = failure.upstream_status
        error.body = body[:2048]
        return error


def _render(call: UpstreamCall, tools: TextTools, *, has_files: bool) -> str:
    """Write the turn as one text.

    Raises:
        InvalidRequest: there is nothing to say, or something that is not text.
        ContextLengthExceeded: the text is longer than the upstream takes.
    """
    first_message = call.chat.first_message if call.chat else 0
    roles = [message.get("role") for message in call.messages[first_message:]]
    has_user = first_message > 0 or any(role in ("user", "tool", "function") for role in roles)

    def write(tool_text: str) -> str:
        return render_prompt(
            call.messages,
            tool_text="\n".join(text for text in (tool_text, call.note) if text),
            tool_form=tools.form,
            first_message=first_message,
        )

    try:
        prompt = write(tools.choice_text if first_message else tools.text)
        if len(prompt) > MAX_PROMPT_CHARS and not first_message:
            prompt = write(tools.short_text)
    except UnsupportedContent as exc:
        raise InvalidRequest(
            f"messages.{exc.index}: this upstream takes text and files, not {exc.part_type}.",
            param=f"messages.{exc.index}.content",
        ) from exc
    if not has_user or not (prompt.strip() or has_files):
        raise InvalidRequest("This upstream needs a user message with text.", param="messages")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ContextLengthExceeded(
            f"The web upstream takes {MAX_PROMPT_CHARS:,} characters in one turn; this history"
            f" has {len(prompt):,}. Shorten it, or use an account of another kind.",
            param="messages",
        )
    return prompt


def _stops(call: UpstreamCall) -> StopReader | None:
    try:
        texts = read_stop(call.parameters.get("stop"))
    except ValueError as exc:
        raise InvalidRequest(str(exc), param="stop") from exc
    return StopReader(texts) if texts else None


def _completion_body(
    call: UpstreamCall, chat_id: str, prompt: str, files: Sequence[JSONObject]
) -> JSONObject:
    thinking, thinking_budget = for_web(call.reasoning)
    return qwen_web.completion_body(
        chat_id=chat_id,
        model=call.model,
        parent_id=call.chat.parent_id if call.chat else None,
        text=prompt,
        thinking=thinking,
        thinking_budget=thinking_budget,
        timestamp_s=int(time.time()),
        fid=str(uuid.uuid4()),
        child_id=str(uuid.uuid4()),
        files=files,
    )


def _without_text(body: JSONObject) -> JSONObject:
    messages = body["messages"]
    assert isinstance(messages, list)
    message: JSONObject = messages[0]  # type: ignore[assignment]  # our own body
    files = message["files"]
    assert isinstance(files, list)
    kept: list[JSONValue] = [without_signature(entry) for entry in files]  # type: ignore[arg-type]  # as above
    return {**body, "messages": [{**message, "content": None, "files": kept}]}


def _in_chat(event: Event, chat_id: str) -> Event:
    """Name the chat also where the stream did not begin with its record."""
    if isinstance(event, Started) and event.chat_id is None:
        return replace(event, chat_id=chat_id)
    return event


def _javascript_date(now: datetime) -> str:
    return now.strftime("%a %b %d %Y %H:%M:%S GMT%z")


def _read_model(model: JSONObject) -> ModelInfo | None:
    """Read an entry of the list; null where the model is switched off."""
    info = model.get("info")
    info = info if isinstance(info, dict) else {}
    meta = info.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    if info.get("is_active") is False:
        return None
    created, owner, context = (
        info.get("created_at"),
        model.get("owned_by"),
        meta.get("max_context_length"),
    )
    details: JSONObject = {name: meta[name] for name in _LISTED_META if name in meta}
    if isinstance(name := model.get("name"), str):
        details["name"] = name
    return ModelInfo(
        str(model["id"]),
        created=created if isinstance(created, int) else 0,
        owned_by=owner if isinstance(owner, str) else "qwen",
        context_length=context if isinstance(context, int) else None,
        details=details,
    )


# What a failure is called to clients; `{who}` is the account, `{said}` the upstream's own words.
_FAILURES: dict[FailureKind, tuple[type[UpstreamError], str]] = {
    "rate_limited": (UpstreamRateLimited, "{who}: {said}"),
    "parallel": (UpstreamRateLimited, "{who}: {said}"),
    "busy": (UpstreamChatBusy, "{who}: the chat's previous turn still runs."),
    "parent_gone": (UpstreamChatGone, "{who}: the chat is gone: {said}"),
    "chat_gone": (UpstreamChatGone, "{who}: the chat is gone: {said}"),
    "challenge": (
        UpstreamChallenged,
        f"{{who}} is asked for a check that only a person can pass: {_PASTE_AGAIN}.",
    ),
    "unauthorized": (UpstreamAuthExpired, f"{{who}} has no session any more: {_PASTE_AGAIN}."),
    "rejected": (
        UpstreamError,
        "{who} was refused ({said}). Its cookies or headers may be incomplete: "
        f"{_PASTE_AGAIN}.",
    ),
    "context_too_long": (ContextLengthExceeded, "{said}"),
    "invalid": (UpstreamRefused, "{said}"),
    "malformed": (UpstreamProtocolError, "{who}: {said}"),
    "malformed_request": (UpstreamProtocolError, "{who}: {said}"),
    "too_many_messages": (UpstreamProtocolError, "{who}: {said}"),
}


def _map_failure(failure: WebFailure, who: str) -> UpstreamError:
    status = failure.upstream_status
    kind: FailureKind = failure.kind
    if kind == "http" and status in (401, 403):
        kind = "unauthorized"
    elif kind == "http" and status is not None and status < 400:
        kind = "malformed"
    cls, template = _FAILURES.get(kind, (UpstreamError, "{who}: {said}"))
    if kind == "http" and status in (408, 504):
        cls = UpstreamTimeout
    param = "messages" if kind == "context_too_long" else None
    return cls(template.format(who=who, said=failure.message), param=param)

"""One user->assistant exchange, in a task of its own that survives its client.

`start` puts the turn on record; `run` asks the upstreams, hands events on and puts the end on record
*before* the client hears of it: agents act on `finish_reason`. Other accounts and further tries are
asked only while nothing of an answer has been handed on.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

from qwenproxy import metrics
from qwenproxy.access.models import Limits
from qwenproxy.errors import (
    AnswerTooLong,
    GatewayError,
    InvalidRequest,
    NoAccountReady,
    RateLimited,
    RecorderUnavailable,
    ShuttingDown,
    UpstreamAuthExpired,
    UpstreamChallenged,
    UpstreamChatBusy,
    UpstreamChatGone,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamTimeout,
)
from qwenproxy.proxy.dialect import Dialect, Encoder
from qwenproxy.proxy.gateway import Gateway
from qwenproxy.proxy.lanes import Lane, Place, Route, Wishes
from qwenproxy.proxy.outcome import counted, reserved_tokens, upstream_response
from qwenproxy.proxy.schemas import Body
from qwenproxy.proxy.streaming import ClientStream
from qwenproxy.upstream import parameters
from qwenproxy.upstream.protocol import ChatTarget, Upstream, UpstreamCall, hide_secrets
from qwenproxy.wire import history, json
from qwenproxy.wire.events import (
    Accumulator,
    Again,
    Asked,
    Event,
    Finished,
    LogProbs,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
)
from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.reasoning import Reasoning, ReasoningError, read_reasoning
from requests_app.keeping import choose_keep
from requests_app.writes import BlobText, ChatRow, Closing, Opened, Opening

logger = logging.getLogger(__name__)

# Another try at the same account would end the same way, or make things worse.
_NOT_AGAIN = (UpstreamTimeout, UpstreamRateLimited, UpstreamChallenged, UpstreamAuthExpired)
_FIRST_DELAY_S = 0.25
_IGNORED_HEADER = "x-qwenproxy-ignored"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asked, and how, as the record keeps it."""

    api_key_id: int
    method: str
    path: str
    user_agent: str
    external_id: str | None
    # What the key lets be recorded (`access.models.Recorded`).
    recorded: str
    # Compact JSON object of the other headers that are recorded; empty: none.
    headers: str = ""
    # Of the key; null: none.
    limits: Limits | None = None


@dataclass(slots=True, eq=False)
class Turn:
    gateway: Gateway
    dialect: Dialect
    caller: Caller
    body: Body
    route: Route
    request_id: str = field(init=False)
    response_id: str = field(init=False)
    client: ClientStream = field(init=False)
    answer: Accumulator = field(init=False, default_factory=Accumulator)
    opened: Opened = field(init=False)
    _reasoning: Reasoning = field(init=False)
    _opening: Opening = field(init=False)
    _encoder: Encoder = field(init=False)
    _task: asyncio.Task[None] | None = field(init=False, default=None)
    _started_at: float = field(init=False, default_factory=time.monotonic)
    _first_at: float | None = field(init=False, default=None)
    _attempts: list[JSONObject] = field(init=False, default_factory=list)
    _attempt_began: float = field(init=False, default=0.0)
    _chars: int = field(init=False, default=0)
    _place: Place | None = field(init=False, default=None)
    # For an account that has a place.
    _is_waiting: bool = field(init=False, default=False)
    _upstream: Upstream | None = field(init=False, default=None)
    _upstream_label: str = field(init=False, default="")
    # Why the conversation's chat cannot go on: busy or gone.
    _lost_chat: str = field(init=False, default="")
    _ending: Literal["", "cancelled", "interrupted"] = field(init=False, default="")
    # By a request of its own; the client may be there still.
    _was_cancelled: bool = field(init=False, default=False)
    _has_failed: bool = field(init=False, default=False)
    # Its end was handed to the recorder.
    _has_end: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.route = self.route.taking(self.body.parameters)
        self._reasoning = self._read_reasoning()
        self.request_id = f"req_{uuid4().hex}"
        self.response_id = f"{self.dialect.id_prefix}{uuid4().hex}"
        self._opening = self._make_opening()
        self._encoder = self.dialect.make_encoder(
            response_id=self.response_id,
            model=self.route.model,
            created=int(self._opening.created_at.timestamp()),
            include_usage=self.body.include_usage,
        )
        settings = self.gateway.settings
        self.client = ClientStream(
            sse=self.body.stream,
            buffer_bytes=settings.send_buffer_bytes,
            send_timeout_s=settings.send_timeout_s,
            keep_alive_s=settings.keep_alive_s,
            on_left=self._client_left,
            keep_alive=self._encoder.keep_alive,
        )
        self.client["x-request-id"] = self.request_id

    def _read_reasoning(self) -> Reasoning:
        try:
            asked = read_reasoning(self.body.parameters)
            return asked.with_model_suffix(self.route.thinking)
        except ReasoningError as exc:
            raise InvalidRequest(str(exc), param=exc.param) from exc

    async def start(self) -> ClientStream:
        """Put the turn on record as in progress, then let it run; return what its client holds.

        Raises:
            ShuttingDown: the gateway takes no new turns.
            RateLimited: a limit of the key keeps it from beginning.
            RecorderUnavailable: the turn could not be recorded, so the upstream is not asked.
        """
        if self.gateway.draining:
            raise ShuttingDown("the gateway is shutting down: try again in a moment")
        self.gateway.enter(self)
        try:
            self.opened = await self.gateway.recorder.open(self._opening)
        except BaseException as error:
            self.gateway.leave(self)
            self.client.end()
            if isinstance(error, RateLimited):
                metrics.REFUSED.labels(error.reason).inc()
            raise
        # At once: what is on record has somebody who ends it. A clean context: the request's dies with it, the
        # turn may go on.
        self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        self.client["x-session-id"] = self.opened.session_id
        if self.opened.standing is not None:
            for name, value in self.opened.standing.headers().items():
                self.client[name] = value
        if self._ending:
            # Not at once: a task that is cancelled before its first step never gets to its end.
            asyncio.get_running_loop().call_soon(self._task.cancel)
        return self.client

    def interrupt(self) -> None:
        """End the turn with what there is: the gateway stops."""
        self._end_early("interrupted")

    def cancel(self) -> None:
        """End the turn with what there is, as its client asked in another request."""
        self._was_cancelled = True
        self._end_early("cancelled")

    async def wait(self, timeout_s: float) -> None:
        """Return after its end, or when the time is over."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)

    @property
    def created(self) -> int:
        """When it began, in seconds since 1970."""
        return int(self._opening.created_at.timestamp())

    # The record of its beginning.

    def _make_opening(self) -> Opening:
        body, caller = self.body, self.caller
        system, line = history.split_system(body.messages)
        first_user = next((m for m in line if m.get("role") == "user"), None)
        title = history.text_of(first_user) if first_user else ""
        system_blob = _blob("system", list(system)) if system else None
        tools_blob = _blob("tools", body.tools) if body.tools else None
        return Opening(
            api_key_id=caller.api_key_id,
            user_id=None if body.user is None else json.plain(body.user),
            external_id=None if caller.external_id is None else json.plain(caller.external_id),
            request_id=self.request_id,
            response_id=self.response_id,
            dialect=body.dialect,
            method=caller.method,
            path=json.plain(caller.path[:200]),
            model=json.plain(body.model or self.route.model),
            stream=body.stream,
            user_agent=json.plain(caller.user_agent[:300]),
            title=json.plain(" ".join(title[:400].split())[:200]),
            parameters=json.dumps_text(body.recorded_parameters()),
            system=system_blob,
            tools=tools_blob,
            context_digest=history.digest_of(
                system_blob.digest if system_blob else b"-",
                tools_blob.digest if tools_blob else b"-",
            ),
            line=history.chain(caller.api_key_id, line),
            created_at=datetime.now(UTC),
            session_ttl=self.gateway.recorder.session_ttl,
            headers=json.plain(caller.headers),
            keep=choose_keep(caller.recorded, self.gateway.settings.redaction),
            limits=caller.limits,
            reserved_tokens=reserved_tokens(
                body, caller.limits, self.gateway.settings.reserved_tokens
            ),
        )

    # Its run.

    async def _run(self) -> None:
        try:
            await self._answer()
        except (Exception, asyncio.CancelledError):
            # Not even the error could be recorded or told.
            logger.exception("the end of a turn failed", extra={"request_id": self.request_id})
            await self._give_up()
        finally:
            self.client.break_off()
            self.gateway.leave(self)
            self._observe()

    async def _answer(self) -> None:
        try:
            async with asyncio.timeout(self.gateway.settings.turn_timeout_s):
                await self._ask()
            await self._complete()
        except TimeoutError:
            limit_s = self.gateway.settings.turn_timeout_s
            await self._fail(UpstreamTimeout(f"no whole answer within {limit_s:g} seconds"))
        except GatewayError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            # The gateway's own doing: the task ends here, with its end on record.
            self._ending = self._ending or "interrupted"
            await self._fail(ShuttingDown("the answer was stopped before its end"))
        except Exception:
            # The turn's edge: whatever went wrong, the row says so and the client hears of it.
            logger.exception("turn failed", extra={"request_id": self.request_id})
            await self._fail(GatewayError("internal error"))

    async def _ask(self) -> None:
        """Ask accounts one after the other until one answers whole."""
        session_id, chat = self.opened.session_id, self.opened.resolution.chat
        routing = self.gateway.routing
        wishes = Wishes(
            None if chat is None else chat.account_id, routing.last_account(session_id), session_id
        )
        failed: list[Lane] = []
        error: GatewayError | None = None
        while True:
            place = self._place = await self._take_place(wishes, failed, error)
            try:
                error = await self._ask_account(place, wishes, failed)
            finally:
                self._place = None
                place.leave()
            if error is None:
                routing.remember(session_id, place.upstream.account.id)
                return
            metrics.FAILOVERS.labels(place.upstream.account.name).inc()
            failed.append(place.lane)

    async def _take_place(
        self, wishes: Wishes, failed: Sequence[Lane], error: GatewayError | None
    ) -> Place:
        wait_s = self.gateway.settings.account_wait_s
        self._is_waiting = True
        try:
            return await self.route.take(wishes, failed=failed, wait_s=wait_s)
        except NoAccountReady:
            if error is None:
                raise
            # What happened to this turn says more.
            raise error from None
        finally:
            self._is_waiting = False

    async def _ask_account(
        self, place: Place, wishes: Wishes, failed: Sequence[Lane]
    ) -> GatewayError | None:
        """Ask one account until it answers whole; an error is for another account to mend."""
        again = self.gateway.settings.upstream_retries
        if place.upstream.keeps_chats:
            # Each try opens a chat and adds to what the site holds against the account.
            again = min(again, 1)
        delay_s = _FIRST_DELAY_S
        while True:
            chat = self._choose_chat(place.upstream, wishes.last)
            try:
                await self._try(place, chat)
                return None
            except GatewayError as error:
                if self._first_at is not None or not error.retryable:
                    raise
                if chat is not None and isinstance(error, UpstreamChatBusy | UpstreamChatGone):
                    # The chat cannot go on: a new one gets the whole history, at once.
                    self._lost_chat = "busy" if isinstance(error, UpstreamChatBusy) else "gone"
                else:
                    if self.route.others([*failed, place.lane]):
                        return error
                    if again == 0 or isinstance(error, _NOT_AGAIN):
                        raise
                    again -= 1
                    await asyncio.sleep(delay_s)
                    delay_s *= 2
                    if place.lane.standing() == "out":
                        raise
            await place.again()

    def _choose_chat(self, upstream: Upstream, last_account: int | None) -> ChatTarget | None:
        """Decide where the turn goes on upstream; a chat goes on only from exactly this prefix."""
        if not upstream.keeps_chats:
            self._upstream_label = "whole"
            return None
        line = self._opening.line
        answers = [index for index, node in enumerate(line) if node.role == "assistant"]
        resolution = self.opened.resolution
        chat = resolution.chat
        if self._lost_chat:
            self._upstream_label = f"rebuilt:{self._lost_chat}"
        elif not answers:
            self._upstream_label = "new"
        elif chat is None:
            moved = last_account not in (None, upstream.account.id)
            self._upstream_label = "rebuilt:account" if moved else "rebuilt:unknown"
        elif chat.index != answers[-1] or chat.index == len(line) - 1:
            self._upstream_label = "rebuilt:edited"
        elif chat.account_id != upstream.account.id:
            self._upstream_label = "rebuilt:account"
        elif (chat.model, chat.context_digest) != (self.route.model, self._opening.context_digest):
            self._upstream_label = "rebuilt:context"
        elif chat.chat_id in self.gateway.busy_chats:
            self._upstream_label = "rebuilt:busy"
        else:
            parent_id = (
                chat.upstream_id
                if self.gateway.settings.parent_rule == "response_id"
                else chat.upstream_parent_id
            )
            if parent_id is not None:
                self._upstream_label = "continued"
                head = len(self.body.messages) - len(line)
                return ChatTarget(chat.chat_id, parent_id, head + chat.index + 1)
            self._upstream_label = "rebuilt:unknown"
        return None

    async def _try(self, place: Place, chat: ChatTarget | None) -> None:
        upstream = self._upstream = place.upstream
        self.answer = Accumulator()
        self._name_ignored(upstream)
        attempt = self._begin_attempt(upstream)
        if chat is not None:
            self.gateway.busy_chats.add(chat.chat_id)
        try:
            async with aclosing(upstream.stream(self._make_call(chat))) as batches:
                async for events in batches:
                    self._take(events)
                    if events and type(events[0]) is Again:
                        attempt = await self._ask_again(place, attempt, events[0])
            if self.answer.finish_reason is None:
                raise UpstreamProtocolError("the upstream's answer has no end")
            place.succeeded()
        except AnswerTooLong as error:
            attempt["cause"] = f"{error.error_code}: {error.message}"
            await upstream.stop(self.answer.started)
            raise
        except GatewayError as error:
            # Upstreams quote what they were sent.
            hide_secrets(error, upstream.account.credentials)
            cause = attempt["cause"] = f"{error.error_code}: {error.message}"[:500]
            place.failed(error, self._opening.keep.cause(cause))
            raise
        except asyncio.CancelledError:
            attempt["cause"] = self._ending or "timeout"
            await upstream.stop(self.answer.started)
            raise
        finally:
            self._end_attempt(attempt)
            if chat is not None:
                self.gateway.busy_chats.discard(chat.chat_id)

    def _begin_attempt(self, upstream: Upstream) -> JSONObject:
        attempt: JSONObject = {
            "account": upstream.account.name,
            "started": int(time.time() * 1000),
            "ms": None,
            "cause": None,
        }
        self._attempts.append(attempt)
        self._attempt_began = time.monotonic()
        asked = Asked(upstream.account.id, self._upstream_label, attempt)
        self.gateway.recorder.append(self.response_id, [asked])
        return attempt

    def _end_attempt(self, attempt: JSONObject) -> None:
        attempt["ms"] = round((time.monotonic() - self._attempt_began) * 1000)

    async def _ask_again(self, place: Place, attempt: JSONObject, again: Again) -> JSONObject:
        """The upstream's client asks a second time by itself: an attempt of its own, at the account's pace."""
        attempt["cause"] = again.cause[:500]
        self._end_attempt(attempt)
        await place.again()
        return self._begin_attempt(place.upstream)

    def _name_ignored(self, upstream: Upstream) -> None:
        """Tell the client what has no effect with this account; it is told of the last one asked."""
        names = parameters.ignored(upstream.account.kind, self.body.parameters)
        if names:
            self.client[_IGNORED_HEADER] = ", ".join(names)
        else:
            self.client.headers.pop(_IGNORED_HEADER, None)

    def _make_call(self, chat: ChatTarget | None) -> UpstreamCall:
        body = self.body
        return UpstreamCall(
            model=self.route.model,
            messages=body.messages,
            parameters=body.parameters,
            tools=body.tools,
            reasoning=self._reasoning,
            prompt=body.prompt,
            chat=chat,
        )

    def _take(self, events: Sequence[Event]) -> None:
        add = self.answer.add
        has_content = False
        chars = 0
        for event in events:
            add(event)
            kind = type(event)
            if kind is TextDelta or kind is ReasoningDelta:
                has_content = True
                chars += len(event.text)  # type: ignore[union-attr]  # by its kind
            elif isinstance(event, ToolCallDelta):
                has_content = True
                chars += len(event.arguments)
            elif kind is Finished or kind is LogProbs:
                has_content = True
        if not has_content:
            self.gateway.recorder.append(self.response_id, events)
            return
        if self._first_at is None:
            self._first_at = time.monotonic()
            if self._place is not None:
                self._place.answering()
        self.gateway.recorder.append(self.response_id, events)
        if self.body.stream and (data := self._encoder.encode(events)):
            self.client.append(data)
        self._chars += chars
        if self._chars > self.gateway.settings.max_answer_chars:
            raise AnswerTooLong(
                "the answer passed the limit of "
                f"{self.gateway.settings.max_answer_chars / 2**20:g} MB (QWENPROXY_MAX_ANSWER_MB)"
            )

    # Its end.

    async def _complete(self) -> None:
        reason = self.answer.finish_reason or "stop"
        try:
            await self._commit(self._make_closing("completed", reason, 200))
        except RecorderUnavailable as error:
            # The recorder keeps this end and writes it when it can; the client must not act on it yet.
            self._fail_client(error)
            return
        usage = counted(self.body, self.answer)
        if self.body.stream:
            self.client.append(self._encoder.finish(reason, usage))
        else:
            whole = self.dialect.whole(
                response_id=self.response_id,
                model=self.route.model,
                created=int(self._opening.created_at.timestamp()),
                message=self.answer.message(),
                reasoning=self.answer.reasoning,
                finish_reason=reason,
                usage=usage,
            )
            if self.answer.logprobs is not None and self.dialect.add_logprobs is not None:
                self.dialect.add_logprobs(whole, self.answer.logprobs)
            if self.answer.stop_text is not None and self.dialect.mark_stop is not None:
                self.dialect.mark_stop(whole, self.answer.stop_text)
            self.client.append(json.dumps(whole))
        self.client.end()

    async def _fail(self, error: GatewayError) -> None:
        self._has_failed = True
        logger.log(
            error.log_level,
            "turn failed: %s",
            error.error_code,
            extra={"request_id": self.request_id, "session_id": self.opened.session_id},
        )
        status = self._ending or "failed"
        # A stream's status went out with its first bytes.
        http_status = 200 if self.client.has_head else error.http_status
        closing = self._make_closing(status, "error", http_status)
        _name_error(closing, error)
        if self._ending == "cancelled":
            closing.finish_reason = "cancelled"
            closing.http_status = 200 if self.client.has_head else 499
            closing.error_type, closing.error_code = "client_error", "client_left"
            closing.error_message = "the client left before the answer's end"
            if self._was_cancelled:
                closing.error_code = "cancelled"
                closing.error_message = "the response was cancelled"
        if isinstance(error, UpstreamError) and error.body:
            closing.upstream_response = upstream_response(self.answer, error)
        try:
            await self._commit(closing)
        except GatewayError as exc:
            logger.error("the end of a turn could not be recorded: %s", exc.message)
            error = exc
        self._fail_client(error)

    async def _give_up(self) -> None:
        """End the turn with as little as an end takes."""
        error = GatewayError("internal error")
        if not self._has_end:
            http_status = 200 if self.client.has_head else error.http_status
            closing = self._make_bare_closing(self._ending or "failed", "error", http_status)
            _name_error(closing, error)
            await self._commit(closing)
        self._fail_client(error)

    async def _commit(self, closing: Closing) -> None:
        # Also where it cannot be written now: the recorder tries again.
        self._has_end = True
        await self.gateway.recorder.commit(closing)

    def _fail_client(self, error: GatewayError) -> None:
        body = self.dialect.error_body(error)
        self.client.fail(error, self._encoder.error(body), body=body)

    def _observe(self) -> None:
        usage = self.answer.usage
        metrics.observe_turn(
            model=self.route.model,
            is_listed=self.route.is_listed,
            status=self._ending or ("failed" if self.answer.finish_reason is None else "completed"),
            duration_s=time.monotonic() - self._started_at,
            ttft_s=None if self._first_at is None else self._first_at - self._started_at,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )

    def _client_left(self) -> None:
        if self.body.background:
            return
        if self._is_waiting:
            # There is no answer yet that could be finished.
            self._end_early("cancelled")
            return
        mode = self.gateway.settings.on_client_left or (
            self._upstream.on_client_left if self._upstream else "cancel"
        )
        if mode == "cancel":
            self._end_early("cancelled")

    def _end_early(self, ending: Literal["cancelled", "interrupted"]) -> None:
        # Once the answer is whole or has failed, its commit is under way: that end stands.
        if self._ending or self._has_failed or self.answer.finish_reason is not None:
            return
        self._ending = ending
        if self._task is not None:
            self._task.cancel()

    def _make_closing(self, status: str, finish_reason: str, http_status: int) -> Closing:
        closing = self._make_bare_closing(status, finish_reason, http_status)
        answer, started = self.answer, self.answer.started
        usage = answer.usage
        source = "reported" if status == "completed" else "partial"
        if usage is None and closing.reply is not None:
            source = "estimated" if status == "completed" else "partial"
        if usage is not None or closing.reply is not None:
            usage = counted(self.body, answer)
        if usage is not None:
            closing.prompt_tokens = usage.prompt_tokens
            closing.completion_tokens = usage.completion_tokens
            closing.total_tokens = usage.total_tokens
            closing.reasoning_tokens = usage.reasoning_tokens
            closing.cached_tokens = usage.cached_tokens
            closing.usage_source = source
        closing.upstream_response = upstream_response(answer)
        closing.attempts = json.dumps_text(self._attempts)
        closing.sent = answer.sent
        closing.chat = self._chat_row(started)
        goes_on = status == "completed" and not answer.is_cut
        closing.upstream_id = started.response_id if goes_on else None
        closing.upstream_parent_id = None if answer.is_cut else started.parent_id
        return closing

    def _make_bare_closing(self, status: str, finish_reason: str, http_status: int) -> Closing:
        """The end without what the upstream said besides its answer, and what follows from that."""
        answer, line = self.answer, self._opening.line
        parent = line[-1].digest if line else None
        reply = None
        if answer.has_content or status == "completed":
            message = answer.message()
            above = parent or history.root_digest(self.caller.api_key_id)
            digest = history.message_digest(above, message)
            reply = history.Node(digest, message)
        now = time.monotonic()
        return Closing(
            session_id=self.opened.session_id,
            request_id=self.request_id,
            response_id=self.response_id,
            reply=reply,
            parent=parent,
            dialect=self.body.dialect,
            position=len(line),
            status=status,
            finish_reason=finish_reason,
            http_status=http_status,
            completed_at=datetime.now(UTC),
            session_ttl=self.gateway.recorder.session_ttl,
            duration_ms=round((now - self._started_at) * 1000),
            ttft_ms=_ms(self._started_at, self._first_at),
            client_left=self.client.left,
            reasoning=json.plain(answer.reasoning),
            upstream=self._upstream_label,
            account_id=self._upstream.account.id if self._upstream else None,
            keep=self._opening.keep,
        )

    def _chat_row(self, started: Started) -> ChatRow | None:
        if started.chat_id is None or self._upstream is None:
            return None
        return ChatRow(
            started.chat_id,
            self._upstream.account.id,
            self.route.model,
            self._opening.context_digest,
        )


def _name_error(closing: Closing, error: GatewayError) -> None:
    closing.error_type = error.type
    closing.error_code = error.error_code
    closing.error_message = json.plain(error.message)


def _blob(kind: str, value: object) -> BlobText:
    body = json.dumps(value)
    return BlobText(history.digest_of(kind.encode(), body), kind, body.decode())


def _ms(start: float, end: float | None) -> int | None:
    return None if end is None else round((end - start) * 1000)

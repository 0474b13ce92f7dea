"""`POST /v1/embeddings`: passed to upstreams that have it, and put on record like a turn.

The row is there before the upstream is asked, and its end before the client has the answer; keys,
their limits and the lanes of accounts hold as they do for turns. A failed account is followed by the
next one; none is asked twice, since clients repeat by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import uuid4

from django.http import HttpResponse

from qwenproxy import metrics
from qwenproxy.errors import (
    GatewayError,
    InvalidRequest,
    NoAccountReady,
    RateLimited,
    RecorderUnavailable,
    ShuttingDown,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from qwenproxy.proxy.chat import caller_of
from qwenproxy.proxy.gateway import Gateway, GatewayRequest
from qwenproxy.proxy.lanes import Lane, Place, Route, Wishes
from qwenproxy.proxy.models import route_allowed
from qwenproxy.proxy.outcome import estimated_usage, reserved_tokens
from qwenproxy.proxy.schemas import Body, parse_embeddings
from qwenproxy.proxy.turn import Caller
from qwenproxy.upstream.protocol import Embedder, hide_secrets
from qwenproxy.wire import embeddings, history, json
from qwenproxy.wire.events import Accumulator, Sent, UsageReport
from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.openai_chat import read_usage, usage_object
from requests_app.keeping import choose_keep
from requests_app.writes import Closing, Opened, Opening

logger = logging.getLogger(__name__)


async def create_embeddings(request: GatewayRequest) -> HttpResponse:
    """Turn texts or tokens into vectors, with a model of an OpenAI-compatible or DashScope account."""
    body = parse_embeddings(request.body)
    route = _embedders(await route_allowed(request, body.model))
    call = _Call(request.gateway, caller_of(request, body), body, route)
    return await call.run()


def _embedders(route: Route) -> Route:
    lanes = [lane for lane in route.lanes if isinstance(lane.upstream, Embedder)]
    if not lanes:
        raise InvalidRequest(
            f"the accounts that serve {route.model!r} have no embeddings: those of the kinds"
            " openai_compatible and dashscope do",
            param="model",
            code="unsupported",
        )
    return replace(route, lanes=lanes)


@dataclass(slots=True, eq=False)
class _Call:
    gateway: Gateway
    caller: Caller
    body: Body
    route: Route
    _opening: Opening = field(init=False)
    _opened: Opened = field(init=False)
    _attempts: list[JSONObject] = field(init=False, default_factory=list)
    _place: Place | None = field(init=False, default=None)
    _sent: Sent | None = field(init=False, default=None)
    _began: float = field(init=False, default_factory=time.monotonic)

    async def run(self) -> HttpResponse:
        if self.gateway.draining:
            raise ShuttingDown("the gateway is shutting down: try again in a moment")
        self._opening = self._make_opening()
        try:
            self._opened = await self.gateway.recorder.open(self._opening)
        except RateLimited as error:
            metrics.REFUSED.labels(error.reason).inc()
            raise
        names = {
            "x-request-id": self._opening.request_id,
            "x-session-id": self._opened.session_id,
        }
        if self._opened.standing is not None:
            names |= self._opened.standing.headers()
        try:
            answer = await self._answer()
        except RecorderUnavailable as error:
            # The recorder keeps the end of the answer and writes it when it can.
            error.headers = {**error.headers, **names}
            raise
        except GatewayError as error:
            await self._fail(error)
            error.headers = {**error.headers, **names}
            raise
        except BaseException:
            # A stop of the process, or a fault of ours: the row says that there was no answer.
            await self._fail(GatewayError("internal error"))
            raise
        return HttpResponse(json.dumps(answer), content_type="application/json", headers=names)

    async def _answer(self) -> JSONObject:
        limit_s = self.gateway.settings.turn_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                answer, recorded = await self._ask()
        except TimeoutError as exc:
            raise UpstreamTimeout(f"no whole answer within {limit_s:g} seconds") from exc
        usage = read_usage(answer.get("usage"))
        source = "estimated" if usage is None else "reported"
        usage = usage or self._estimate()
        usage_told: JSONObject = {
            "prompt_tokens": usage.prompt_tokens,
            "total_tokens": usage.total_tokens,
        }
        answer = {"object": "list", **answer, "model": self.route.model, "usage": usage_told}
        closing = self._make_closing("completed", "stop", 200, usage, source)
        message: JSONObject = {"role": "assistant", "content": json.dumps_text(recorded)}
        parent = self._opening.line[-1].digest
        closing.reply = history.Node(history.message_digest(parent, message), message)
        closing.upstream_response = json.dumps_text({"usage": usage.raw or usage_object(usage)})
        await self.gateway.recorder.commit(closing)
        self._observe("completed", usage)
        return answer

    async def _ask(self) -> tuple[JSONObject, JSONObject]:
        """The answer of the first account that gives one, and what is recorded of it."""
        wishes = Wishes(None, None, self._opened.session_id)
        failed: list[Lane] = []
        error: GatewayError | None = None
        while True:
            try:
                place = self._place = await self.route.take(
                    wishes, failed=failed, wait_s=self.gateway.settings.account_wait_s
                )
            except NoAccountReady:
                if error is None:
                    raise
                raise error from None
            try:
                return await self._ask_account(place)
            except UpstreamError as exc:
                if not exc.retryable or not self.route.others([*failed, place.lane]):
                    raise
                error = exc
                metrics.FAILOVERS.labels(place.upstream.account.name).inc()
                failed.append(place.lane)
            finally:
                place.leave()

    async def _ask_account(self, place: Place) -> tuple[JSONObject, JSONObject]:
        upstream = place.upstream
        assert isinstance(upstream, Embedder)
        attempt: JSONObject = {
            "account": upstream.account.name,
            "started": int(time.time() * 1000),
            "ms": None,
            "cause": None,
        }
        self._attempts.append(attempt)
        began = time.monotonic()
        sent = {**self.body.parameters, "model": self.route.model, "input": self.body.sent["input"]}
        self._sent = Sent({**sent, "input": None}, json.dumps_text(sent["input"]))
        try:
            answer = self._read(await upstream.embed(sent))
            place.succeeded()
        except GatewayError as error:
            hide_secrets(error, upstream.account.credentials)
            cause = attempt["cause"] = f"{error.error_code}: {error.message}"[:500]
            place.failed(error, self._opening.keep.cause(cause))
            raise
        except asyncio.CancelledError:
            attempt["cause"] = "timeout"
            raise
        finally:
            attempt["ms"] = round((time.monotonic() - began) * 1000)
        return answer

    def _read(self, told: bytes) -> tuple[JSONObject, JSONObject]:
        as_base64 = self.body.parameters.get("encoding_format") == "base64"
        try:
            return embeddings.read_answer(json.loads(told), as_base64=as_base64)
        except ValueError as exc:
            raise UpstreamProtocolError(
                f"the upstream answered with no embeddings: {exc}",
                body=told.decode("utf-8", "replace"),
            ) from exc

    async def _fail(self, error: GatewayError) -> None:
        closing = self._make_closing("failed", "error", error.http_status, None, "")
        closing.error_type, closing.error_code = error.type, error.error_code
        closing.error_message = json.plain(error.message)
        if isinstance(error, UpstreamError) and error.body:
            told = {"error_body": error.body, "status": error.upstream_status}
            closing.upstream_response = json.dumps_text(told)
        self._observe("failed", None)
        try:
            await self.gateway.recorder.commit(closing)
        except GatewayError as exc:
            # The client is told why there is no answer.
            logger.error("the end of embeddings could not be recorded: %s", exc.message)

    def _estimate(self) -> UsageReport:
        usage = estimated_usage(self.body, Accumulator())
        return UsageReport(usage.prompt_tokens, 0, usage.prompt_tokens)

    def _observe(self, status: str, usage: UsageReport | None) -> None:
        metrics.observe_turn(
            model=self.route.model,
            is_listed=self.route.is_listed,
            status=status,
            duration_s=time.monotonic() - self._began,
            ttft_s=None,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=0,
        )

    def _make_opening(self) -> Opening:
        body, caller = self.body, self.caller
        text = history.text_of(body.messages[0])
        return Opening(
            api_key_id=caller.api_key_id,
            user_id=None if body.user is None else json.plain(body.user),
            external_id=None if caller.external_id is None else json.plain(caller.external_id),
            request_id=f"req_{uuid4().hex}",
            response_id=f"embd_{uuid4().hex}",
            dialect=embeddings.DIALECT,
            method=caller.method,
            path=json.plain(caller.path[:200]),
            model=json.plain(body.model),
            stream=False,
            user_agent=json.plain(caller.user_agent[:300]),
            title=json.plain(" ".join(text[:400].split())[:200]),
            parameters=json.dumps_text(embeddings.to_parameters(body.sent)),
            system=None,
            tools=None,
            context_digest=history.digest_of(b"-", b"-"),
            line=history.chain(caller.api_key_id, body.messages),
            created_at=datetime.now(UTC),
            session_ttl=self.gateway.recorder.session_ttl,
            headers=json.plain(caller.headers),
            keep=choose_keep(caller.recorded, self.gateway.settings.redaction),
            limits=caller.limits,
            reserved_tokens=reserved_tokens(body, caller.limits, 0),
        )

    def _make_closing(
        self, status: str, reason: str, http_status: int, usage: UsageReport | None, source: str
    ) -> Closing:
        opening = self._opening
        return Closing(
            session_id=self._opened.session_id,
            request_id=opening.request_id,
            response_id=opening.response_id,
            reply=None,
            parent=opening.line[-1].digest,
            dialect=opening.dialect,
            position=len(opening.line),
            status=status,
            finish_reason=reason,
            http_status=http_status,
            completed_at=datetime.now(UTC),
            session_ttl=opening.session_ttl,
            duration_ms=round((time.monotonic() - self._began) * 1000),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            total_tokens=usage.total_tokens if usage else 0,
            usage_source=source,
            upstream="whole" if self._place else "",
            account_id=self._place.upstream.account.id if self._place else None,
            attempts=json.dumps_text(self._attempts),
            sent=self._sent,
            keep=opening.keep,
        )

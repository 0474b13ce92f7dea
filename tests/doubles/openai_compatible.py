"""An imitation of an OpenAI-compatible server: models, chat completions, legacy completions.

Unscripted, the small model answers from the messages it was sent. Run it by hand:
`python -m tests.doubles.openai_compatible --port 8302 --chunks 100 --delay-ms 20`; with `--chunks`
every answer has that many pieces of fixed text.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from pathlib import Path
from typing import Any

import uvicorn

from tests.doubles import model as small_model
from tests.doubles.server import Exchange, Recorded, Reply, ScriptedServer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "synthetic" / "openai_compat"
ERRORS: dict[str, Any] = json.loads((FIXTURES / "errors.json").read_text("utf-8"))

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
EMBEDDINGS = "/v1/embeddings"


def error(name: str) -> Reply:
    """A failure of errors.json by its name."""
    return Reply(body=ERRORS[name]["body"], status=ERRORS[name]["status"])


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


class OpenAICompatibleDouble(ScriptedServer):
    """`api_key`, where set, is required; `chunks` replaces the model by that many fixed pieces."""

    completions_path = CHAT

    def __init__(
        self,
        *,
        api_key: str = "",
        models: tuple[str, ...] = ("qwen3-8b", "qwen3-coder-30b"),
        chunks: int = 0,
        delay_s: float = 0,
    ) -> None:
        super().__init__()
        self.api_key = api_key
        self.models = models
        self.chunks = chunks
        self.delay_s = delay_s

    @property
    def turns(self) -> list[Recorded]:
        """The completions calls so far, of both kinds."""
        return [request for request in self.requests if request.path in (CHAT, COMPLETIONS)]

    async def answer(self, request: Recorded, exchange: Exchange) -> None:
        reply = self.next_reply(request.path)
        if reply is not None and await self.send_simple(exchange, reply):
            return
        given = request.headers.get("authorization", "")
        if self.api_key and given != f"Bearer {self.api_key}":
            await self.send_json(
                exchange,
                {
                    "error": {
                        "message": "Incorrect API key provided.",
                        "type": "invalid_request_error",
                        "param": None,
                        "code": "invalid_api_key",
                    }
                },
                status=401,
            )
        elif (request.method, request.path) == ("GET", MODELS):
            await self._list_models(exchange)
        elif (request.method, request.path) == ("POST", EMBEDDINGS):
            await self._embed(request, exchange)
        elif request.method == "POST" and request.path in (CHAT, COMPLETIONS):
            await self._complete(request, exchange, reply or self._model_reply(request))
        else:
            await self.send_json(exchange, {"detail": "Not Found"}, status=404)

    async def _embed(self, request: Recorded, exchange: Exchange) -> None:
        """Lists alone, whatever form is asked for, as some servers do."""
        asked = request.body["input"]
        items = asked if isinstance(asked, list) and not isinstance(asked[0], int) else [asked]
        size = request.body.get("dimensions", 3)
        data = [
            {"object": "embedding", "index": i, "embedding": [len(item) / 4] * size}
            for i, item in enumerate(items)
        ]
        usage = {"prompt_tokens": len(items), "total_tokens": len(items)}
        body = {"object": "list", "data": data, "model": request.body["model"], "usage": usage}
        await self.send_json(exchange, body)

    async def _list_models(self, exchange: Exchange) -> None:
        data = [
            {
                "id": model_id,
                "object": "model",
                "created": 1732711466,
                "owned_by": "double",
                "max_model_len": 32768,
            }
            for model_id in self.models
        ]
        await self.send_json(exchange, {"object": "list", "data": data})

    def _model_reply(self, request: Recorded) -> Reply:
        if self.chunks:
            return Reply(text="lorem " * self.chunks, delay_s=self.delay_s)
        if request.path == COMPLETIONS:
            path: list[tuple[str, str]] = []
            prompt = request.body["prompt"]
        else:
            messages = [(m["role"], text_of(m.get("content"))) for m in request.body["messages"]]
            last = max(i for i, (role, _) in enumerate(messages) if role in ("user", "tool"))
            path, prompt = messages[:last], messages[last][1]
        return Reply(text=small_model.answer(path, prompt), delay_s=self.delay_s)

    async def _complete(self, request: Recorded, exchange: Exchange, reply: Reply) -> None:
        if request.body.get("stream"):
            await self.send_stream(
                exchange,
                reply,
                self._records(request, reply),
                endless_record=self._chunk(request, "fixed", text="again "),
            )
            return
        await self.send_json(exchange, self._whole(request, reply))

    def _records(self, request: Recorded, reply: Reply) -> list[bytes]:
        if reply.raw is not None:
            return reply.raw.splitlines(keepends=True)
        answer_id = f"chatcmpl-{uuid.uuid4().hex}"
        records = []
        if request.path == CHAT:
            records.append(self._chunk(request, answer_id, delta={"role": "assistant"}))
        for piece in small_model.pieces(reply.reasoning):
            records.append(self._chunk(request, answer_id, delta={"reasoning_content": piece}))
        for piece in small_model.pieces(reply.text or ""):
            records.append(self._chunk(request, answer_id, text=piece))
        for index, call in enumerate(reply.tool_calls):
            records += self._call_records(request, answer_id, index, call)
        reason = reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")
        records.append(self._chunk(request, answer_id, delta={}, finish_reason=reason))
        if (request.body.get("stream_options") or {}).get("include_usage"):
            usage = reply.usage or self._usage(request, reply)
            records.append(self._chunk(request, answer_id, usage=usage))
        return [*records, b"data: [DONE]\n\n"]

    def _call_records(
        self, request: Recorded, answer_id: str, index: int, call: dict[str, Any]
    ) -> list[bytes]:
        arguments = call["function"]["arguments"]
        half = len(arguments) // 2
        first = {**call, "index": index, "type": "function"}
        first["function"] = {**call["function"], "arguments": ""}
        rest = [
            {"index": index, "function": {"arguments": part}}
            for part in (arguments[:half], arguments[half:])
        ]
        return [
            self._chunk(request, answer_id, delta={"tool_calls": [piece]})
            for piece in (first, *rest)
        ]

    def _chunk(
        self,
        request: Recorded,
        answer_id: str,
        *,
        delta: dict[str, Any] | None = None,
        text: str | None = None,
        finish_reason: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        is_chat = request.path == CHAT
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
        if is_chat:
            choice["delta"] = {"content": text} if text is not None else delta
        else:
            choice["text"] = text or ""
        chunk = {
            "id": answer_id,
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": request.body["model"],
            "choices": [] if usage else [choice],
        }
        if usage:
            chunk["usage"] = usage
        return b"data: %s\n\n" % json.dumps(chunk, ensure_ascii=False).encode()

    def _usage(self, request: Recorded, reply: Reply) -> dict[str, Any]:
        prompt = len(json.dumps(request.body.get("messages") or request.body.get("prompt"))) // 4
        completion = len(small_model.pieces((reply.text or "") + reply.reasoning))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _whole(self, request: Recorded, reply: Reply) -> dict[str, Any]:
        is_chat = request.path == CHAT
        reason = reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": reply.text}
            if reply.reasoning:
                message["reasoning_content"] = reply.reasoning
            if reply.tool_calls:
                message["tool_calls"] = reply.tool_calls
            choice["message"] = message
        else:
            choice["text"] = reply.text or ""
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": request.body["model"],
            "choices": [choice],
            "usage": reply.usage or self._usage(request, reply),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Imitate an OpenAI-compatible server on loopback.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=0, help="pieces of fixed text per answer")
    parser.add_argument("--delay-ms", type=float, default=0, help="before every piece")
    arguments = parser.parse_args()
    uvicorn.run(
        OpenAICompatibleDouble(chunks=arguments.chunks, delay_s=arguments.delay_ms / 1000),
        port=arguments.port,
        lifespan="off",
        ws="none",
        access_log=False,
    )


if __name__ == "__main__":
    main()

"""An imitation of the chat.qwen.ai web API that keeps chats, their message trees and running turns.

Unscripted, a small model answers from the path between the root and `parent_id` plus the new text, and
from nothing else. As upstream, errors come with status 200, a chat runs one turn at a time, and a
client that leaves does not stop its turn (the stop path does). Run it by hand:
`python -m tests.doubles.qwen_web --port 8301`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from tests.doubles import model as small_model
from tests.doubles import oss
from tests.doubles.server import Exchange, Recorded, Reply, ScriptedServer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "synthetic"
WEB_ERRORS: dict[str, Any] = json.loads((FIXTURES / "web_errors.json").read_text("utf-8"))

COMPLETIONS = "/api/v2/chat/completions"
STOP = "/api/v2/chat/completions/stop"
NEW_CHAT = "/api/v2/chats/new"
MODELS = "/api/models"
SESSION = "/api/v1/auths/"
REFRESH = "/api/v2/auths/refresh"
STS_TOKEN = "/api/v2/files/getstsToken"
PARSE = "/api/v2/files/parse"
PARSE_STATUS = "/api/v2/files/parse/status"
# Its object store, on the same host: an endpoint that is an IP address has buckets in the path.
BUCKET = "qwen-webui-prod"
_REGION = "ap-southeast-1"

# The ids that the synthetic streams use; a raw reply gets the chat's real ones in their place.
_FIXTURE_CHAT = b"11111111-1111-4111-8111-111111111111"
_FIXTURE_USER = b"22222222-2222-4222-8222-222222222222"
_FIXTURE_ANSWER = b"33333333-3333-4333-8333-333333333333"


def web_error(name: str) -> Reply:
    """A failure of web_errors.json by its name."""
    case = WEB_ERRORS[name]
    return Reply(body=case["body"], status=case["status"], headers=dict(case["headers"]))


def cookies_of(request: Recorded) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in request.headers.get("cookie", "").split(";"))
    return {name: value for name, _, value in pairs}


@dataclass
class Node:
    id: str
    parent_id: str | None
    role: str
    content: str = ""


@dataclass
class Upload:
    """An object that was announced; `content` is null until it is there."""

    id: str
    path: str
    wanted: dict[str, Any]
    url: str
    content: bytes | None = None
    content_type: str = ""
    # Null: nobody asked for it to be read.
    parsed: str | None = None


@dataclass
class Chat:
    id: str
    model: str
    nodes: dict[str, Node] = field(default_factory=dict)
    # The answer's id while a turn runs.
    running: str | None = None
    stopped: asyncio.Event | None = None

    def add(self, role: str, parent_id: str | None, content: str = "") -> Node:
        node = Node(str(uuid.uuid4()), parent_id, role, content)
        self.nodes[node.id] = node
        return node

    def path(self, leaf_id: str | None) -> list[tuple[str, str]]:
        nodes: list[tuple[str, str]] = []
        while leaf_id is not None:
            node = self.nodes[leaf_id]
            nodes.append((node.role, node.content))
            leaf_id = node.parent_id
        return nodes[::-1]


def model_entry(model_id: str, *, active: bool = True, thinking: bool = False) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "description": f"{model_id} of the double",
        "capabilities": {"vision": False, "document": True, "thinking": thinking, "search": True},
        "abilities": {"document": 1, "thinking": int(thinking)},
        "max_context_length": 262144,
        "chat_type": ["t2t", "search"],
        "modality": ["text"],
    }
    if thinking:
        meta |= {"max_thinking_generation_length": 81920, "max_summary_generation_length": 32768}
    else:
        meta["max_generation_length"] = 32768
    return {
        "id": model_id,
        "name": model_id.title(),
        "object": "model",
        "owned_by": "qwen",
        "info": {
            "id": model_id,
            "user_id": str(uuid.UUID(int=1)),
            "base_model_id": None,
            "name": model_id.title(),
            "meta": meta,
            "access_control": None,
            "is_active": active,
            "is_visitor_active": active,
            "updated_at": 1732711466,
            "created_at": 1732711466,
        },
        "preset": True,
        "action_ids": [],
    }


class QwenWebDouble(ScriptedServer):
    """`require_cookie` and `require_version_header` make it refuse completions without them."""

    completions_path = COMPLETIONS

    def __init__(
        self,
        *,
        require_cookie: bool = False,
        require_version_header: bool = False,
        nested_models: bool = False,
        delay_s: float = 0,
    ) -> None:
        super().__init__()
        self.require_cookie = require_cookie
        self.require_version_header = require_version_header
        # `{success, data: {data: [...]}}` instead of `{data: [...]}`.
        self.nested_models = nested_models
        self.delay_s = delay_s
        # The session's tokens; null: every session is good, and none can be renewed.
        self.access_token: str | None = None
        self.refresh_token: str | None = None
        # What the next renewals give.
        self.next_tokens: list[tuple[str, str]] = []
        self.chats: dict[str, Chat] = {}
        # By id, in their order.
        self.uploads: dict[str, Upload] = {}
        # What a document says before it is read, and then: `success` or `failed`.
        self.parse_answers = ["pending"]
        self.parse_end = "success"
        self._lent: dict[str, tuple[str, str]] = {}
        self.models = [
            model_entry("qwen3-max"),
            model_entry("qwen3-coder-plus"),
            model_entry("qwen3-vl-plus", thinking=True),
            model_entry("qwen2-retired", active=False),
        ]

    @property
    def turns(self) -> list[Recorded]:
        """The completions calls so far."""
        return self.requests_to(COMPLETIONS)

    async def answer(self, request: Recorded, exchange: Exchange) -> None:
        if request.method == "PUT" and request.path.startswith(f"/{BUCKET}/"):
            await self._store(request, exchange)
            return
        route = {
            ("GET", MODELS): self._list_models,
            ("POST", NEW_CHAT): self._new_chat,
            ("POST", COMPLETIONS): self._complete,
            ("POST", STOP): self._stop,
            ("GET", SESSION): self._session,
            ("GET", REFRESH): self._refresh,
            ("POST", STS_TOKEN): self._lend,
            ("POST", PARSE): self._parse,
            ("POST", PARSE_STATUS): self._parse_status,
        }.get((request.method, request.path))
        if route is None:
            await self.send_json(exchange, {"detail": "Not Found"}, status=404)
            return
        reply = self.next_reply(request.path)
        if reply is not None and await self.send_simple(exchange, reply):
            return
        await route(request, exchange, reply)

    def _knows(self, request: Recorded) -> bool:
        return self.access_token in (None, cookies_of(request).get("token"))

    async def _session(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        if self._knows(request):
            user = {"id": str(uuid.UUID(int=1)), "email": "planted@example.org", "role": "user"}
            await self.send_json(exchange, user)
        else:
            await self.send_json(exchange, {"detail": "Unauthorized"}, status=401)

    async def _refresh(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        if "x-request-origin" not in request.headers:
            await self._error(exchange, "Bad_Request", "Missing origin")
        elif not self.next_tokens or cookies_of(request).get("refresh_token") != self.refresh_token:
            await self._error(exchange, "Unauthorized", "Unauthorized")
        else:
            # The former refresh token is used up.
            self.access_token, self.refresh_token = self.next_tokens.pop(0)
            tokens = {"access_token": self.access_token, "refresh_token": self.refresh_token}
            await self._success(exchange, tokens)

    async def _lend(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        wanted = request.body
        if not self._knows(request):
            await self._error(exchange, "Unauthorized", "Token has expired")
            return
        if wanted["filetype"] not in ("image", "video", "audio", "file"):
            await self._error(exchange, "RequestValidationError", "Field 'filetype': not allowed")
            return
        file_id = str(uuid.uuid4())
        path = f"{uuid.UUID(int=1)}/{file_id}_{wanted['filename']}"
        endpoint = f"http://{request.headers['host']}"
        url = f"{endpoint}/{BUCKET}/{path}?x-oss-expires=300&x-oss-signature=planted"
        self.uploads[file_id] = Upload(file_id, path, wanted, url)
        key_id = f"STS.{len(self.uploads)}"
        self._lent[key_id] = f"secret of {key_id}", f"token of {key_id}"
        lent = {
            "access_key_id": key_id,
            "access_key_secret": self._lent[key_id][0],
            "security_token": self._lent[key_id][1],
            "file_url": url,
            "file_path": path,
            "file_id": file_id,
            "bucketname": BUCKET,
            "region": f"oss-{_REGION}",
            "endpoint": endpoint,
        }
        await self._success(exchange, lent)

    async def _store(self, request: Recorded, exchange: Exchange) -> None:
        scope = exchange.scope
        code = oss.why_refused(
            "PUT",
            scope["raw_path"].decode(),
            scope["query_string"].decode(),
            request.headers,
            secrets=self._lent,
            region=_REGION,
        )
        key = request.path.removeprefix(f"/{BUCKET}/")
        upload = next((found for found in self.uploads.values() if found.path == key), None)
        if reply := self.next_reply(BUCKET):
            await self.send_simple(exchange, reply)
        elif code or upload is None:
            xml = f"<Error><Code>{code or 'AccessDenied'}</Code></Error>"
            await self.send_json(exchange, xml, status=403)
        else:
            body = request.body
            upload.content = body if isinstance(body, bytes) else json.dumps(body).encode()
            upload.content_type = request.headers["content-type"]
            await exchange.whole(200, {}, b"")

    async def _parse(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        upload = self.uploads.get(request.body.get("file_id"))
        if upload is None or upload.content is None:
            await self._error(exchange, "Not_Found", "The file does not exist")
            return
        upload.parsed = "pending"
        await self._success(exchange, {"status": "pending"})

    async def _parse_status(
        self, request: Recorded, exchange: Exchange, reply: Reply | None
    ) -> None:
        found = []
        for file_id in request.body["file_id_list"]:
            upload = self.uploads[file_id]
            upload.parsed = self.parse_answers.pop(0) if self.parse_answers else self.parse_end
            found.append({"file_id": file_id, "status": upload.parsed})
        await self._success(exchange, found)

    def _file_problem(self, entry: dict[str, Any]) -> str | None:
        upload = self.uploads.get(entry["id"])
        if upload is None or upload.content is None or entry["url"] != upload.url:
            return "The file does not exist"
        if entry["size"] != len(upload.content) or entry["type"] != upload.wanted["filetype"]:
            return "The file is another one"
        if entry["type"] == "file" and upload.parsed != "success":
            return "The file was not parsed"
        return None

    async def _list_models(self, _: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        listed: dict[str, Any] = {"data": self.models}
        if self.nested_models:
            listed = {"success": True, "data": listed}
        await self.send_json(exchange, listed)

    async def _new_chat(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        chat = Chat(str(uuid.uuid4()), request.body["models"][0])
        self.chats[chat.id] = chat
        await self._success(exchange, {"id": chat.id})

    async def _stop(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        chat = self.chats.get(request.body.get("chat_id"))
        if chat is None or request.query.get("chat_id") != chat.id:
            await self._error(exchange, "CHAT_NOT_FOUND", "This chat has been deleted")
            return
        if chat.stopped is not None and chat.running == request.body.get("response_id"):
            chat.stopped.set()
            chat.running = chat.stopped = None
        await self._success(exchange, {"status": True})

    async def _complete(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        problem = self._problem(request)
        if problem is not None:
            await self._error(exchange, *problem)
            return
        body = request.body
        chat, parent_id = self.chats[body["chat_id"]], body["parent_id"]
        prompt = body["messages"][0]["content"]
        user = chat.add("user", parent_id, prompt)
        node = chat.add("assistant", user.id)
        if reply is None:
            reply = Reply(
                text=small_model.answer(chat.path(parent_id), prompt), delay_s=self.delay_s
            )
        stopped = asyncio.Event()
        chat.running, chat.stopped = node.id, stopped
        try:
            is_whole = await self.send_stream(
                exchange,
                reply,
                self._records(chat, user, node, reply),
                endless_record=self._delta(node, "again ", "answer"),
                stopped=stopped,
            )
        finally:
            if chat.running == node.id:
                chat.running = chat.stopped = None
        if is_whole:
            node.content = reply.text or ""

    def _problem(self, request: Recorded) -> tuple[str, str] | None:
        body = request.body
        if not self._knows(request):
            return "Unauthorized", "Token has expired"
        if self.require_cookie and "token=" not in request.headers.get("cookie", ""):
            return "Unauthorized", "Unauthorized"
        if self.require_version_header and "version" not in request.headers:
            return "Bad_Request", "Something wrong with request!"
        if "chat_id" not in request.query or "chat_id" not in body:
            return "RequestValidationError", "Field 'chat_id': Field required"
        if len(body["messages"]) != 1 or body["messages"][0]["role"] != "user":
            return "Bad_Request", "Invalid input too many messages."
        chat = self.chats.get(body["chat_id"])
        if chat is None or request.query["chat_id"] != chat.id:
            return "CHAT_NOT_FOUND", "This chat has been deleted"
        message, parent_id = body["messages"][0], body["parent_id"]
        if not message["parentId"] == message["parent_id"] == parent_id:
            return "Bad_Request", "Something wrong with request!"
        if parent_id is not None and parent_id not in chat.nodes:
            return "Bad_Request", f"Invalid input chat parent_id {parent_id} is not exist."
        if chat.running is not None:
            return "Bad_Request", "The chat is in progress!"
        for entry in message["files"]:
            if problem := self._file_problem(entry):
                return "Bad_Request", problem
        return None

    def _records(self, chat: Chat, user: Node, node: Node, reply: Reply) -> list[bytes]:
        if reply.raw is not None:
            raw = reply.raw.replace(_FIXTURE_CHAT, chat.id.encode())
            raw = raw.replace(_FIXTURE_USER, user.id.encode())
            raw = raw.replace(_FIXTURE_ANSWER, node.id.encode())
            return raw.splitlines(keepends=True)
        created = {"chat_id": chat.id, "parent_id": user.id, "response_id": node.id}
        records = [b'data: {"response.created":%s} \n\n' % json.dumps(created).encode()]
        count = 0
        for phase, text in (("think", reply.reasoning), ("answer", reply.text or "")):
            if phase == "think" and not text:
                continue
            for piece in small_model.pieces(text):
                count += 1
                records.append(self._delta(node, piece, phase, tokens=count))
            if phase == "think":
                records.append(self._delta(node, "", phase, status="finished"))
        records += [self._delta(node, "", "answer", tokens=count)] * 2
        records.append(self._delta(node, "", "answer", status="finished"))
        return records

    def _delta(
        self, node: Node, text: str, phase: str, *, status: str = "typing", tokens: int = 0
    ) -> bytes:
        delta = {"role": "assistant", "content": text, "phase": phase, "status": status}
        record: dict[str, Any] = {"choices": [{"delta": delta}], "response_id": node.id}
        if status == "typing":
            record["usage"] = {
                "input_tokens": 33,
                "output_tokens": tokens,
                "characters": 0,
                "total_tokens": 33 + tokens,
                "input_tokens_details": {"text_tokens": 33},
                "output_tokens_details": {"text_tokens": tokens},
                "cached_tokens": 0,
            }
            record["timestamp"] = int(time.time())
        return b"data: %s\n\n" % json.dumps(record, ensure_ascii=False).encode()

    async def _success(self, exchange: Exchange, data: Any) -> None:
        await self.send_json(
            exchange, {"success": True, "request_id": str(uuid.uuid4()), "data": data}
        )

    async def _error(self, exchange: Exchange, code: str, details: str) -> None:
        await self.send_json(
            exchange,
            {
                "success": False,
                "request_id": str(uuid.uuid4()),
                "data": {"code": code, "details": details},
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Imitate the chat.qwen.ai web API on loopback.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0, help="before every record")
    arguments = parser.parse_args()
    uvicorn.run(
        QwenWebDouble(delay_s=arguments.delay_ms / 1000),
        port=arguments.port,
        lifespan="off",
        ws="none",
        access_log=False,
    )


if __name__ == "__main__":
    main()

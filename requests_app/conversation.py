"""One line of a session's tree as an admin page shows it: blocks of plain text, long parts folded.

Everything here is text to be escaped by the template; nothing is rendered as markup.
"""

from __future__ import annotations

import json as stdlib_json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenproxy import display
from qwenproxy.wire import json
from qwenproxy.wire.history import text_of
from qwenproxy.wire.json import JSONObject, JSONValue
from requests_app.models import Request, Response
from sessions_app.models import Message, Session
from sessions_app.transcript import load_line, message_body

PAGE_MESSAGES = 100
MAX_LINES = 20
# Longer texts are cut, unless the whole is asked for.
MAX_CHARS = 64_000
_NOT_RECORDED = "(not recorded: the API key keeps no content)"


@dataclass(frozen=True, slots=True)
class Fold:
    """A part that opens on demand."""

    label: str
    text: str


@dataclass(slots=True)
class Block:
    """A message, or a call that brought none."""

    kind: str
    label: str
    text: str = ""
    folds: list[Fold] = field(default_factory=list)
    response: Response | None = None

    @property
    def duration(self) -> str:
        return display.duration(self.response.duration_ms) if self.response else ""


@dataclass(frozen=True, slots=True)
class Line:
    """A page of one line, and where else to look."""

    blocks: list[Block]
    head: list[Fold]
    leaf_id: int | None
    start: int
    length: int
    # Last messages of the session's other lines, newest first.
    others: Sequence[Message]
    is_cut: bool

    @property
    def first(self) -> int:
        return self.start + 1

    @property
    def last(self) -> int:
        return min(self.start + PAGE_MESSAGES, self.length)

    @property
    def earlier(self) -> int | None:
        return max(0, self.start - PAGE_MESSAGES) if self.start else None

    @property
    def later(self) -> int | None:
        return self.start + PAGE_MESSAGES if self.last < self.length else None


def pretty(value: JSONValue) -> str:
    """Write JSON for people; lone surrogates, which no page can hold, as their escapes."""
    text = stdlib_json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def size(text: str) -> str:
    return display.size(len(text.encode("utf-8", "replace")))


def load_conversation(
    session: Session, *, leaf_id: int | None = None, start: int = 0, is_whole: bool = False
) -> Line:
    """Load a page of the line to `leaf_id`, or to the newest answer; five queries at most.

    A leaf that is not the session's counts as none. Texts are cut unless `is_whole`.
    """
    leaves = Message.objects.filter(session=session).order_by("-id").only("position", "role")
    wanted = leaf_id or session.last_reply_id
    leaf = leaves.filter(pk=wanted).first() if wanted else None
    leaf = leaf or leaves.first()
    if leaf is None:
        return Line([], _head(session), None, 0, 0, [], is_cut=False)
    line = load_line(leaf.pk, start=start, limit=PAGE_MESSAGES)
    cutter = _Cutter(is_whole)
    blocks = _blocks(line, _responses(session, line), cutter)
    others = leaves.filter(children=None).exclude(pk=leaf.pk).only("position", "created_at")
    return Line(
        blocks,
        [Fold(fold.label, cutter.cut(fold.text)) for fold in _head(session)],
        leaf.pk,
        start,
        leaf.position + 1,
        list(others[:MAX_LINES]),
        cutter.has_cut,
    )


class _Cutter:
    def __init__(self, is_whole: bool) -> None:
        self.has_cut = False
        self._is_whole = is_whole

    def cut(self, text: str) -> str:
        text = json.plain(text)
        if self._is_whole or len(text) <= MAX_CHARS:
            return text
        self.has_cut = True
        return f"{text[:MAX_CHARS]}\n… ({size(text)} in all)"


def _head(session: Session) -> list[Fold]:
    """System text and tools of the newest request."""
    row = (
        Request.objects.filter(session=session)
        .order_by("-id")
        .values("system__body", "tools__body")
        .first()
    )
    if row is None:
        return []
    folds = []
    if row["system__body"]:
        stored: Any = json.loads_text(row["system__body"])
        text = "\n\n".join(text_of(message) for message in stored)
        folds.append(Fold(f"System · {size(text)}", text))
    if row["tools__body"]:
        tools: Any = json.loads_text(row["tools__body"])
        text = pretty(tools)
        folds.append(Fold(f"{len(tools)} tools · {size(text)}", text))
    return folds


def _responses(session: Session, line: Sequence[Message]) -> Mapping[int | None, list[Response]]:
    """The answers to the prompts of a line, by prompt."""
    prompts = {message.pk for message in line} | {message.parent_id for message in line}
    rows = (
        Response.objects.filter(session=session, request__prompt__in=prompts - {None})
        .select_related("request")
        .only(
            "reply_id",
            "status",
            "error_code",
            "error_message",
            "http_status",
            "prompt_tokens",
            "completion_tokens",
            "duration_ms",
            "reasoning",
            "created_at",
            "request__prompt_id",
            "request__model",
        )
        .order_by("id")
    )
    by_prompt: dict[int | None, list[Response]] = {}
    for row in rows:
        by_prompt.setdefault(row.request.prompt_id, []).append(row)
    return by_prompt


def _blocks(
    line: Sequence[Message], responses: Mapping[int | None, list[Response]], cutter: _Cutter
) -> list[Block]:
    blocks = []
    for message in line:
        given = responses.get(message.parent_id, []) if message.role == "assistant" else []
        response = next((row for row in given if row.reply_id == message.pk), None)
        blocks.append(_block(message, response, cutter))
        # Calls that ended without an answer; other answers are on other lines.
        blocks += [_failure(row) for row in responses.get(message.pk, []) if row.reply_id is None]
    return blocks


def _block(message: Message, response: Response | None, cutter: _Cutter) -> Block:
    body = message_body(message)
    # The form in which `keeping.KeepMetadata` stores a message.
    text = _NOT_RECORDED if body.keys() == {"role"} else text_of(body)
    label = message.role.capitalize()
    if message.role in ("tool", "function", "system", "developer"):
        return Block("quiet", label, folds=[Fold(f"{label} · {size(text)}", cutter.cut(text))])
    folds = []
    if response is not None and response.reasoning:
        reasoning = response.reasoning
        folds.append(Fold(f"Reasoning · {size(reasoning)}", cutter.cut(reasoning)))
    for label_of_part, part in _parts(body):
        folds.append(Fold(label_of_part, cutter.cut(pretty(part))))
    kind = "assistant" if message.role == "assistant" else "user"
    return Block(kind, label, cutter.cut(text), folds, response)


def _parts(body: JSONObject) -> list[tuple[str, JSONValue]]:
    """What a message holds besides its text: files and calls."""
    parts: list[tuple[str, JSONValue]] = []
    content = body.get("content")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            parts.append((json.plain(str(kind or "part")), part))
    calls = body.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            name = json.plain(str(function.get("name")))
            parts.append((f"Tool call {name}", _arguments(function.get("arguments"))))
        else:
            parts.append(("Tool call", call))
    return parts


def _arguments(arguments: JSONValue) -> JSONValue:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads_text(arguments)
    except json.JSONError:
        return arguments


def _failure(row: Response) -> Block:
    if row.status == "in_progress":
        return Block("running", "Running", "The answer has not come to its end yet.", response=row)
    code = " ".join(str(part) for part in (row.http_status, row.error_code) if part)
    text = row.error_message or "No answer was recorded."
    return Block("error", f"{row.status.capitalize()} {code}".strip(), text, response=row)

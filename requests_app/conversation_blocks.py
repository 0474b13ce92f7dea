"""Messages and answers as the blocks of a transcript: plain text, its long or technical parts folded.

Calls of tools stand in the answer that made them, each with its result. Everything here is text to be
escaped by the template; nothing is rendered as markup.
"""

from __future__ import annotations

import json as stdlib_json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.utils.text import Truncator

from qwenproxy import display
from qwenproxy.access.models import Recorded
from qwenproxy.wire import attachments, json
from qwenproxy.wire.history import text_of
from qwenproxy.wire.json import JSONObject, JSONValue
from requests_app.arrived import Arrived
from requests_app.files import describe, described
from requests_app.keeping import is_bare
from requests_app.pictures import picture_url
from requests_app.rollups import ERRORS
from requests_app.ways_out import WAYS_OUT
from sessions_app.heads import Head
from sessions_app.transcript import Fork

# Longer texts are cut, unless the whole is asked for.
MAX_CHARS = 64_000
# Beyond so much on one page, long texts are shown by their beginnings.
_MAX_PAGE_CHARS = 500_000
_BEGINNING_CHARS = 4000
_MAX_SUMMARY_CHARS = 90
NOT_RECORDED = "(not recorded: the API key keeps no content)"
_TEXT_PARTS = ("text", "input_text", "output_text")
_TOOL_ROLES = ("tool", "function")
STILL_COMING = "The answer is still coming."
_ENDED = {
    "cancelled": "Cancelled before its end: this is what had arrived.",
    "interrupted": "Interrupted before its end: this is what had arrived.",
    "failed": "Failed before its end: this is what had arrived.",
    "in_progress": STILL_COMING,
}


@dataclass(frozen=True, slots=True)
class Text:
    """A text, cut where it is long."""

    text: str
    # Names it among the page's; its anchor.
    name: str
    # How long the whole is, where it is cut.
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Fold:
    """A part that opens on demand."""

    label: str
    size: str
    texts: Sequence[tuple[str, Text]]
    # reasoning, tool, part, context.
    kind: str = "context"
    # What stands beside the label: a call's arguments.
    summary: str = ""
    # Of a call's result; empty: none came.
    result: str = ""
    # The whole of it was asked for.
    is_open: bool = False
    # Addresses of images.
    pictures: Sequence[str] = ()


@dataclass(slots=True)
class Block:
    """A message, or a call that brought none."""

    # user, assistant, tool, note, error, running.
    kind: str
    label: str
    anchor: str
    text: Text | None = None
    folds: list[Fold] = field(default_factory=list)
    # Values of `Response` and its request.
    answers: Sequence[Mapping[str, Any]] = ()
    fork: Fork | None = None
    # What is to be said about it.
    note: str = ""
    # How many calls that ended like these are not shown.
    more: int = 0

    @property
    def is_tool_work(self) -> bool:
        """There is nothing in it but calls of tools and their results."""
        is_silent = self.text is None and not self.note
        return self.kind == "tool" or (
            self.kind == "assistant" and is_silent and any(f.kind == "tool" for f in self.folds)
        )


def pretty(value: JSONValue) -> str:
    """Write JSON for people; lone surrogates, which no page can hold, as their escapes."""
    text = stdlib_json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def size(text: str, cut_from: int | None = None) -> str:
    """How long a text is; about how long, where it is the beginning of what is stored in so many bytes."""
    if cut_from is not None:
        return f"≈ {display.size(cut_from)}"
    return display.size(len(text.encode("utf-8", "replace")))


class Cutter:
    """Cuts long texts, but for the one asked for."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._left = _MAX_PAGE_CHARS

    def text(self, text: str, name: str, cut_from: int | None = None) -> Text:
        if name == self._shown:
            return Text(json.plain(text), name)
        longest = MAX_CHARS if self._left > 0 else _BEGINNING_CHARS
        self._left -= min(len(text), longest)
        if len(text) <= longest and cut_from is None:
            return Text(json.plain(text), name)
        return Text(json.plain(text[:longest]), name, whole=size(text, cut_from))

    def fold(
        self,
        label: str,
        size: str,
        text: str,
        name: str,
        kind: str = "context",
        cut_from: int | None = None,
    ) -> Fold:
        is_open = name == self._shown
        shown = self.text(text, name, cut_from)
        return Fold(label, size, [("", shown)], kind, is_open=is_open)

    def is_shown(self, texts: Sequence[tuple[str, Text]]) -> bool:
        return any(text.name == self._shown for _, text in texts)


class Reader:
    """Makes blocks of the messages of a page, with what is known of their answers and forks."""

    def __init__(
        self,
        cutter: Cutter,
        answers: Mapping[int | None, Sequence[Mapping[str, Any]]],
        forks: Mapping[int, Fork],
        *,
        missing: str = NOT_RECORDED,
    ) -> None:
        self._cutter = cutter
        self._answers = answers
        self._forks = forks
        # In the place of content.
        self._missing = missing

    def read(self, line: Sequence[Head]) -> list[Block]:
        blocks: list[Block] = []
        if line and line[0].parent_id is None:
            blocks += self.failures(None)
        at = 0
        while at < len(line):
            end = at + 1
            if line[at].role == "assistant":
                while end < len(line) and line[end].role in _TOOL_ROLES:
                    end += 1
            blocks += self._turn(line[at], line[at + 1 : end])
            at = end
        return blocks

    def _turn(self, message: Head, results: Sequence[Head]) -> list[Block]:
        """A message with the results of its calls, and what failed right after it."""
        unused = {row.pk: row for row in results}
        blocks = [self._block(message, unused), *self.failures(message.pk)]
        for row in results:
            if row.pk in unused or row.pk in self._forks:
                # A result whose call nobody made, or of which there are several.
                blocks.append(self._block(row, {}))
            blocks += self.failures(row.pk)
        return blocks

    def failures(self, prompt_id: int | None) -> list[Block]:
        """Calls that ended without an answer; other answers are messages, of this line or others."""
        rows = self._answers.get(prompt_id, ())
        return [self._failure(row) for row in rows if row["reply_id"] is None]

    def _block(self, message: Head, results: dict[int, Head]) -> Block:
        """Show a message; takes what it uses out of `results`."""
        body = message.body
        name = f"m{message.pk}"
        block = Block("user", message.role.capitalize(), name, fork=self._forks.get(message.pk))
        # The form in which `keeping.KeepMetadata` stores a message.
        text = self._missing if is_bare(body) else text_of(body)
        if message.role in _TOOL_ROLES:
            if not is_bare(body):
                text = _result_text(body)
            cut_from = message.cut_from
            fold = self._cutter.fold(
                "Tool result", size(text, cut_from), text, name, "tool", cut_from
            )
            fold = replace(fold, pictures=_pictures(message))
            block.kind, block.folds = "tool", [fold]
            return block
        if message.role in ("system", "developer"):
            length = size(text, message.cut_from)
            fold = self._cutter.fold(block.label, length, text, name, cut_from=message.cut_from)
            block.kind, block.folds = "note", [fold]
            return block
        if message.role == "assistant":
            self._answer(block, message)
        if text:
            block.text = self._cutter.text(text, name, message.cut_from)
        block.folds += self._parts(body, message.pk)
        block.folds += self._calls(body, name, results)
        return block

    def _answer(self, block: Block, message: Head) -> None:
        given = self._answers.get(message.parent_id, ())
        block.kind = "assistant"
        block.answers = [row for row in given if row["reply_id"] == message.pk]
        if not block.answers:
            block.label = "Assistant, as the client sent it"
            return
        row = block.answers[0]
        block.more = sum(each["more"] for each in block.answers)
        block.note = _ENDED.get(row["status"], "")
        if block.note and row["client_left"]:
            block.note += " The client left."
        reasoning = row["reasoning"]
        if reasoning:
            tokens = row["reasoning_tokens"]
            length = f"{display.number(tokens)} tok" if tokens else size(reasoning)
            name = f"{block.anchor}-r"
            block.folds.append(self._cutter.fold("Reasoning", length, reasoning, name, "reasoning"))

    def _parts(self, body: JSONObject, message_id: int) -> list[Fold]:
        """What a message holds besides its text: images, files."""
        name = f"m{message_id}"
        kept = body.get(attachments.FILES)
        if is_bare(body) and isinstance(kept, list):
            return [
                self._cutter.fold(
                    "file", describe(facts), pretty(facts), f"{name}-p{number}", "part"
                )
                for number, facts in enumerate(kept)
                if isinstance(facts, dict)
            ]
        content = body.get("content")
        if not isinstance(content, list):
            return []
        shown = described(body)["content"]
        assert isinstance(shown, list)
        folds = []
        for number, (part, words) in enumerate(zip(content, shown, strict=True)):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _TEXT_PARTS:
                text = pretty(words)
                label = Truncator(json.plain(str(kind or "part"))).chars(40)
                found = list(attachments.references([part]))
                length = "; ".join(map(describe, found)) or size(text)
                fold = self._cutter.fold(label, length, text, f"{name}-p{number}", "part")
                urls = [url for facts in found if (url := picture_url(message_id, facts))]
                folds.append(replace(fold, pictures=urls))
        return folds

    def _calls(self, body: JSONObject, name: str, results: dict[int, Head]) -> list[Fold]:
        calls = body.get("tool_calls")
        found = list(calls) if isinstance(calls, list) else []
        if isinstance(body.get("function_call"), dict):
            found.append({"function": body["function_call"]})
        return [self._call(call, f"{name}-c{number}", results) for number, call in enumerate(found)]

    def _call(self, call: JSONValue, name: str, results: dict[int, Head]) -> Fold:
        call = call if isinstance(call, dict) else {"call": call}
        function = call.get("function")
        function = function if isinstance(function, dict) else {"name": "?", "arguments": call}
        arguments = _parsed(function.get("arguments"))
        written = arguments if isinstance(arguments, str) else pretty(arguments)
        texts = [("Arguments", self._cutter.text(written, f"{name}-a"))]
        result, length = _take(call.get("id"), results), ""
        pictures: Sequence[str] = ()
        if result is not None:
            text = self._missing if is_bare(result.body) else _result_text(result.body)
            texts.append(("Result", self._cutter.text(text, f"{name}-r", result.cut_from)))
            length = size(text, result.cut_from)
            pictures = _pictures(result)
        label = Truncator(json.plain(str(function.get("name")))).chars(60)
        return Fold(
            label,
            "",
            texts,
            "tool",
            summary=_signature(arguments),
            result=length,
            is_open=self._cutter.is_shown(texts),
            pictures=pictures,
        )

    def _failure(self, row: Mapping[str, Any]) -> Block:
        anchor = f"request-{row['request_id']}"
        code = row["error_code"] or row["error_type"]
        if row["status"] == "in_progress":
            return self._running(row, anchor)
        label = " ".join(str(part) for part in (row["http_status"], code) if part)
        label = json.plain(label) or row["status"].capitalize()
        kind = "error" if row["status"] in ERRORS else "note"
        text = self._cutter.text(row["error_message"] or "No answer was recorded.", anchor)
        if row["request__recorded"] != Recorded.EVERYTHING and not row["error_message"]:
            text = Text(self._missing, anchor)
        note = WAYS_OUT.get(code or "", "")
        block = Block(kind, label, anchor, text, answers=[row], note=note, more=row["more"])
        if row["said"]:
            said = pretty(json.loads_text(row["said"]))
            block.folds = [self._cutter.fold("Upstream body", size(said), said, f"{anchor}-u")]
        return block

    def _running(self, row: Mapping[str, Any], anchor: str) -> Block:
        arrived: Arrived | None = row["arrived"]
        block = Block("running", "In progress", anchor, answers=[row], note=STILL_COMING)
        block.more = row["more"]
        if arrived is None:
            return block
        if arrived.is_end_only:
            block.note += " This is the end of what has arrived."
        if arrived.text:
            block.text = Text(arrived.text, anchor)
        if arrived.reasoning:
            length, name = size(arrived.reasoning), f"{anchor}-r"
            block.folds = [
                self._cutter.fold("Reasoning", length, arrived.reasoning, name, "reasoning")
            ]
        return block


def _take(call_id: JSONValue, results: dict[int, Head]) -> Head | None:
    """The result of a call, by its id; by its place where ids are missing."""
    for pk, result in results.items():
        own_id = result.body.get("tool_call_id")
        if own_id == call_id or not (own_id and call_id):
            return results.pop(pk)
    return None


def _result_text(body: JSONObject) -> str:
    text = text_of(body)
    content = body.get("content")
    if isinstance(content, list) and any(
        not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS for part in content
    ):
        return pretty(described(body)["content"])
    return text


def _pictures(message: Head) -> list[str]:
    """Where the images of a tool's result are shown."""
    found = attachments.references(message.body.get("content"))
    return [url for facts in found if (url := picture_url(message.pk, facts))]


def _parsed(arguments: JSONValue) -> JSONValue:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads_text(arguments)
    except json.JSONError:
        return arguments


def _signature(arguments: JSONValue) -> str:
    """A call's arguments in one short line: `query="the weather", n=3`."""
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        # It is no JSON.
        text = json.plain(arguments[: 2 * _MAX_SUMMARY_CHARS])
        return Truncator(" ".join(text.split())).chars(_MAX_SUMMARY_CHARS)
    if not isinstance(arguments, dict):
        return _short(arguments)
    pairs = (f"{json.plain(name)[:40]}={_short(value)}" for name, value in arguments.items())
    return Truncator(", ".join(pairs)).chars(_MAX_SUMMARY_CHARS)


def _short(value: JSONValue) -> str:
    if isinstance(value, str):
        # No more than is shown is written.
        value = value[:_MAX_SUMMARY_CHARS]
    text = pretty(value) if not isinstance(value, dict | list) else "…"
    return Truncator(" ".join(text.split())).chars(60)

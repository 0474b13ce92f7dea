"""`response_format` for an upstream that has none: told to the model, and the answer checked.

Text is held back until it is known to fit: what a stream has said cannot be taken back. An answer that
does not fit is asked for once more, with what was wrong; the second one fits or the turn fails. An
answer that calls tools, or that did not end by itself, is handed on as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from qwenproxy.errors import AnswerTooLong, InvalidJSONAnswer, InvalidRequest
from qwenproxy.upstream.protocol import ChatTarget, UpstreamCall
from qwenproxy.wire.events import (
    Again,
    Event,
    Finished,
    LogProbs,
    RawText,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
    sum_usage,
)
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.json_answers import find_json, parse_found

if TYPE_CHECKING:
    from qwenproxy.upstream.json_schema import Schema

Ask = Callable[[UpstreamCall], AsyncGenerator[Sequence[Event], None]]

MAX_ANSWER_CHARS = 2**20
_QUOTED_CHARS = 2_000
_ALONE = "and nothing else: no explanation, no Markdown fence."


class AnswerForm:
    """What an answer's text must be: a JSON object, or JSON that fits a schema."""

    def __init__(self, name: str = "", description: str = "", schema: Schema | None = None) -> None:
        self._schema = schema
        if schema is None:
            self.instruction = f"Answer with one JSON object {_ALONE}"
            return
        called = f" ({name}{': ' if name and description else ''}{description})"
        self.instruction = (
            f"Answer with JSON {_ALONE} It must fit this JSON schema"
            f"{called if name or description else ''}:\n{schema.text}"
        )

    async def check(self, text: str) -> tuple[str, str]:
        """Return the answer's JSON and an empty text, or an empty text and what is wrong with it.

        Raises:
            InvalidJSONAnswer: it could not be checked within bounds.
        """
        return await asyncio.to_thread(self._check, text)

    def _check(self, text: str) -> tuple[str, str]:
        found = find_json(text)
        if found is None:
            return "", "$: it is not JSON"
        value = parse_found(found)
        if self._schema is not None:
            problem = self._schema.problem(value)
        else:
            problem = None if isinstance(value, dict) else "$: it is not a JSON object"
        return ("", problem) if problem else (found, "")


async def read_form(parameters: JSONObject) -> AnswerForm | None:
    """The form that a request asks for; null: any text will do.

    Raises:
        InvalidRequest: naming the field.
    """
    asked = parameters.get("response_format")
    if not isinstance(asked, dict) or asked.get("type") in (None, "text"):
        return None
    if asked["type"] == "json_object":
        return AnswerForm()
    described = asked.get("json_schema")
    if asked["type"] != "json_schema" or not isinstance(described, dict):
        raise InvalidRequest(
            "response_format.type must be text, json_object or json_schema with this upstream",
            param="response_format.type",
        )
    name, description = described.get("name"), described.get("description")
    try:
        schema = await asyncio.to_thread(_parse_schema, described.get("schema"))
    except ValueError as exc:
        param = "response_format.json_schema.schema"
        raise InvalidRequest(f"{param}: {exc}", param=param) from exc
    return AnswerForm(
        name if isinstance(name, str) else "",
        description if isinstance(description, str) else "",
        schema,
    )


def _parse_schema(schema: JSONValue) -> Schema:
    # Most processes never need it: see there.
    from qwenproxy.upstream.json_schema import parse_schema

    return parse_schema(schema)


async def checked(call: UpstreamCall, ask: Ask) -> AsyncGenerator[Sequence[Event], None]:
    """Ask for an answer in the form that the request asks for, twice at most.

    Raises:
        InvalidRequest: the form cannot be understood.
        InvalidJSONAnswer: neither answer fits.
        UpstreamError: as `ask` does.
    """
    form = await read_form(call.parameters)
    if form is None:
        async with aclosing(ask(call)) as batches:
            async for events in batches:
                yield events
        return
    note, usage = form.instruction, None
    for is_last in (False, True):
        answer = _HeldAnswer(usage)
        async with aclosing(ask(replace(call, note=note))) as batches:
            async for events in batches:
                if passed := answer.take(events):
                    yield passed
        if answer.finished is None or answer.is_free:
            if rest := answer.rest(answer.text):
                yield rest
            return
        found, problem = await form.check(answer.text)
        if not problem:
            yield answer.rest(found)
            return
        if is_last:
            if answer.usage is not None:
                yield (answer.usage,)
            raise InvalidJSONAnswer(
                f"the model's answer does not fit response_format, twice: {problem}",
                body=answer.text,
            )
        usage = answer.usage
        yield (Again(f"{InvalidJSONAnswer.code}: {problem}"),)
        note = (
            f"{form.instruction}\n\nYour last answer was not accepted: {problem}. It began:\n"
            f"{answer.text[:_QUOTED_CHARS]}\n\nAnswer again, with all of it."
        )
        call = _below_the_same(call, answer.started)


def _below_the_same(call: UpstreamCall, started: Started) -> UpstreamCall:
    """The call for a second answer beside the first: one chat, and nothing refused above what follows."""
    if call.chat is not None or started.chat_id is None:
        return call
    return replace(call, chat=ChatTarget(started.chat_id, None, 0))


class _HeldAnswer:
    """One answer while it is read: its text, counts and end are held back."""

    def __init__(self, spent: UsageReport | None) -> None:
        self.started = Started()
        self.finished: Finished | None = None
        # Of this answer and those before it.
        self.usage = spent
        self._spent = spent
        self._texts: list[str] = []
        self._chars = 0
        self._logprobs: list[Event] = []
        self._has_raw = False
        self._has_calls = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def is_free(self) -> bool:
        """Not to be checked: it calls tools, or did not come to its own end."""
        return self._has_calls or (self.finished is not None and self.finished.reason != "stop")

    def take(self, events: Sequence[Event]) -> list[Event]:
        """Return what may be handed on at once."""
        passed: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text):
                    self._hold(text, passed)
                case UsageReport():
                    self.usage = sum_usage(self._spent, event)
                case LogProbs():
                    self._logprobs.append(event)
                case Finished():
                    self.finished = event
                case Started():
                    self.started = event
                    passed.append(event)
                case RawText():
                    self._has_raw = True
                    passed.append(event)
                case ToolCallDelta():
                    self._has_calls = True
                    passed += (*self._take_held(), event)
                case _:
                    passed.append(event)
        return passed

    def rest(self, text: str) -> list[Event]:
        """What is left to hand on, with this as its text."""
        events: list[Event] = [*self._logprobs, *([TextDelta(text)] if text else [])]
        if self.usage is not None:
            events.append(self.usage)
        if self.finished is not None:
            events.append(self.finished)
        return events

    def _hold(self, text: str, passed: list[Event]) -> None:
        self._chars += len(text)
        if self._chars > MAX_ANSWER_CHARS:
            raise AnswerTooLong(
                f"an answer that is checked against response_format may have {MAX_ANSWER_CHARS:,}"
                " characters"
            )
        self._texts.append(text)
        if not self._has_raw:
            # A reader of calls records the text itself, before what it read from it.
            passed.append(RawText(text))

    def _take_held(self) -> list[Event]:
        text = self.text
        self._texts.clear()
        return [TextDelta(text)] if text else []

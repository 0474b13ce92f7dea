"""`tool_choice` that asks for a call, where the upstream cannot be held to it: told, then checked.

Nothing of the answer leaves before its first call begins. An answer that ends without one is asked for
once more, beside the first; the second one is handed on whatever it is: a text with `stop`, which says
plainly that there is no call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from qwenproxy.errors import AnswerTooLong
from qwenproxy.upstream.json_answers import MAX_ANSWER_CHARS
from qwenproxy.upstream.protocol import ChatTarget, UpstreamCall
from qwenproxy.wire.events import (
    Again,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
    sum_usage,
)

Ask = Callable[[UpstreamCall], AsyncGenerator[Sequence[Event], None]]

_HELD = (TextDelta, ReasoningDelta, UsageReport, Finished)
_CAUSE = "missing_tool_call: the answer has no call, which tool_choice asks for"


def asks_for_call(call: UpstreamCall) -> bool:
    choice = call.parameters.get("tool_choice")
    return bool(call.tools) and (choice == "required" or isinstance(choice, dict))


async def with_call(call: UpstreamCall, ask: Ask) -> AsyncGenerator[Sequence[Event], None]:
    """Ask for an answer with a call, twice at most.

    Raises:
        AnswerTooLong: so much came before a call that it is no longer held.
        UpstreamError: as `ask` does.
    """
    spent: UsageReport | None = None
    for is_last in (False, True):
        held = _Held(spent)
        async with aclosing(ask(call)) as batches:
            async for events in batches:
                if passed := [one for event in events for one in held.pass_on(event)]:
                    yield passed
        if held.has_call:
            return
        if is_last or not _ended_by_itself(held.events):
            yield held.events
            return
        spent = held.usage
        yield (Again(_CAUSE),)
        chat_id = held.started.chat_id
        if call.chat is None and chat_id is not None:
            # Beside the first answer, in its chat.
            call = replace(call, chat=ChatTarget(chat_id, None, 0))


@dataclass(slots=True)
class _Held:
    """One answer until its first call begins."""

    # Of a try before it.
    spent: UsageReport | None
    events: list[Event] = field(default_factory=list)
    has_call: bool = False
    started: Started = field(default_factory=Started)
    usage: UsageReport | None = None
    chars: int = 0

    def pass_on(self, event: Event) -> list[Event]:
        """What leaves with an event.

        Raises:
            AnswerTooLong: too much is held.
        """
        if isinstance(event, UsageReport):
            event = self.usage = sum_usage(self.spent, event)
        elif isinstance(event, Started):
            self.started = event
        elif isinstance(event, ToolCallDelta) and not self.has_call:
            self.has_call = True
            return [*self.events, event]
        if self.has_call or not isinstance(event, _HELD):
            return [event]
        if isinstance(event, TextDelta | ReasoningDelta):
            self.chars += len(event.text)
            if self.chars > MAX_ANSWER_CHARS:
                raise AnswerTooLong(
                    f"{MAX_ANSWER_CHARS:,} characters came without the call that tool_choice asks for"
                )
        self.events.append(event)
        return []


def _ended_by_itself(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Finished) and event.reason == "stop" for event in events)

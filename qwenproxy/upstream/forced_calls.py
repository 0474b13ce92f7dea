"""`tool_choice` that asks for a call, where the upstream cannot be held to it: told, then checked.

Nothing of the answer leaves before its first call begins. An answer that ends without one is asked for
once more, beside the first; the second one is handed on whatever it is: a text with `stop`, which says
plainly that there is no call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

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
        UpstreamError: as `ask` does.
    """
    for is_last in (False, True):
        held: list[Event] = []
        has_call, started = False, Started()
        async with aclosing(ask(call)) as batches:
            async for events in batches:
                passed: list[Event] = []
                for event in events:
                    if isinstance(event, Started):
                        started = event
                    elif isinstance(event, ToolCallDelta) and not has_call:
                        has_call = True
                        passed += held
                    if has_call or not isinstance(event, _HELD):
                        passed.append(event)
                    else:
                        held.append(event)
                if passed:
                    yield passed
        if has_call:
            return
        if is_last or not _ended_by_itself(held):
            yield held
            return
        yield (Again(_CAUSE),)
        if call.chat is None and started.chat_id is not None:
            # Beside the first answer, in its chat.
            call = replace(call, chat=ChatTarget(started.chat_id, None, 0))


def _ended_by_itself(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Finished) and event.reason == "stop" for event in events)

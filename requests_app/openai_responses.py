"""A recorded turn as the response object of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenproxy.wire import openai_responses
from qwenproxy.wire.events import UsageReport
from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.openai_responses import Echo
from qwenproxy.wire.responses_tools import read_tools
from sessions_app.paging import milliseconds


def build_response(
    row: Mapping[str, Any],
    body: JSONObject,
    *,
    model: str,
    message: JSONObject | None,
    reasoning: str,
    usage: UsageReport | None,
) -> JSONObject:
    """Build the object from the values of a response's row and the body of its request.

    A turn that its process did not live to end is `incomplete`, with the `error` that says so.
    """
    echo = Echo(body, read_tools(body.get("tools")).names)
    status, incomplete = _status(row["status"], row["finish_reason"] or "")
    error = None
    if row["status"] in ("failed", "interrupted"):
        code, told = row["error_code"], row["error_message"]
        error = openai_responses.error_object(code, told or "the answer has no end")
    output: list[JSONObject] = []
    if message is not None:
        output = openai_responses.output_items(
            echo,
            response_id=row["response_id"],
            message=message,
            reasoning=reasoning,
            status=status,
        )
    completed_at = row["completed_at"] if status == "completed" else None
    return openai_responses.response_object(
        echo,
        response_id=row["response_id"],
        model=model,
        created=milliseconds(row["created_at"]) // 1000,
        status=status,
        output=output,
        usage=usage,
        completed_at=None if completed_at is None else milliseconds(completed_at) // 1000,
        error=error,
        incomplete=incomplete,
    )


def _status(status: str, finish_reason: str) -> tuple[str, JSONObject | None]:
    """OpenAI's status of a turn, and its `incomplete_details`."""
    if status == "completed":
        return openai_responses.ending(finish_reason)
    if status == "interrupted":
        return "incomplete", {}
    return status, None

"""What OpenAI's Responses API reads of the record: responses, their input, and the line to go on from.

An id of a response reaches it only where it was stored (`store` is not false), has content and was not
deleted; the record itself keeps all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from django.http import QueryDict

from qwenproxy.access.models import REMOVED, Recorded
from qwenproxy.errors import InvalidRequest, NotFound
from qwenproxy.wire import history, json
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.openai_responses import PREFIX
from qwenproxy.wire.responses_bodies import to_chat
from qwenproxy.wire.responses_record import has_instructions, items_of
from qwenproxy.wire.responses_tools import read_tools
from requests_app.files import restore
from requests_app.models import Request, Response
from requests_app.openai_responses import build_response
from requests_app.records import load_request
from sessions_app.paging import read_integer
from sessions_app.transcript import load_line, message_body

DIALECT = "responses"
_RESPONSE_ID = re.compile(r"resp_[0-9A-Za-z_-]{1,60}")
_ITEM_ID = re.compile(r"(?:rs|msg|fc|ctc)_([0-9a-f]{32})(?:_[0-9]+)?")


def find_stored(response_id: str, api_key_id: int | None) -> Mapping[str, Any]:
    """The row of a response that its id reaches; a null key sees those of all.

    Raises:
        NotFound: there is none.
    """
    if not _RESPONSE_ID.fullmatch(response_id):
        # PostgreSQL cannot even be asked for a text with NUL.
        raise _not_found(response_id)
    rows = Response.objects.filter(
        response_id=response_id, request__dialect=DIALECT, withdrawn_at=None
    )
    if api_key_id is not None:
        rows = rows.filter(api_key=api_key_id)
    row = rows.values(
        "id", "request_id", "response_id", "status", "finish_reason", "error_code",
        "error_message", "created_at", "completed_at", "api_key_id", "reply__role", "reply__content",
        "reply__digest", "request__prompt_id", "request__parameters", "request__system__body",
        "request__system__digest",
        "request__model", "request__recorded",
    ).first()  # fmt: skip
    if row is None or _parameters(row).get("store") is False:
        raise _not_found(response_id)
    return row


def _parameters(row: Mapping[str, Any]) -> JSONObject:
    parameters = json.loads_text(row["request__parameters"])
    assert isinstance(parameters, dict)
    return parameters


def _not_found(response_id: str, why: str = "") -> NotFound:
    return NotFound(
        f"Response with id '{response_id[:100]}' not found.{why}", code="response_not_found"
    )


def stored_response(response_id: str, api_key_id: int | None) -> JSONObject:
    """A response in OpenAI's form, as far as it has come.

    Raises:
        NotFound: the id reaches none, or its key lets no content be recorded.
    """
    row = _with_content(find_stored(response_id, api_key_id))
    return _response(row)


def _with_content(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if row["request__recorded"] == REMOVED:
        raise _not_found(row["response_id"], " Its content was removed: its time was over.")
    if row["request__recorded"] != Recorded.EVERYTHING:
        why = " Its API key lets no content be recorded, so there is nothing to give back."
        raise _not_found(row["response_id"], why)
    return row


def _response(row: Mapping[str, Any]) -> JSONObject:
    try:
        record = load_request(row["request_id"])
    except Request.DoesNotExist as exc:
        raise _not_found(row["response_id"]) from exc
    response, body = record["response"], record["openai_request"]
    assert isinstance(response, dict)
    assert isinstance(body, dict)
    whole = response["openai_response"]
    if isinstance(whole, dict):
        return whole
    # Nothing of an answer is there, yet or at all.
    return build_response(
        row, body, model=row["request__model"], message=None, reasoning="", usage=None
    )


def withdraw(response_id: str, api_key_id: int | None) -> JSONObject:
    """Let the id reach nothing any more; the record stays until its session is deleted.

    Raises:
        NotFound: it reaches nothing already.
    """
    row = find_stored(response_id, api_key_id)
    Response.objects.filter(pk=row["id"]).update(withdrawn_at=datetime.now(UTC))
    return {"id": response_id, "object": "response", "deleted": True}


def read_items_page(query: QueryDict) -> tuple[int, bool, str]:
    """`limit` (1 to 100, by default 20), whether ascending (`order`, by default desc), `after`.

    Raises:
        InvalidRequest: naming the parameter.
    """
    limit = read_integer(query, "limit", 20, minimum=1)
    if limit > 100:
        raise InvalidRequest("limit must be at most 100", param="limit", code="invalid_limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", param="order", code="invalid_order")
    return limit, order == "asc", query.get("after", "")


def input_items(
    response_id: str, api_key_id: int | None, limit: int, is_ascending: bool, after: str
) -> JSONObject:
    """A page of the items that the answer was given to, those of earlier responses included.

    Raises:
        NotFound: the id reaches no response.
        InvalidRequest: `after` is none of its items.
    """
    row = _with_content(find_stored(response_id, api_key_id))
    tools: JSONValue = None
    if '"custom"' in row["request__parameters"] or '"namespace"' in row["request__parameters"]:
        body = load_request(row["request_id"])["openai_request"]
        tools = body.get("tools") if isinstance(body, dict) else None
    items = items_of([*_carried(row), *_line(row)], read_tools(tools).names)
    name = response_id.removeprefix(PREFIX)
    for number, item in enumerate(items):
        item["id"] = f"{_ID_PREFIXES.get(str(item['type']), 'item')}_in_{name}_{number}"
        item["status"] = "completed"
    if not is_ascending:
        items.reverse()
    start = 0
    if after:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(f"there is no item {after[:100]!r}", param="after")
        start = ids.index(after) + 1
    page = items[start : start + limit]
    return {
        "object": "list",
        "data": list[JSONValue](page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > start + limit,
    }


_ID_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}


def load_previous(response_id: str, api_key_id: int) -> list[JSONObject]:
    """The conversation up to and with a response, without its `instructions`.

    Raises:
        InvalidRequest: the key has no such response, or it cannot be gone on from.
    """
    try:
        row = find_stored(response_id, api_key_id)
    except NotFound:
        raise InvalidRequest(
            f"Previous response with id '{response_id[:100]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        ) from None
    if row["request__recorded"] == REMOVED:
        raise _unusable(
            "its content was removed, its time being over: send the whole history as input"
        )
    if row["request__recorded"] != Recorded.EVERYTHING:
        raise _unusable("its API key lets no content be recorded: send the whole history as input")
    if row["status"] != "completed" or row["reply__content"] is None:
        raise _unusable(f"it is {row['status'].replace('_', ' ')}")
    reply = history.decode_content(row["reply__role"], row["reply__content"])
    line = [*_line(row), *restore([reply], row["api_key_id"])]
    # What redaction left is not what was said.
    if history.chain(api_key_id, line)[-1].digest != bytes(row["reply__digest"]) or (
        not _is_as_sent(row)
    ):
        raise _unusable("parts of it were redacted in the record: send the whole history as input")
    return [*_carried(row), *line]


def _is_as_sent(row: Mapping[str, Any]) -> bool:
    """Whether the system texts are those that the client sent: their digest is of those."""
    body = row["request__system__body"]
    return body is None or (
        history.digest_of(b"system", body.encode()) == bytes(row["request__system__digest"])
    )


def _unusable(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"previous_response_id: the response cannot be gone on from: {why}",
        param="previous_response_id",
        code="previous_response_unusable",
    )


def _line(row: Mapping[str, Any]) -> list[JSONObject]:
    stored = [message_body(message) for message in load_line(row["request__prompt_id"])]
    return restore(stored, row["api_key_id"])


def _carried(row: Mapping[str, Any]) -> list[JSONObject]:
    """The system texts of the input: `instructions` are of one response alone."""
    # A list of messages, written by the recorder.
    system: Any = json.loads_text(row["request__system__body"] or "[]")
    if not system or not has_instructions(_parameters(row)):
        return list(system)
    content = system[0]["content"]
    if not isinstance(content, list) or len(content) < 2:
        return []
    return [{"role": "system", "content": content[1:]}]


def as_chat(request_pk: int, body: JSONObject) -> JSONObject:
    """A recorded request as a body of chat completions, with the whole conversation that it went on with.

    Raises:
        Request.DoesNotExist: it was deleted meanwhile.
    """
    row = Request.objects.values("prompt_id", "system__body", "api_key_id").get(pk=request_pk)
    stored = [message_body(message) for message in load_line(row["prompt_id"])]
    # A list of messages, written by the recorder.
    system: Any = json.loads_text(row["system__body"] or "[]")
    # What of the input was a reference is in the line.
    form = to_chat({**body, "input": "-"})
    chat: JSONObject = {"model": body.get("model"), "stream": body.get("stream", False)}
    chat |= form.parameters
    chat["messages"] = [*system, *restore(stored, row["api_key_id"])]
    if form.tools:
        chat["tools"] = form.tools
    return chat


def resolve_references(given: JSONValue, api_key_id: int) -> JSONValue:
    """Put the items of earlier responses in the place of references to them.

    Raises:
        NotFound: naming the first one that is nowhere.
    """
    if not isinstance(given, list):
        return given
    found: dict[str, dict[str, JSONValue]] = {}
    resolved: list[JSONValue] = []
    for index, item in enumerate(given):
        if not isinstance(item, dict) or item.get("type") != "item_reference":
            resolved.append(item)
            continue
        item_id = item.get("id")
        match = _ITEM_ID.fullmatch(item_id) if isinstance(item_id, str) else None
        response_id = PREFIX + match[1] if match else ""
        if response_id not in found:
            found[response_id] = _items_by_id(response_id, api_key_id) if match else {}
        one = found[response_id].get(str(item_id))
        if one is None:
            raise NotFound(
                f"Item with id '{str(item_id)[:100]}' not found.",
                param=f"input.{index}.id",
                code="item_not_found",
            )
        resolved.append(one)
    return resolved


def _items_by_id(response_id: str, api_key_id: int) -> dict[str, JSONValue]:
    try:
        output = stored_response(response_id, api_key_id)["output"]
    except NotFound:
        return {}
    assert isinstance(output, list)
    return {str(item["id"]): item for item in output if isinstance(item, dict)}

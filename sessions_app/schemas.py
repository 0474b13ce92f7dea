"""The shapes of the records API as its documentation shows them.

Answers are not built from these classes: rows become JSON directly, and texts that pydantic would
refuse (lone surrogates) go through unharmed. A test holds the two together.
"""

from __future__ import annotations

from typing import Any, Literal

from ninja import Field, Schema

Milliseconds = int


class ErrorDetail(Schema):
    message: str
    type: str = Field(examples=["invalid_request_error", "not_found_error"])
    param: str | None = None
    code: str | None = Field(examples=["invalid_limit", "session_not_found"])


class ErrorBody(Schema):
    error: ErrorDetail


class SessionObject(Schema):
    id: str
    chat_id: str | None = Field(description="The web upstream's chat of the newest answer.")
    parent_id: str | None = Field(description="The web upstream's user node of the newest answer.")
    message_count: int = Field(description="Messages of the line last answered, with the answer.")
    request_count: int
    first_user_message: str | None = Field(description="Its text, as the user wrote it.")
    title: str
    user_id: str | None = Field(description="The `user` that the client sent.")
    external_id: str | None = Field(description="The client's own id of the conversation.")
    api_key: int
    created_at: Milliseconds
    last_accessed: Milliseconds
    expires_at: Milliseconds = Field(
        description="From then on a new upstream chat is opened; the record stays."
    )
    content_removed_at: Milliseconds | None = Field(
        description="What was said until then was removed, its time being over; null: nothing was."
    )
    pinned_at: Milliseconds | None = Field(description="It does not expire; null: not pinned.")


class ListPage(Schema):
    object: Literal["list"]
    total: int = Field(description="Exact up to 10,000; 10,001 stands for more.")
    limit: int
    offset: int
    has_more: bool
    next_cursor: str | None = Field(description="Give it as `cursor` to read on, at any depth.")


class SessionList(ListPage):
    data: list[SessionObject]


def parameter(name: str, kind: str, description: str, **schema: Any) -> dict[str, Any]:
    """One query parameter in OpenAPI's form."""
    return {
        "in": "query",
        "name": name,
        "required": False,
        "description": description,
        "schema": {"type": kind, **schema},
    }


def page_parameters(order_by: list[str], default_limit: int = 50) -> list[dict[str, Any]]:
    return [
        parameter(
            "limit", "integer", "Rows per page.", minimum=1, maximum=1000, default=default_limit
        ),
        parameter("offset", "integer", "Rows to pass over.", minimum=0, default=0),
        parameter("cursor", "string", "The `next_cursor` of the page before; instead of `offset`."),
        parameter("orderBy", "string", "What to sort by.", enum=order_by, default="created_at"),
        parameter("order", "string", "Direction.", enum=["DESC", "ASC"], default="DESC"),
    ]


def date_parameters() -> list[dict[str, Any]]:
    return [
        parameter("start_date", "integer", "Created at or after; milliseconds since 1970."),
        parameter("end_date", "integer", "Created at or before; milliseconds since 1970."),
    ]

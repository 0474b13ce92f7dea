"""Sessions and the conversation tree: each message is stored once, below what came before it.

Agents resend the whole history with every call; a message is identified by a digest over its meaning
and its parent's digest (`qwenproxy.wire.history`), so a resent one is found, not stored again.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from django.db import models

from qwenproxy.access.models import ApiKey, UpstreamAccount
from qwenproxy.display import local_text


def removal_text(removed_at: datetime | None, last_accessed: datetime) -> str:
    """When content was removed, and after how many days; empty where none was."""
    if removed_at is None:
        return ""
    days = (removed_at - last_accessed).days
    # Nothing can be said of what was in use since, or is being removed just now.
    after = f" after {days:,} day{'' if days == 1 else 's'}" if days > 0 else ""
    return f"Content removed{after}, on {local_text(removed_at, '%Y-%m-%d')}"


class Session(models.Model):
    """A conversation of one API key, with all its branches."""

    # uuid4 text, or uuid5 of API key and the client's own id.
    id = models.CharField(primary_key=True, max_length=36)
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, db_index=False)
    # The client's own conversation id, where it sends one.
    external_id = models.TextField(null=True)  # noqa: DJ001  # null: the client named none
    # The body's `user`: conversations of two users of one key never meet.
    user_id = models.TextField(null=True)  # noqa: DJ001  # null: the client named none
    # The beginning of the first user message, for lists.
    title = models.CharField(max_length=200)
    # Messages on the line last answered, the answer included.
    message_count = models.IntegerField(default=0)
    request_count = models.IntegerField(default=0)
    # Of system text and tools of the newest request.
    context_digest = models.BinaryField(max_length=32)
    # The answer given last: names the line, and with it chat_id and parent_id in REST.
    last_reply = models.ForeignKey(
        "Message",
        null=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
        db_constraint=False,
    )
    created_at = models.DateTimeField()
    last_accessed = models.DateTimeField()
    # From then on the upstream chats are let go; the history stays.
    expires_at = models.DateTimeField()
    # What was said up to then was removed, its time being over; not after `last_accessed`: that has begun,
    # or there is new content since.
    content_removed_at = models.DateTimeField(null=True)
    # Null: it expires as its key and the settings say.
    pinned_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["created_at", "id"], name="session_created"),
            models.Index(fields=["last_accessed", "id"], name="session_accessed"),
            models.Index(fields=["api_key", "created_at", "id"], name="session_key_created"),
            models.Index(fields=["api_key", "last_accessed", "id"], name="session_key_accessed"),
            models.Index(
                fields=["user_id", "created_at", "id"],
                name="session_user_created",
                condition=models.Q(user_id__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        # Not the title: that is content, and what the audit log notes of a row outlives the row.
        return self.id

    @property
    def removal(self) -> str:
        """What is said in the place of content that was removed; empty where none was."""
        return removal_text(self.content_removed_at, self.last_accessed)


class UpstreamChat(models.Model):
    """A chat kept on the web upstream's side; its expiry removes the row, never history."""

    # The upstream's id.
    chat_id = models.CharField(max_length=100)
    session = models.ForeignKey(Session, on_delete=models.CASCADE)
    account = models.ForeignKey(UpstreamAccount, on_delete=models.CASCADE, db_index=False)
    model = models.CharField(max_length=200)
    # System text and tools it was opened with: other ones need another chat.
    context_digest = models.BinaryField(max_length=32)
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["account", "chat_id"], name="upstream_chat_unique"),
        ]

    def __str__(self) -> str:
        return self.chat_id


class Message(models.Model):
    """A node of a session's conversation tree."""

    session = models.ForeignKey(Session, on_delete=models.CASCADE, db_index=False)
    # Null: the first of its line.
    parent = models.ForeignKey("self", null=True, on_delete=models.CASCADE, related_name="children")
    # Covers the whole line up to here; see qwenproxy.wire.history.
    digest = models.BinaryField(max_length=32)
    role = models.CharField(max_length=20)
    # The client protocol it was first seen in: chat, completions, responses, anthropic.
    dialect = models.CharField(max_length=12)
    # 0 for the first message of a line; system messages at the head are not counted (see Blob).
    position = models.IntegerField()
    # This gateway answered it.
    given = models.BooleanField(default=False)
    upstream_chat = models.ForeignKey(
        UpstreamChat, null=True, on_delete=models.SET_NULL, db_index=False
    )
    # The web upstream's ids of this answer's node and of the user node above it. Without the first
    # its chat does not go on from here: the answer is not whole, or not that upstream's.
    upstream_id = models.CharField(max_length=100, null=True)  # noqa: DJ001  # null: no such upstream
    upstream_parent_id = models.CharField(max_length=100, null=True)  # noqa: DJ001
    created_at = models.DateTimeField()
    # Compact JSON of the message as first seen, without its role; a bare JSON text is its `content`.
    # The last column: SQLite walks a long text's overflow pages to reach one behind it.
    content = models.TextField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["session", "digest"], name="message_unique"),
        ]
        indexes: ClassVar = [
            # The first user message of a session, for lists.
            models.Index(
                fields=["session", "id"], name="message_user", condition=models.Q(role="user")
            ),
            models.Index(
                fields=["digest", "id"], name="message_given", condition=models.Q(given=True)
            ),
            models.Index(
                fields=["upstream_chat"],
                name="message_chat",
                condition=models.Q(upstream_chat__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.position} of {self.session_id}"

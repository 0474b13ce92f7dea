"""The record of every call: what was asked, what came back, and what ran meanwhile."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from qwenproxy.access.models import ApiKey, UpstreamAccount
from sessions_app.models import Message, Session


class Blob(models.Model):
    """What repeats across requests (system text, tools, files), stored once per API key."""

    KINDS: ClassVar = [("system", "system"), ("tools", "tools"), ("file", "file")]

    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, db_index=False)
    digest = models.BinaryField(max_length=32)
    kind = models.CharField(max_length=8, choices=KINDS)
    # Compact JSON: the list of system messages, the list of tools, or of a file the text that stood in
    # the message: a data URL or bare base64.
    body = models.TextField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["api_key", "digest"], name="blob_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"


class MessageFile(models.Model):
    """That a message holds a file: its `content` has a reference in the file's place."""

    message = models.ForeignKey(Message, on_delete=models.CASCADE, db_index=False)
    blob = models.ForeignKey(Blob, on_delete=models.PROTECT)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["message", "blob"], name="message_file_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.blob_id} in {self.message_id}"


class Worker(models.Model):
    """A serving process; it is alive while it holds its lock, whatever a clock says."""

    id = models.CharField(primary_key=True, max_length=36)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    started_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Request(models.Model):
    """One call of a client; the body is rebuilt from `parameters`, the blobs and the line to `prompt`."""

    request_id = models.CharField(max_length=64, unique=True)
    session = models.ForeignKey(Session, on_delete=models.CASCADE, db_index=False)
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, db_index=False)
    # The last message of the history sent; null where only system messages came.
    prompt = models.ForeignKey(Message, null=True, on_delete=models.CASCADE)
    system = models.ForeignKey(Blob, null=True, on_delete=models.PROTECT, related_name="+")
    tools = models.ForeignKey(Blob, null=True, on_delete=models.PROTECT, related_name="+")
    dialect = models.CharField(max_length=12)
    method = models.CharField(max_length=8)
    path = models.CharField(max_length=200)
    # As the client named it; the one used is in `upstream_request`.
    model = models.CharField(max_length=200)
    stream = models.BooleanField()
    user_agent = models.CharField(max_length=300)
    # How the session was found: explicit, continued, forked, imported, new.
    match = models.CharField(max_length=12)
    # What was done upstream: continued, new, rebuilt:account|context|edited|unknown|busy|gone.
    upstream = models.CharField(max_length=20)
    account = models.ForeignKey(
        UpstreamAccount, null=True, on_delete=models.SET_NULL, db_index=False
    )
    created_at = models.DateTimeField()
    # What is kept of the content: the key's setting when the request came (`access.models.Recorded`), or
    # `access.models.REMOVED`.
    recorded = models.CharField(max_length=12, default="everything", db_default="everything")
    # SHA-256 of the text that went upstream.
    upstream_text_digest = models.BinaryField(max_length=32, null=True)
    # Long texts last, here and in Response: lists read only the columns before them.
    # The rest of the body as sent, compact JSON.
    parameters = models.TextField()
    # Compact JSON list of {account, started, ms, cause} in their order; cause null for the one used.
    attempts = models.TextField(default="[]")
    # Compact JSON of the call without its text.
    upstream_request = models.TextField(default="")
    # Compact JSON object of the headers that QWENPROXY_RECORD_HEADERS names; empty: none.
    headers = models.TextField(default="", db_default="")

    class Meta:
        permissions: ClassVar = [("view_payload", "Can read and export what was said")]
        indexes: ClassVar = [
            models.Index(fields=["created_at", "id"], name="request_created"),
            models.Index(fields=["api_key", "created_at", "id"], name="request_key_created"),
            models.Index(fields=["model", "created_at", "id"], name="request_model_created"),
            models.Index(fields=["session", "id"], name="request_session"),
        ]

    def __str__(self) -> str:
        return self.request_id


class Response(models.Model):
    """The answer to one request, from the moment the request is accepted."""

    STATUSES: ClassVar = [
        (name, name) for name in ("in_progress", "completed", "failed", "cancelled", "interrupted")
    ]

    response_id = models.CharField(max_length=64, unique=True)
    request = models.OneToOneField(Request, on_delete=models.CASCADE)
    session = models.ForeignKey(Session, on_delete=models.CASCADE, db_index=False)
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, db_index=False)
    # The assistant's message; null while running, or where nothing arrived.
    reply = models.ForeignKey(Message, null=True, on_delete=models.CASCADE)
    # The process that answers it; its lock tells whether it still does.
    worker = models.ForeignKey(Worker, null=True, on_delete=models.SET_NULL, db_index=False)
    status = models.CharField(max_length=12, choices=STATUSES)
    # Null while running; cancelled already then where another process was asked to end it.
    finish_reason = models.CharField(max_length=20, null=True)  # noqa: DJ001
    error_type = models.CharField(max_length=50, null=True)  # noqa: DJ001  # null: no error
    error_code = models.CharField(max_length=50, null=True)  # noqa: DJ001
    error_message = models.TextField(null=True)  # noqa: DJ001
    # Of the answer to the client; null while running.
    http_status = models.IntegerField(null=True)
    client_left = models.BooleanField(default=False)
    prompt_tokens = models.IntegerField(default=0)
    completion_tokens = models.IntegerField(default=0)
    total_tokens = models.IntegerField(default=0)
    reasoning_tokens = models.IntegerField(null=True)
    cached_tokens = models.IntegerField(null=True)
    # reported: the upstream's own; estimated: ours, from text length; partial: of an unfinished answer.
    usage_source = models.CharField(max_length=10, default="")
    # The web upstream's id of the user node, as its `response.created` named it.
    upstream_parent_id = models.CharField(max_length=100, null=True)  # noqa: DJ001  # null: none
    ttft_ms = models.IntegerField(null=True)
    duration_ms = models.IntegerField(null=True)
    created_at = models.DateTimeField()
    completed_at = models.DateTimeField(null=True)
    # Compact JSON: ids, raw usage, and the raw text where tool calls were read from it.
    upstream_response = models.TextField(default="")
    reasoning = models.TextField(default="")
    # Deleted by OpenAI's API: its id reaches it there no more, the record stays.
    withdrawn_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["created_at", "id"], name="response_created"),
            models.Index(fields=["api_key", "created_at", "id"], name="response_key_created"),
            models.Index(fields=["status", "created_at", "id"], name="response_status_created"),
            models.Index(fields=["session", "id"], name="response_session"),
            models.Index(
                fields=["worker"],
                name="response_running",
                condition=models.Q(status="in_progress"),
            ),
            models.Index(
                fields=["completed_at"],
                name="response_completed",
                condition=models.Q(completed_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.response_id


class Partial(models.Model):
    """What a running answer has brought since the last row; removed when the answer is committed."""

    response = models.ForeignKey(Response, on_delete=models.CASCADE, db_index=False)
    seq = models.IntegerField()
    # `qwenproxy.wire.events.pack`; the first row of an answer holds the upstream's ids.
    events = models.TextField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["response", "seq"], name="partial_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.response_id}#{self.seq}"


class UsageSlot(models.Model):
    """Counts of one quarter of an hour per dimension, for dashboards."""

    pk = models.CompositePrimaryKey("dim", "slot", "ref", "status")
    # total, model, key, account, error; with h and d of the hour and the day that begin with the slot, with
    # a minus sign what of it is of deleted sessions. stale: the slot is to be counted again. removed, pruned and
    # size: see `requests_app.prunings`.
    dim = models.CharField(max_length=8)
    # Seconds since 1970, divided by 900.
    slot = models.IntegerField()
    ref = models.CharField(max_length=200)
    status = models.CharField(max_length=12)
    n = models.BigIntegerField()
    tokens_in = models.BigIntegerField()
    tokens_out = models.BigIntegerField()
    ms_sum = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.dim} {self.ref} {self.slot}"


class LatencySlot(models.Model):
    """A histogram of one quarter of an hour: bucket = floor(ln(ms) / ln(1.1))."""

    pk = models.CompositePrimaryKey("dim", "metric", "slot", "ref", "bucket")
    # total, model; with the same signs.
    dim = models.CharField(max_length=8)
    # ttft, total.
    metric = models.CharField(max_length=8)
    slot = models.IntegerField()
    ref = models.CharField(max_length=200)
    bucket = models.IntegerField()
    n = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.dim} {self.metric} {self.ref} {self.slot}"

"""Who may come in (`ApiKey`) and whose credentials go out (`UpstreamAccount`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from django.db import models

SCOPES = ("chat", "records", "admin")


class Recorded(models.TextChoices):
    """What is kept of a turn's content."""

    EVERYTHING = "everything", "everything"
    # Digests, counts and times: no text of either side.
    METADATA = "metadata", "no content"


# Of a request, in the place of the above: its content was on record, and its time is over.
REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use, in the units of `ApiKey`'s columns; null: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None


class ApiKey(models.Model):
    """A client's key: 256 random bits, of which only the SHA-256 and a visible prefix are kept.

    Keys are revoked, never deleted while records exist.
    """

    name = models.CharField(max_length=100)
    # "qp-" and the first characters, to recognise a key by; never enough to guess it.
    prefix = models.CharField(max_length=16, editable=False)
    # Hexadecimal SHA-256 of the whole key.
    secret_hash = models.CharField(max_length=64, unique=True, editable=False)
    # The secret before the last rotation, accepted until `previous_expires_at`.
    previous_hash = models.CharField(
        max_length=64, unique=True, null=True, blank=True, editable=False
    )
    previous_expires_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Space-separated, a subset of SCOPES.
    scopes = models.CharField(max_length=100, default="chat records")
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    # Refused from then on; null: never.
    expires_at = models.DateTimeField(null=True, blank=True)
    # Shell-style patterns of model ids, one a line; empty: every model.
    allowed_models = models.TextField(blank=True, db_default="")
    # Limits; null: none. 0 lets nothing through.
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    # Turns that run at the same time, streamed or not.
    max_concurrent = models.PositiveIntegerField(null=True, blank=True)
    # Of both directions together; days and months are UTC's.
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    tokens_per_month = models.PositiveBigIntegerField(null=True, blank=True)
    recorded = models.CharField(
        max_length=12,
        choices=Recorded.choices,
        default=Recorded.EVERYTHING,
        db_default="everything",
    )
    # Days after a session's last use, then its content goes, or all of it; null: as the settings say.
    content_days = models.PositiveIntegerField(null=True, blank=True)
    record_days = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        verbose_name = "API key"
        permissions: ClassVar = [
            ("use_playground", "Can use the playground"),
            ("view_health", "Can see the health page"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def scope_set(self) -> frozenset[str]:
        return frozenset(self.scopes.split())

    @property
    def limits(self) -> Limits | None:
        """Null where the key has none at all."""
        limits = Limits(
            self.requests_per_minute,
            self.tokens_per_minute,
            self.max_concurrent,
            self.tokens_per_day,
            self.tokens_per_month,
        )
        return None if limits == Limits() else limits


class KeyUsage(models.Model):
    """What a key has used of its limits in a span of time, counted in the recorder's transactions.

    Kept apart from the record: deleting a session gives no allowance back.
    """

    pk = models.CompositePrimaryKey("api_key", "span", "slot")
    api_key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, db_index=False)
    # minute: slots of a quarter of a second, summed over the last 60; day; month; live: what runs.
    span = models.CharField(max_length=6)
    # Begin of the slot: quarters of a second since 1970; days since 1970; months since year 0. Of live
    # turns, the process (`requests_app.usage`).
    slot = models.BigIntegerField()
    requests = models.BigIntegerField()
    # What running turns have reserved is in it, until their end puts the true count in its place.
    tokens = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.api_key_id} {self.span} {self.slot}"


class UpstreamAccount(models.Model):
    """One upstream with its credentials, which are encrypted (`encryption`) and never shown again."""

    KINDS: ClassVar = [
        ("openai_compatible", "OpenAI-compatible server"),
        ("dashscope", "DashScope / Model Studio"),
        ("qwen_web", "chat.qwen.ai web session"),
        ("demo", "Demo (built-in imitation)"),
    ]
    STATES: ClassVar = [(name, name) for name in ("ready", "cooling", "challenged", "expired")]

    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=20, choices=KINDS)
    base_url = models.CharField("base URL", max_length=500, blank=True)
    # Encrypted JSON object of texts: api_key; or cookies, token, user_agent, headers (an object).
    secrets = models.TextField(blank=True, editable=False)
    # False: paused by hand.
    enabled = models.BooleanField(default=True)
    # Lower goes first among the accounts that serve a model.
    priority = models.IntegerField(default=100)
    # Share of new conversations among accounts of the same priority.
    weight = models.PositiveIntegerField(default=1, db_default=1)
    # Calls at the same time per serving process; null: no limit.
    max_concurrent = models.PositiveIntegerField(null=True, blank=True)
    # Between the beginnings of two calls.
    min_interval_ms = models.PositiveIntegerField(default=0, db_default=0)
    # Digest of the environment values it was seeded from: a change there is taken over at start.
    seed_digest = models.CharField(max_length=64, blank=True, editable=False)
    # Health as traffic shows it; `paused` is `enabled` being False.
    state = models.CharField(
        max_length=12, choices=STATES, default="ready", db_default="ready", editable=False
    )
    # What the upstream said, without secrets; empty while ready.
    state_reason = models.TextField(blank=True, db_default="", editable=False)
    state_since = models.DateTimeField(null=True, editable=False)
    # When it is tried again; null: at once, or not before its credentials are replaced.
    state_until = models.DateTimeField(null=True, editable=False)
    # Since the last success: each lengthens the next pause.
    failures = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    # Written at most once a minute.
    last_ok_at = models.DateTimeField(null=True, editable=False)
    last_error_at = models.DateTimeField(null=True, editable=False)
    # As the credentials themselves say; null where they do not.
    secrets_expire_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["priority", "id"]

    def __str__(self) -> str:
        return self.name


class EncryptionCanary(models.Model):
    """One row that only the right encryption key can read: a wrong key is refused at start."""

    ciphertext = models.TextField()

    def __str__(self) -> str:
        return "canary"

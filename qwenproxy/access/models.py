"""Who may come in (`ApiKey`) and whose credentials go out (`UpstreamAccount`)."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

SCOPES = ("chat", "records", "admin")


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

    class Meta:
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def scope_set(self) -> frozenset[str]:
        return frozenset(self.scopes.split())


class UpstreamAccount(models.Model):
    """One upstream with its credentials, which are encrypted (`encryption`) and never shown again."""

    KINDS: ClassVar = [
        ("openai_compatible", "OpenAI-compatible server"),
        ("dashscope", "DashScope / Model Studio"),
        ("qwen_web", "chat.qwen.ai web session"),
        ("demo", "Demo (built-in imitation)"),
    ]

    name = models.CharField(max_length=100, unique=True)
    kind = models.CharField(max_length=20, choices=KINDS)
    base_url = models.CharField("base URL", max_length=500, blank=True)
    # Encrypted JSON object of texts: api_key; or cookies, token, user_agent, headers (an object).
    secrets = models.TextField(blank=True, editable=False)
    enabled = models.BooleanField(default=True)
    # Lower goes first among the accounts that serve a model.
    priority = models.IntegerField(default=100)
    # Digest of the environment values it was seeded from: a change there is taken over at start.
    seed_digest = models.CharField(max_length=64, blank=True, editable=False)
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

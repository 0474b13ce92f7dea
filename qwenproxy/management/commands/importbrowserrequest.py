"""`manage.py importbrowserrequest`: a browser's "Copy as cURL" becomes a web account's session."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from qwenproxy.access import accounts
from qwenproxy.access.browser_request import (
    BrowserRequest,
    UnusableRequest,
    parse_browser_request,
)
from qwenproxy.access.models import UpstreamAccount

_KIND = "qwen_web"
_DEFAULT_NAME = "qwen-web"


class Command(BaseCommand):
    help = (
        "Read a request to chat.qwen.ai, copied from a browser's developer tools with 'Copy as cURL', "
        "and store its session in the account. Nothing of it is shown."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "file", nargs="?", default="-", help="the text; default: standard input"
        )
        parser.add_argument(
            "--name", help="the account; default: the only web account, or a new one named qwen-web"
        )

    def handle(self, *args: Any, file: str, name: str | None, **options: Any) -> None:
        try:
            pasted = parse_browser_request(self._read(file))
        except UnusableRequest as exc:
            raise CommandError(str(exc)) from exc
        account, is_new = _store(pasted, name)
        for warning in pasted.warnings:
            self.stderr.write(self.style.WARNING(warning))
        count = len([cookie for cookie in pasted.cookies.split(";") if "=" in cookie])
        self.stdout.write(
            f"{account.name}: {'created' if is_new else 'updated'}, {account.base_url}, cookies: {count}, "
            f"headers: {len(pasted.headers)}. {_expiry(account)}"
        )
        if not account.enabled:
            self.stderr.write("The account is disabled; enable it in the admin.")

    def _read(self, file: str) -> str:
        if file == "-":
            if sys.stdin.isatty():
                self.stderr.write("Paste the text, then end it with Ctrl-D on a line of its own.")
            return _decode(sys.stdin.buffer.read())
        try:
            return _decode(Path(file).read_bytes())
        except OSError as exc:
            raise CommandError(f"{file}: {exc.strerror}") from exc


def _decode(content: bytes) -> str:
    # Windows' shells redirect as UTF-16.
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as exc:
        raise CommandError("This is not text.") from exc


def _store(pasted: BrowserRequest, name: str | None) -> tuple[UpstreamAccount, bool]:
    with transaction.atomic():
        account = _account(name)
        is_new = account.pk is None
        account.base_url = pasted.base_url
        accounts.set_secrets(account, pasted.to_secrets())
        account.save()
    return account, is_new


def _account(name: str | None) -> UpstreamAccount:
    if name is not None:
        account = UpstreamAccount.objects.filter(name=name).first()
        if account is not None and account.kind != _KIND:
            raise CommandError(f"The account {name!r} is of another kind ({account.kind}).")
        longest = UpstreamAccount._meta.get_field("name").max_length or 0
        if account is None and (not name.strip() or len(name) > longest):
            raise CommandError(f"An account's name has 1 to {longest} characters.")
        return account or UpstreamAccount(name=name, kind=_KIND)
    existing = list(UpstreamAccount.objects.filter(kind=_KIND))
    if len(existing) > 1:
        names = ", ".join(repr(account.name) for account in existing)
        raise CommandError(f"There are several web accounts ({names}): say which one with --name.")
    if existing:
        return existing[0]
    if UpstreamAccount.objects.filter(name=_DEFAULT_NAME).exists():
        raise CommandError(f"An account of another kind is named {_DEFAULT_NAME!r}: use --name.")
    return UpstreamAccount(name=_DEFAULT_NAME, kind=_KIND)


def _expiry(account: UpstreamAccount) -> str:
    expires = account.secrets_expire_at
    if expires is None:
        return "It does not say when the session ends."
    verb = "expired" if expires < timezone.now() else "expires"
    return f"The session {verb} {expires:%Y-%m-%d %H:%M} UTC."

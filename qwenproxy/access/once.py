"""Forms that make something which may be made once: a page that is loaded anew must not make it again.

Such a form carries a token. What was made with it is noted in the table of sessions, under a key that no
session can have: its primary key lets one transaction in, in any process, and old rows go with old sessions.
"""

from __future__ import annotations

import re
import secrets

from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import IntegrityError, transaction
from django.http import HttpRequest

FIELD = "once"

# Keys of sessions have 32 characters.
_PREFIX = "once"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")


class SentBefore(Exception):
    """The form was sent before; roll back what was done since."""

    def __init__(self, pk: int) -> None:
        super().__init__(pk)
        # Of the row that was made then.
        self.pk = pk


def new_token() -> str:
    return secrets.token_urlsafe(24)


def note(request: HttpRequest, pk: int) -> None:
    """Note, in the transaction that made it, what was made with the form that this request sends.

    A request without a token comes from no form, and is not noted.

    Raises:
        SentBefore: something was made with it already.
    """
    token = request.POST.get(FIELD, "")
    if not _TOKEN.fullmatch(token):
        return
    store = SessionStore()
    row = Session(
        session_key=_PREFIX + token,
        session_data=store.encode({"made": pk}),
        expire_date=store.get_expiry_date(),
    )
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as exc:
        before = Session.objects.get(pk=row.pk)
        raise SentBefore(int(before.get_decoded()["made"])) from exc

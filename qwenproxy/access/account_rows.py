"""An upstream account as the admin's pages show it: its health in words, and what it did of late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.utils import timezone

from qwenproxy.access import accounts
from qwenproxy.access.account_states import PAUSED, expiry_warning, way_out
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.access.traffic import Ended, Span, read_in_flight, read_traffic

# Beside the button.
_RESUME = "paused by hand: nothing is asked of it before it is resumed"


@dataclass(frozen=True, slots=True)
class AccountRow:
    account: UpstreamAccount
    # Of `UpstreamAccount.STATES`, or paused.
    state: str
    way_out: str
    # What is stored, never its values; null: it cannot be read.
    stored: list[str] | None
    # Empty where the credentials do not end soon.
    expiry_warning: str
    # By span.
    ended: Mapping[Span, Ended]
    # Up to when the figures go; null: up to now.
    as_of: datetime | None
    # Calls of this process that run now; null: no gateway runs in it.
    in_flight: int | None

    @property
    def until(self) -> datetime | None:
        """When it is tried again by itself; null: with the next request, or not by itself."""
        until = self.account.state_until
        if until is None or until <= timezone.now() or self.state in ("ready", PAUSED):
            return None
        return until

    @property
    def reason(self) -> str:
        """What the upstream said."""
        return self.account.state_reason if self.account.enabled else ""

    @property
    def stored_text(self) -> str:
        if self.stored is None:
            return f"unreadable: {accounts.UNREADABLE}"
        return ", ".join(name.replace("_", " ") for name in self.stored) or "nothing"

    @property
    def has_secrets(self) -> bool:
        """Whether its kind takes any."""
        return bool(accounts.SECRETS_OF_KIND[self.account.kind])

    @property
    def today(self) -> Ended:
        return self.ended["today"]

    @property
    def day(self) -> Ended:
        return self.ended["24h"]

    @property
    def week(self) -> Ended:
        return self.ended["7d"]


def read_rows(
    site: AdminSite,
    request: HttpRequest,
    found: Sequence[UpstreamAccount],
    spans: Sequence[Span] = ("24h", "today"),
) -> list[AccountRow]:
    """Read what belongs to the accounts; the same number of queries for any of them."""
    now = timezone.now()
    traffic = read_traffic(site, "account", [account.pk for account in found], spans)
    running = read_in_flight(site, request)
    return [
        AccountRow(
            account=account,
            state=(state := account.state if account.enabled else PAUSED),
            way_out=_RESUME
            if state == PAUSED
            else way_out(account.kind, state, account.state_until),
            stored=accounts.stored_names(account),
            expiry_warning=expiry_warning(account.kind, account.secrets_expire_at, now),
            ended={span: traffic.of(span, account.pk) for span in spans},
            as_of=traffic.as_of,
            in_flight=None if running is None else running.get(account.pk, 0),
        )
        for account in found
    ]

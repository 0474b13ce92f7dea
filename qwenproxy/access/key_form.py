"""The form of a key in the browser; what its fields may hold is decided in `key_fields`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.conf import settings
from django.utils import timezone

from qwenproxy.access.key_fields import DAYS, MAX_LIMITS, InvalidKey, clean_field
from qwenproxy.access.models import SCOPES, ApiKey, Recorded

# Generic for the type checker alone.
if TYPE_CHECKING:
    ApiKeyModelForm = forms.ModelForm[ApiKey]
else:
    ApiKeyModelForm = forms.ModelForm

_SCOPE_TEXTS = {
    "chat": "chat: ask models",
    "records": "records: read the sessions and requests of this key over REST",
    "admin": "admin: everything, the records of all keys and managing keys and accounts too",
}
_LIMITS = {
    "requests_per_minute": (
        "Requests per minute",
        "Requests that may begin within any 60 seconds.",
    ),
    "tokens_per_minute": (
        "Tokens per minute",
        "Prompt and answer together, within any 60 seconds.",
    ),
    "max_concurrent": ("Requests at the same time", "Answers that run at once, streamed or not."),
    "tokens_per_day": ("Tokens per day", "Prompt and answer together, per day of UTC."),
    "tokens_per_month": ("Tokens per month", "Prompt and answer together, per month of UTC."),
}
_RECORDED = [
    (Recorded.EVERYTHING.value, "everything: what was asked and answered"),
    (Recorded.METADATA.value, "no content: digests, counts and times only"),
]
_DAYS = {
    "content_days": (
        "Days of content",
        "After a session's last use, then what was said in it is removed; counts, times and ids stay.",
    ),
    "record_days": ("Days of records", "After a session's last use, then all of it is deleted."),
}
# As a browser's own field for a moment writes it.
_MOMENT = "%Y-%m-%dT%H:%M"


def _limit_field(name: str) -> forms.IntegerField:
    label, text = _LIMITS[name]
    widget = forms.NumberInput(attrs={"class": "vIntegerField", "placeholder": "no limit"})
    return forms.IntegerField(
        required=False, min_value=0, label=label, help_text=text, widget=widget
    )


def _days_field(name: str) -> forms.IntegerField:
    label, text = _DAYS[name]
    setting = getattr(settings, name.upper())
    as_set = "for ever" if setting is None else f"{setting} days"
    widget = forms.NumberInput(attrs={"class": "vIntegerField", "placeholder": as_set})
    return forms.IntegerField(
        required=False, min_value=1, label=label, help_text=text, widget=widget
    )


class ApiKeyForm(ApiKeyModelForm):
    # Such a key deletes, and reads without a trace: both are a superuser's.
    may_give_admin = True

    scopes = forms.MultipleChoiceField(
        choices=[(scope, _SCOPE_TEXTS[scope]) for scope in SCOPES],
        widget=forms.CheckboxSelectMultiple,
    )
    expires_at = forms.CharField(
        required=False,
        label="Expires",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "autocomplete": "off"}),
    )
    allowed_models = forms.CharField(
        required=False,
        label="Models",
        widget=forms.Textarea(
            attrs={"rows": 3, "cols": 40, "spellcheck": "false", "placeholder": "every model"}
        ),
        help_text="One pattern a line, such as qwen3-*. Empty: every model. What counts is the model that "
        "is really asked, not its alias.",
    )
    requests_per_minute = _limit_field("requests_per_minute")
    tokens_per_minute = _limit_field("tokens_per_minute")
    max_concurrent = _limit_field("max_concurrent")
    tokens_per_day = _limit_field("tokens_per_day")
    tokens_per_month = _limit_field("tokens_per_month")
    recorded = forms.ChoiceField(
        choices=_RECORDED,
        widget=forms.RadioSelect,
        initial=Recorded.EVERYTHING.value,
        help_text="Of requests from now on; what is on record stays as it is.",
    )
    content_days = _days_field("content_days")
    record_days = _days_field("record_days")

    class Meta:
        model = ApiKey
        fields: ClassVar = [
            "name", "scopes", "expires_at", "allowed_models", *MAX_LIMITS, "recorded", *DAYS,
        ]  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        zone = settings.REPORTING_ZONE
        self.initial["scopes"] = self.instance.scopes.split()
        if self.instance.expires_at is not None:
            self.initial["expires_at"] = f"{self.instance.expires_at.astimezone(zone):{_MOMENT}}"
        # Somebody who may only look has no fields.
        if "name" in self.fields:
            self.fields["name"].help_text = "Who uses it: an application, a team, a person."
        if "expires_at" in self.fields:
            field = self.fields["expires_at"]
            field.help_text = f"In {zone}; refused from then on. Empty: never."
            # What "in 30 days" counts from.
            field.widget.attrs["data-now"] = f"{timezone.now().astimezone(zone):{_MOMENT}}"

    def clean_expires_at(self) -> object:
        # An end in the past may stay, and seconds are not shown.
        if "expires_at" not in self.changed_data:
            return self.instance.expires_at
        text = self.cleaned_data["expires_at"].strip()
        return self._clean("expires_at", _read_local(text) or text or None)

    def clean_allowed_models(self) -> object:
        lines = self.cleaned_data["allowed_models"].splitlines()
        return self._clean("allowed_models", [line for line in lines if line.strip()])

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        is_new = "admin" in cleaned.get("scopes", ()) and "admin" not in self.initial["scopes"]
        if is_new and not self.may_give_admin:
            self.add_error("scopes", "Only a superuser gives a key the scope admin.")
        for name in ("name", "scopes", *MAX_LIMITS, *DAYS):
            if name in cleaned:
                try:
                    cleaned[name] = clean_field(name, cleaned[name])
                except InvalidKey as exc:
                    self.add_error(name, str(exc))
        return cleaned

    def _clean(self, name: str, value: object) -> object:
        try:
            return clean_field(name, value)
        except InvalidKey as exc:
            raise forms.ValidationError(str(exc)) from exc


def _read_local(text: str) -> datetime | None:
    """A moment without an offset is the reporting zone's here; null: it is something else."""
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo else moment.replace(tzinfo=settings.REPORTING_ZONE)
    except ValueError:
        return None

"""The admin's form for accounts; the rules that a person's input has to meet.

Secrets are write-only: no field is ever rendered with a value, not even with the one just sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError

from qwenproxy.access import accounts, encryption
from qwenproxy.access.browser_request import BrowserRequest, UnusableRequest, parse_browser_request
from qwenproxy.access.models import UpstreamAccount

# Generic for the type checker alone.
if TYPE_CHECKING:
    UpstreamAccountModelForm = forms.ModelForm[UpstreamAccount]
else:
    UpstreamAccountModelForm = forms.ModelForm

_LABELS = {
    "api_key": "API key",
    "cookies": "cookies",
    "token": "device token (bx-umidtoken)",
    "user_agent": "user agent",
    "headers": "browser headers",
}


class WriteOnlyTextarea(forms.Textarea):
    def format_value(self, value: Any) -> None:
        return None


class WriteOnlyInput(forms.PasswordInput):
    def __init__(self) -> None:
        # Not the operator's own password: browsers must not offer to fill it in.
        super().__init__(
            attrs={"autocomplete": "new-password", "class": "vTextField"}, render_value=False
        )


class UpstreamAccountForm(UpstreamAccountModelForm):
    """Leaves stored secrets alone where their field is empty; `new_secrets` holds what to store."""

    browser_request = forms.CharField(
        required=False,
        label="Browser request",
        widget=WriteOnlyTextarea(attrs={"rows": 6, "cols": 100, "spellcheck": "false"}),
        help_text="For chat.qwen.ai: in the browser's developer tools, tab Network, copy a request made "
        "while signed in (its name begins with 'completions') as cURL, and paste it whole. It fills in "
        "all that is needed.",
    )
    api_key = forms.CharField(required=False, label="API key", widget=WriteOnlyInput())
    cookies = forms.CharField(
        required=False,
        widget=WriteOnlyTextarea(attrs={"rows": 2, "cols": 100, "spellcheck": "false"}),
    )
    token = forms.CharField(
        required=False, label="Device token (bx-umidtoken)", widget=WriteOnlyInput()
    )
    user_agent = forms.CharField(required=False, widget=WriteOnlyInput())
    forget = forms.MultipleChoiceField(
        required=False,
        label="Remove",
        widget=forms.CheckboxSelectMultiple,
        help_text="What is ticked is deleted, unless it is entered anew.",
    )

    class Meta:
        model = UpstreamAccount
        fields: ClassVar = ["name", "kind", "base_url", "enabled", "priority"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stored = self._read_stored()
        self._former_origin = accounts.origin(self.instance.base_url)
        self._pasted: BrowserRequest | None = None
        # What a save leaves behind; read it after `is_valid()`.
        self.new_secrets: accounts.Secrets = {}
        # Secrets that were stored for another address, and are dropped with it.
        self.dropped: list[str] = []
        # The imitation exists from the first start or never.
        self._offer("kind", [choice for choice in UpstreamAccount.KINDS if choice[0] != "demo"])
        self._offer("forget", [(name, _LABELS[name]) for name in self._stored])
        for name in accounts.SECRET_NAMES:
            if name in self.fields:
                is_set = name in self._stored
                self.fields[name].help_text = (
                    "Set; leave empty to keep it." if is_set else "Not set."
                )

    def _offer(self, name: str, choices: list[tuple[str, str]]) -> None:
        field = self.fields.get(name)
        if isinstance(field, forms.ChoiceField):
            field.choices = choices

    def _read_stored(self) -> accounts.Secrets:
        try:
            return accounts.get_secrets(self.instance)
        except encryption.EncryptionError:
            # What cannot be read can only be entered anew.
            return {}

    def _kind(self) -> str:
        return str(self.cleaned_data.get("kind") or self.instance.kind)

    def clean_browser_request(self) -> str:
        text: str = self.cleaned_data["browser_request"]
        if text.strip():
            try:
                self._pasted = parse_browser_request(text)
            except UnusableRequest as exc:
                raise ValidationError(str(exc)) from exc
        return ""

    def clean_api_key(self) -> str:
        return _clean_secret(self.cleaned_data["api_key"], prefix="bearer ")

    def clean_cookies(self) -> str:
        return _clean_secret(self.cleaned_data["cookies"], prefix="cookie:")

    def clean_token(self) -> str:
        return _clean_secret(self.cleaned_data["token"], prefix="bx-umidtoken:")

    def clean_user_agent(self) -> str:
        return _clean_secret(self.cleaned_data["user_agent"], prefix="user-agent:")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        kind = self._kind()
        if self._pasted is not None and kind != "qwen_web":
            self.add_error(
                "browser_request", "A browser request belongs to an account of chat.qwen.ai."
            )
        if "base_url" in cleaned and kind != "demo":
            cleaned["base_url"] = self._clean_base_url(kind, cleaned["base_url"])
        self.new_secrets = self._merge_secrets(cleaned)
        return cleaned

    def _clean_base_url(self, kind: str, text: str) -> str:
        if not text and self._pasted is not None:
            text = self._pasted.base_url
        text = text or accounts.DEFAULT_BASE_URLS.get(kind, "")
        if not text:
            self.add_error("base_url", "Where the server is, such as http://127.0.0.1:11434/v1")
            return ""
        try:
            return accounts.clean_base_url(text)
        except ValueError as exc:
            self.add_error("base_url", str(exc))
            return ""

    def _merge_secrets(self, cleaned: dict[str, Any]) -> accounts.Secrets:
        kept = self._stored
        origin = accounts.origin(cleaned.get("base_url", self.instance.base_url))
        if kept and origin != self._former_origin:
            # A stored secret never goes to another address: whoever may edit accounts could read it there.
            self.dropped = [_LABELS[name] for name in kept]
            kept = {}
        forget = cleaned.get("forget") or []
        secrets: accounts.Secrets = {
            name: value for name, value in kept.items() if name not in forget
        }
        if self._pasted is not None:
            # One browser's session belongs together.
            secrets = self._pasted.to_secrets()
        entered = {name: cleaned[name] for name in accounts.SECRET_NAMES if cleaned.get(name)}
        return {**secrets, **entered}

    @property
    def warnings(self) -> list[str]:
        """What the person should know about what was just saved."""
        warnings = list(self._pasted.warnings) if self._pasted is not None else []
        if self.dropped:
            warnings.append(
                f"The address changed, so what was stored for the old one was deleted "
                f"({', '.join(self.dropped)}). Enter it anew where it is needed."
            )
        return warnings


def _clean_secret(text: str, *, prefix: str) -> str:
    text = text.strip()
    if text.lower().startswith(prefix):
        text = text[len(prefix) :].strip()
    if not text.isascii() or not text.isprintable():
        raise ValidationError("It holds characters that cannot be sent, such as a line break.")
    return text

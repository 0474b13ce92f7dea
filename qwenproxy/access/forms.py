"""What can be set on an account, and how it is kept: one form for the admin's pages and for REST.

Secrets are write-only: no field is ever rendered with a value, not even with the one just sent. Stored
ones belong to the address they were stored for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError

from qwenproxy.access import accounts, encryption
from qwenproxy.access.browser_request import (
    HEADER_NAME,
    BrowserRequest,
    UnusableRequest,
    parse_browser_request,
)
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
    "headers": "headers",
}
_MAX_NUMBER = 1_000_000
_MAX_SECRET_CHARS = 65_536
_HOUR_MS = 3_600_000


class WriteOnlyTextarea(forms.Textarea):
    def format_value(self, value: Any) -> None:
        return None


class WriteOnlyInput(forms.PasswordInput):
    def __init__(self) -> None:
        # Not the operator's own password: browsers must not offer to fill it in.
        super().__init__(
            attrs={"autocomplete": "new-password", "class": "vTextField"}, render_value=False
        )


class HeadersField(forms.CharField):
    """Headers: a mapping of texts, or a text with one `name: value` a line."""

    def to_python(self, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        lines = [line for line in (super().to_python(value) or "").splitlines() if line.strip()]
        headers = dict(line.partition(":")[::2] for line in lines)
        if not all(headers.values()):
            raise ValidationError("Each line is a header: its name, a colon, its value.")
        return headers

    def has_changed(self, initial: Any, data: Any) -> bool:
        # An empty field leaves the stored ones; an empty mapping is not what Django calls empty.
        return bool(data)


class UpstreamAccountForm(UpstreamAccountModelForm):
    """Leaves stored secrets alone where their field is empty; see `store_secrets`."""

    priority = forms.IntegerField(
        min_value=-_MAX_NUMBER,
        max_value=_MAX_NUMBER,
        initial=100,
        help_text="Lower goes first among the accounts that serve a model.",
    )
    weight = forms.IntegerField(
        min_value=0,
        max_value=_MAX_NUMBER,
        initial=1,
        help_text="Share of new conversations among accounts of the same priority; 0: none.",
    )
    max_concurrent = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=_MAX_NUMBER,
        label="Calls at the same time",
        help_text="Per serving process; empty: no limit.",
    )
    min_interval_ms = forms.IntegerField(
        min_value=0,
        max_value=_HOUR_MS,
        initial=0,
        label="Pause between calls",
        help_text="Milliseconds between the beginnings of two calls.",
    )

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
    headers = HeadersField(
        required=False,
        widget=WriteOnlyTextarea(attrs={"rows": 2, "cols": 100, "spellcheck": "false"}),
    )
    forget = forms.MultipleChoiceField(
        required=False,
        label="Remove",
        widget=forms.CheckboxSelectMultiple,
        help_text="What is ticked is deleted, unless it is entered anew.",
    )

    base_url = forms.CharField(
        required=False,
        max_length=500,
        label="Base URL",
        widget=forms.TextInput(attrs={"class": "vTextField", "inputmode": "url"}),
        help_text="Of a server of your own, such as http://127.0.0.1:11434/v1. Empty: the usual address of "
        "chat.qwen.ai or DashScope.",
    )

    class Meta:
        model = UpstreamAccount
        fields: ClassVar = [
            "name",
            "kind",
            "base_url",
            "enabled",
            "priority",
            "weight",
            "max_concurrent",
            "min_interval_ms",
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stored = self._read_stored()
        self._former_origin = accounts.origin(self.instance.base_url)
        self._pasted: BrowserRequest | None = None
        self._new_secrets: accounts.Secrets = {}
        # Secrets that were stored for another address, and are dropped with it.
        self._dropped: list[str] = []
        for name in ("name", "base_url"):
            # Beside fields for secrets, browsers take them for a user name.
            if name in self.fields:
                self.fields[name].widget.attrs["autocomplete"] = "off"
        if self.instance.pk is not None:
            # Another kind would take other secrets: that is another account.
            self.fields.pop("kind", None)
        # The imitation exists from the first start or never.
        self._offer("kind", [choice for choice in UpstreamAccount.KINDS if choice[0] != "demo"])
        self._offer("forget", [(name, _LABELS[name]) for name in self._stored])
        for name in accounts.SECRET_NAMES:
            if name in self.fields:
                is_set = name in self._stored
                text = "Set; leave empty to keep it." if is_set else "Not set."
                more = " One a line, its name, a colon, its value." if name == "headers" else ""
                self.fields[name].help_text = text + more

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

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not name.isprintable():
            raise ValidationError("A name holds no line break and no other control character.")
        return name

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

    def clean_headers(self) -> dict[str, str]:
        headers = {
            name.strip().lower(): _clean_secret(value, prefix=f"{name.lower()}:")
            for name, value in self.cleaned_data["headers"].items()
        }
        if not all(HEADER_NAME.fullmatch(name) for name in headers):
            raise ValidationError("A header's name holds letters, digits and dashes.")
        return {name: value for name, value in headers.items() if value}

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        kind = self._kind()
        if self._pasted is not None and kind != "qwen_web":
            self.add_error(
                "browser_request", "A browser request belongs to an account of chat.qwen.ai."
            )
        for name in accounts.SECRET_NAMES:
            # Without a kind every secret would look wrong beside the error that matters.
            if kind and cleaned.get(name) and name not in accounts.SECRETS_OF_KIND[kind]:
                takes = ", ".join(accounts.SECRETS_OF_KIND[kind]) or "none"
                self.add_error(
                    name, f"An account of this kind does not take it; it takes: {takes}."
                )
        if "base_url" in cleaned:
            cleaned["base_url"] = self._clean_base_url(kind, cleaned["base_url"])
        self._new_secrets = self._merge_secrets(cleaned)
        return cleaned

    def _clean_base_url(self, kind: str, text: str) -> str:
        if kind == "demo":
            if text:
                self.add_error("base_url", "The demo has no address.")
            return ""
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

    def _has_moved(self, base_url: str) -> bool:
        return bool(self.instance.secrets) and accounts.origin(base_url) != self._former_origin

    def _merge_secrets(self, cleaned: dict[str, Any]) -> accounts.Secrets:
        kept = self._stored
        if self._has_moved(cleaned.get("base_url", self.instance.base_url)):
            # A stored secret never goes to another address: whoever may edit accounts could read it there.
            self._dropped = [_LABELS[name] for name in kept] or ["what could not be read"]
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

    def store_secrets(self) -> None:
        """Store what was entered in the saved account; what is stored stays where nothing was."""
        if self._dropped or self._new_secrets != self._stored:
            accounts.set_secrets(self.instance, self._new_secrets)

    @property
    def found(self) -> str:
        """What was found in the pasted request, without any value; empty where none was pasted."""
        pasted = self._pasted
        if pasted is None:
            return ""
        cookies = sum("=" in cookie for cookie in pasted.cookies.split(";"))
        parts = [f"{cookies} cookie{'' if cookies == 1 else 's'}"]
        parts += ["the device token"] if pasted.token else []
        parts += ["the user agent"] if pasted.user_agent else []
        if pasted.headers:
            more = len(pasted.headers)
            parts.append(f"{more} other header{'' if more == 1 else 's'}")
        return f"Found in the pasted request: {', '.join(parts)}. It goes to {pasted.base_url}."

    @property
    def warnings(self) -> list[str]:
        """What the person should know about what was just saved."""
        warnings = list(self._pasted.warnings) if self._pasted is not None else []
        if self._dropped:
            warnings.append(
                f"The address changed, so what was stored for the old one was deleted "
                f"({', '.join(self._dropped)}). Enter it anew where it is needed."
            )
        return warnings


def _clean_secret(text: str, *, prefix: str) -> str:
    text = text.strip()
    if text.lower().startswith(prefix):
        text = text[len(prefix) :].strip()
    if not text.isascii() or not text.isprintable():
        raise ValidationError("It holds characters that cannot be sent, such as a line break.")
    if len(text) > _MAX_SECRET_CHARS:
        raise ValidationError("It is longer than any server takes.")
    return text

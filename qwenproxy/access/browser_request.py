"""A browser's request as its developer tools copy it ("Copy as cURL"), read for its session.

The web upstream is used with the session of the person who runs the gateway: the whole cookie jar and the
header set of one real request, kept as given. Both forms of the text are read, the one for bash and the one
for Windows' cmd. Nothing is made up, and the text is never run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

USUAL_HOST = "chat.qwen.ai"
_MAX_CHARACTERS = 500_000

# Of one connection, one request or one body; the gateway writes its own. Cookies, device token and
# user agent have fields of their own.
_NOT_KEPT_WORDS = (
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    "transfer-encoding upgrade content-length content-encoding host cookie x-request-id timezone referer "
    "content-type accept-encoding expect bx-umidtoken user-agent if-none-match if-modified-since"
)
_NOT_KEPT = frozenset(_NOT_KEPT_WORDS.split())
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
# curl's options that take a value, of those that browsers write or that people add.
_WITH_VALUE = {
    "-H": "header",
    "--header": "header",
    "-b": "cookie",
    "--cookie": "cookie",
    "-A": "user-agent",
    "--user-agent": "user-agent",
    "--url": "url",
}
_IGNORED_WORDS = (
    "-X --request -d --data --data-raw --data-binary --data-ascii --data-urlencode --json -F --form "
    "-e --referer -o --output -x --proxy -u --user -m --max-time --connect-timeout --resolve -w "
    "--write-out -c --cookie-jar -T --upload-file -E --cert --key --cacert -r --range"
)
_IGNORED_WITH_VALUE = frozenset(_IGNORED_WORDS.split())
_ATTACHED = re.compile(r"-[HbAXdFeoxumwcTEr]\S")

# The parts of a bash command line that quoting or escaping makes one unit, the $'...' form first.
_BASH_UNIT = re.compile(
    r"""\$'(?P<ansi>(?:[^'\\]|\\.)*)' | (?P<joint>\\\r?\n) | '[^']*' | "(?:[^"\\]|\\.)*" | \\.""",
    re.DOTALL | re.VERBOSE,
)
_ANSI_ESCAPE = re.compile(
    r"\\(?:u(?P<u>[0-9a-fA-F]{1,4})|U(?P<U>[0-9a-fA-F]{1,8})|x(?P<x>[0-9a-fA-F]{1,2})"
    r"|(?P<octal>[0-7]{1,3})|(?P<one>.))",
    re.DOTALL,
)
_ANSI_ONE = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "e": "\x1b",
}


class UnusableRequest(ValueError):
    """The pasted text is not a browser request that can be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class BrowserRequest:
    """The session of one browser request; `repr` shows none of it."""

    base_url: str
    cookies: str = field(repr=False)
    # The device token, `bx-umidtoken`; empty where the request had none.
    token: str = field(repr=False)
    user_agent: str = field(repr=False)
    # Names in lower case, in the order of the request.
    headers: dict[str, str] = field(repr=False)
    # What to tell the user: usable, but perhaps not what was meant.
    warnings: tuple[str, ...] = ()

    def to_secrets(self) -> dict[str, str | dict[str, str]]:
        """The secrets of a `qwen_web` account (`accounts.set_secrets`)."""
        return {
            "cookies": self.cookies,
            "token": self.token,
            "user_agent": self.user_agent,
            "headers": dict(self.headers),
        }


def parse_browser_request(text: str) -> BrowserRequest:
    """Read a request copied with "Copy as cURL (bash)", "(POSIX)" or "(cmd)".

    Raises:
        UnusableRequest: it is something else, or holds no session.
    """
    url, headers = _read_arguments(_split(text))
    parts = _check_url(url)
    cookies = headers.get("cookie", "")
    if "=" not in cookies:
        raise UnusableRequest(
            "The request holds no cookies. In the browser's developer tools, tab Network, choose a "
            "request to chat.qwen.ai made while signed in (best one whose name begins with "
            "'completions'), then Copy as cURL (bash)."
        )
    return BrowserRequest(
        base_url=f"{parts[0]}://{parts[1]}",
        cookies=cookies,
        token=headers.get("bx-umidtoken", ""),
        user_agent=headers.get("user-agent", ""),
        headers={name: value for name, value in headers.items() if name not in _NOT_KEPT},
        warnings=tuple(_warnings(parts[1], headers)),
    )


def _split(text: str) -> list[str]:
    text = text.lstrip("\ufeff").strip()
    lowered = text[:200].lower()
    if len(text) > _MAX_CHARACTERS:
        raise UnusableRequest("The text is longer than any browser request.")
    if lowered.startswith(("invoke-webrequest", "$session", "invoke-restmethod")):
        raise UnusableRequest("This is the PowerShell form. Choose Copy as cURL (bash) instead.")
    if lowered.startswith(("fetch(", "await fetch(")):
        raise UnusableRequest("This is the fetch form. Choose Copy as cURL (bash) instead.")
    if not re.match(r"curl(\.exe)?[\s^]", lowered):
        raise UnusableRequest(
            "This does not begin with 'curl'. In the browser's developer tools, tab Network, open the "
            "menu of a request to chat.qwen.ai and choose Copy as cURL (bash)."
        )
    return _split_cmd(text) if _is_cmd(text) else _split_bash(text)


def _is_cmd(text: str) -> bool:
    if re.match(r"curl(\.exe)?\s+\^", text, re.IGNORECASE) or '^\\^"' in text:
        return True
    first_quote = re.search("[\"']", text)
    continues = re.search(r"\^\r?\n", text)
    return continues is not None and first_quote is not None and first_quote[0] == '"'


def _split_bash(text: str) -> list[str]:
    def rewrite(match: re.Match[str]) -> str:
        if match["joint"]:
            return " "
        if match["ansi"] is not None:
            return shlex.quote(_ANSI_ESCAPE.sub(_unescape, match["ansi"]))
        return match[0]

    try:
        # shlex knows all of bash's quoting but $'...'.
        return shlex.split(_BASH_UNIT.sub(rewrite, text))
    except ValueError as exc:
        raise UnusableRequest(
            f"The command is cut off or its quotes do not match ({exc}). Copy it once more, whole."
        ) from exc


def _unescape(match: re.Match[str]) -> str:
    if match["one"]:
        return _ANSI_ONE.get(match["one"], match["one"])
    number = (
        int(match["octal"], 8)
        if match["octal"]
        else int(match["u"] or match["U"] or match["x"], 16)
    )
    return chr(number) if number < 0x110000 else "\ufffd"


def _split_cmd(text: str) -> list[str]:
    text = re.sub(r"\^\r?\n(?!\r?\n)", " ", text)
    text = re.sub(r"\^(.)", r"\1", text, flags=re.DOTALL)
    # What is left follows the rules of Windows programs: in quotes, \" is a quote.
    words: list[str] = []
    for match in re.finditer(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+', text, re.DOTALL):
        word = re.sub(r'"((?:[^"\\]|\\.)*)"', r"\1", match[0], flags=re.DOTALL)
        words.append(re.sub(r'\\(["\\])', r"\1", word))
    return words


def _read_arguments(words: list[str]) -> tuple[str, dict[str, str]]:
    url = ""
    headers: dict[str, str] = {}
    rest = iter(words[1:])
    for option, value in _options(rest):
        if option == "url":
            if url:
                raise UnusableRequest("These are several requests. Copy a single one.")
            url = value
        elif option == "cookie":
            _add_header(headers, "cookie", value)
        elif option == "user-agent":
            _add_header(headers, "user-agent", value)
        elif option == "header":
            name, separator, value = value.partition(":")
            # "name;" is curl's way to write a header without a value.
            if separator and name:
                _add_header(headers, name, value)
    return url, headers


def _options(words: Iterator[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        if word in _WITH_VALUE:
            yield _WITH_VALUE[word], next(words, "")
        elif word in _IGNORED_WITH_VALUE:
            next(words, None)
        elif _ATTACHED.match(word):
            if word[:2] in _WITH_VALUE:
                yield _WITH_VALUE[word[:2]], word[2:]
        elif not word.startswith("-") and word not in (";", "&", "curl"):
            yield "url", word


def _add_header(headers: dict[str, str], name: str, value: str) -> None:
    name, value = name.strip().lower(), value.strip()
    if not HEADER_NAME.fullmatch(name) or not value:
        return
    if not value.isascii() or not value.isprintable():
        raise UnusableRequest(
            f"The header {name} holds characters that cannot be sent. Copy the request once more, whole."
        )
    headers[name] = value


def _check_url(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_usable = False
    if not is_usable or parts.username is not None or not parts.netloc.isprintable():
        raise UnusableRequest("The command names no http(s) address.")
    return parts.scheme, parts.netloc


def _warnings(host: str, headers: dict[str, str]) -> Iterator[str]:
    if host != USUAL_HOST:
        yield f"The request goes to {host}, not to {USUAL_HOST}."
    names = {cookie.strip().partition("=")[0] for cookie in headers["cookie"].split(";")}
    if "token" not in names and "authorization" not in headers:
        yield "There is no cookie 'token': this is the session of a guest, not of an account."
    if "bx-umidtoken" not in headers:
        yield (
            "There is no header bx-umidtoken. A request whose name begins with 'completions' has it; "
            "without it the upstream may refuse."
        )
    if "user-agent" not in headers:
        yield "There is no user agent; the upstream may refuse a session without its browser's."

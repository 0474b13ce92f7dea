"""Browser requests as developer tools copy them, in every form, and what is no such thing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.access.browser_request import UnusableRequest, parse_browser_request

URL = "https://chat.qwen.ai/api/v2/chat/completions?chat_id=0b"
COOKIES = 'token=eyJ.x.y; acw_tc=0a03; tfstk=g$u^1%41!x; isg="q"\'s'
HEADERS = {
    "accept": "*/*",
    "accept-language": "en-US,en;q=0.9",
    "bx-ua": "231!abc\\def",
    "bx-umidtoken": "T2gAxyz=",
    "bx-v": "2.5.31",
    "content-type": "application/json; charset=UTF-8",
    "origin": "https://chat.qwen.ai",
    "referer": "https://chat.qwen.ai/c/0b",
    "sec-ch-ua": '"Google Chrome";v="141", "Not?A_Brand";v="8"',
    "source": "web",
    "timezone": "Sun Oct 26 2025 10:50:29 GMT-0400",
    "user-agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/141.0.0.0",
    "version": "0.3.12",
    "x-accel-buffering": "no",
    "x-request-id": "0000",
    "Connection": "keep-alive",
    "Accept-Encoding": "gzip, br",
    "Content-Length": "12",
    "Host": "chat.qwen.ai",
}
KEPT_NAMES = "accept accept-language bx-ua bx-v origin sec-ch-ua source version x-accel-buffering"
KEPT = {name: HEADERS[name] for name in KEPT_NAMES.split()}
BODY = json.dumps({"text": "it's \"quoted\"\n! $HOME `ls` ^ 中 -H 'cookie: no=1' curl"})


def ansi(text):
    """The $'...' quoting of Chrome's bash form."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "!": "\\u0021"}
    return "$'" + "".join(escapes.get(c, c) for c in text) + "'"


def bash_quote(text):
    return ansi(text) if any(c in text for c in "\n!'\r") else f"'{text}'"


def bash(*, cookie="-b", headers=HEADERS, cookies=COOKIES, body=BODY, joint=" \\\n  "):
    parts = [f"curl {bash_quote(URL)}"]
    parts += [f"-H {bash_quote(f'{name}: {value}')}" for name, value in headers.items()]
    if cookie == "-b":
        parts.append(f"-b {bash_quote(cookies)}")
    elif cookie:
        parts.append(f"-H {bash_quote(f'{cookie}: {cookies}')}")
    parts.append(f"--data-raw {bash_quote(body)}")
    return joint.join(parts)


def cmd_quote(text):
    """The quoting of Chrome's cmd form: carets before everything special, quotes as ^\\^"."""
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    inner = "".join(c if c.isalnum() or c in " -_.,:;=/?*+'#$" else "^" + c for c in inner)
    return '^"' + inner.replace("^\n", "^\n\n") + '^"'


def cmd():
    parts = [f"curl {cmd_quote(URL)}"]
    parts += [f"-H {cmd_quote(f'{name}: {value}')}" for name, value in HEADERS.items()]
    parts += [f"-b {cmd_quote(COOKIES)}", f"--data-raw {cmd_quote(BODY)}"]
    return " ^\r\n  ".join(parts)


def old_cmd():
    def quote(text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    parts = [f"curl {quote(URL)}"]
    parts += [f"-H {quote(f'{n}: {v}')}" for n, v in HEADERS.items()]
    return " ^\n".join(
        [*parts, f"-H {quote('cookie: ' + COOKIES.replace('^', ''))}", "--compressed"]
    )


def firefox():
    parts = [f"curl --path-as-is -i -s -k -X 'POST' --compressed {shlex.quote(URL)}"]
    parts += [f"-H {shlex.quote(f'{n.title()}: {v}')}" for n, v in HEADERS.items()]
    parts += [f"-H {shlex.quote(f'Cookie: {COOKIES}')}", f"--data-raw {shlex.quote(BODY)}"]
    return " ".join(parts)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(bash(), id="chrome, bash"),
        pytest.param(bash(cookie="cookie"), id="cookie as header"),
        pytest.param(bash(cookie="Cookie"), id="capital header"),
        pytest.param(bash(joint=" \\\r\n  "), id="Windows line ends"),
        pytest.param(bash(joint=" "), id="one line"),
        pytest.param("\ufeff  \n" + bash() + " ;\n", id="byte order mark and blanks"),
        pytest.param(cmd(), id="chrome, cmd"),
        pytest.param(firefox(), id="firefox, POSIX"),
        pytest.param(
            bash().replace("-H ", "--header ").replace("-b ", "--cookie "), id="long options"
        ),
        pytest.param(bash().replace("-H ", "-H").replace("-b ", "-b"), id="attached values"),
        pytest.param(bash().replace("curl '", "curl --url '"), id="--url"),
    ],
)
def test_every_form_gives_the_same_session(text):
    request = parse_browser_request(text)
    assert request.base_url == "https://chat.qwen.ai"
    assert request.cookies == COOKIES
    assert request.token == "T2gAxyz="
    assert request.user_agent == HEADERS["user-agent"]
    assert request.headers == KEPT
    assert request.warnings == ()


def test_the_older_cmd_form_is_read():
    request = parse_browser_request(old_cmd())
    assert request.cookies == COOKIES.replace("^", "")
    assert request.headers == KEPT


def test_the_captured_header_set_is_kept_as_given():
    fixture = (
        Path(__file__).resolve().parents[2]
        / "../shared/reference/fixtures/qwen_web/request_headers.json"
    )
    if not fixture.exists():
        pytest.skip("no captures beside this checkout")
    captured = json.loads(fixture.read_text())["headers"]
    request = parse_browser_request(bash(headers=captured))
    gone = {
        "connection",
        "referer",
        "user-agent",
        "bx-umidtoken",
        "content-type",
        "timezone",
        "x-request-id",
    }
    assert request.headers == {
        name.lower(): value for name, value in captured.items() if name.lower() not in gone
    }


def test_to_secrets_holds_all_of_it_and_repr_nothing():
    request = parse_browser_request(bash())
    assert request.to_secrets() == {
        "cookies": COOKIES,
        "token": "T2gAxyz=",
        "user_agent": HEADERS["user-agent"],
        "headers": KEPT,
    }
    assert "T2gA" not in repr(request)
    assert "acw_tc" not in repr(request)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_any_value_survives_both_quotings(value):
    value = value.strip() or "x"
    for text in (
        f"curl '{URL}' -b 'a=b' -H {shlex.quote(f'x-test: {value}')}",
        f"curl '{URL}' -b 'a=b' -H {ansi(f'x-test: {value}')}",
        f"curl {cmd_quote(URL)} -b {cmd_quote('a=b')} -H {cmd_quote(f'x-test: {value}')}",
    ):
        assert parse_browser_request(text).headers == {"x-test": value}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("", "begin with 'curl'", id="empty"),
        pytest.param("hello", "begin with 'curl'", id="prose"),
        pytest.param("curly 'https://chat.qwen.ai'", "begin with 'curl'", id="another program"),
        pytest.param("$session = New-Object Microsoft.PowerShell", "PowerShell", id="PowerShell"),
        pytest.param(
            'Invoke-WebRequest -Uri "https://chat.qwen.ai"', "PowerShell", id="PowerShell short"
        ),
        pytest.param('fetch("https://chat.qwen.ai/api", {})', "fetch", id="fetch"),
        pytest.param(f"curl '{URL}' -H 'accept: */*'", "no cookies", id="no cookies"),
        pytest.param(f"curl '{URL}' -b jar.txt", "no cookies", id="a cookie file"),
        pytest.param("curl -b 'a=b'", "no http", id="no address"),
        pytest.param("curl 'ftp://chat.qwen.ai' -b 'a=b'", "no http", id="other protocol"),
        pytest.param("curl 'https://u:p@chat.qwen.ai' -b 'a=b'", "no http", id="user in address"),
        pytest.param(f"curl '{URL}' -b 'a=b", "cut off", id="open quote"),
        pytest.param(
            f"curl '{URL}' -b $'a=b\\nc: d'", "cannot be sent", id="line break in a value"
        ),
        pytest.param(f"curl '{URL}' -b 'a=ü'", "cannot be sent", id="not ASCII"),
        pytest.param(
            f"curl '{URL}' -b 'a=b' ;\ncurl '{URL}' -b 'c=d'", "single", id="two requests"
        ),
        pytest.param("curl '" + "x" * 3_000_000, "longer", id="endless"),
    ],
)
def test_what_cannot_be_used_is_explained(text, named):
    with pytest.raises(UnusableRequest, match=named):
        parse_browser_request(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param(
            bash().replace("chat.qwen.ai/api", "example.com/api"), "example.com", id="host"
        ),
        pytest.param(bash(cookies="acw_tc=0a03"), "guest", id="no session cookie"),
        pytest.param(bash(headers={"user-agent": "x"}), "bx-umidtoken", id="no device token"),
        pytest.param(bash(headers={"bx-umidtoken": "x"}), "user agent", id="no user agent"),
    ],
)
def test_what_may_not_be_meant_is_reported(text, named):
    [warning] = parse_browser_request(text).warnings
    assert named in warning

"""Rules over texts, JSON, and texts cut anywhere."""

from __future__ import annotations

import pytest

from qwenproxy.wire.events import (
    Accumulator,
    Asked,
    RawText,
    ReasoningDelta,
    Sent,
    TextDelta,
    ToolCallDelta,
)
from qwenproxy.wire.redaction import (
    HELD_CHARS,
    NAMED,
    RedactedStream,
    compile_rules,
    without_content,
)

EMAIL = "ann.lee+qwen@example.org"


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        pytest.param("@email", f"mail {EMAIL}, please", "mail [redacted], please", id="email"),
        pytest.param("@email", "at 10@ night", "at 10@ night", id="no email"),
        pytest.param(
            "@email", "a@b.cd+e@f.gh <a@b@c.de>", "[redacted] <a@[redacted]>", id="emails"
        ),
        pytest.param(
            "@secrets", f"x-eyJ{'a' * 20}.{'b' * 20}.c.", "[redacted].", id="token after a dash"
        ),
        pytest.param("@secrets", "key sk-proj-abcdefghijklmnop1234.", "key [redacted].", id="key"),
        pytest.param("@secrets", "qp-" + "a" * 43, "[redacted]", id="our key"),
        pytest.param("@secrets", "Bearer abcdefghijklmnop==", "[redacted]", id="bearer"),
        pytest.param("@secrets", "risk-averse sk-8", "risk-averse sk-8", id="words"),
        pytest.param("@secrets", f"eyJ{'a' * 20}.{'b' * 20}.c", "[redacted]", id="token"),
        pytest.param(
            "@secrets",
            "-----BEGIN PRIVATE KEY-----\nab\n-----END PRIVATE KEY-----\nrest",
            "[redacted]\nrest",
            id="private key",
        ),
        pytest.param("@secrets", "-----BEGIN RSA PRIVATE KEY-----\nab", "[redacted]", id="cut key"),
        pytest.param("@cards", "4111 1111 1111 1111!", "[redacted]!", id="card"),
        pytest.param(r"EMP\d{6}", "EMP123456 EMP12", "[redacted] EMP12", id="own"),
    ],
)
def test_what_a_rule_matches_is_replaced(rule, text, expected):
    assert compile_rules([rule]).text(text) == expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a" * 500_000, id="word"),
        pytest.param("a." * 250_000, id="dots"),
        pytest.param("a@" * 250_000, id="ats"),
        pytest.param("a@" + "b" * 500_000, id="host"),
        pytest.param("-eyJaaaaaaaa" * 20_000, id="tokens"),
        pytest.param("-eyJaaaaaaaa" * 20_000 + "." + "a" * 200_000, id="token-without-end"),
        pytest.param("eyJ-" * 1_000_000, id="tokens-side-by-side"),
        pytest.param("bearer " * 70_000, id="bearers"),
        pytest.param("1 " * 250_000, id="digits"),
        pytest.param("-----BEGIN " * 45_000, id="private-keys"),
    ],
)
def test_no_text_keeps_the_named_rules_busy(text):
    compile_rules(NAMED).text(text)


def test_json_keeps_its_form():
    value = {"a": ["x EMP1", 3, None, {"EMP1": "EMP1"}], "b": True}
    assert compile_rules([r"EMP\d"]).value(value) == {
        "a": ["x [redacted]", 3, None, {"EMP1": "[redacted]"}],
        "b": True,
    }


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        pytest.param("@phone", "@phone is no rule", id="name"),
        pytest.param("(", "no regular expression", id="broken"),
        pytest.param("x*", "matches the empty text", id="empty"),
    ],
)
def test_a_rule_that_cannot_be_used_is_named(rule, told):
    with pytest.raises(ValueError, match=told):
        compile_rules([rule])


@pytest.mark.parametrize(
    "make", [TextDelta, ReasoningDelta, RawText, lambda t: ToolCallDelta(0, arguments=t)]
)
def test_a_secret_cut_anywhere_is_never_stored_in_part(make):
    secret = "EMP123456"
    text = "x" * (HELD_CHARS - 3) + secret + "y" * (HELD_CHARS + 5)
    rules = compile_rules([r"EMP\d{6}"])
    for cut in range(HELD_CHARS - 5, HELD_CHARS + 20):
        stream = RedactedStream(rules)
        stored = []
        for piece in (text[:cut], text[cut : cut + 3], text[cut + 3 :]):
            stored += stream.feed([make(piece)])
        kept = "".join(
            getattr(event, "text", None) or getattr(event, "arguments", "") for event in stored
        )
        # Whatever the cuts, all but the held end is stored, as if it had come whole.
        assert rules.text(text).startswith(kept)
        assert len(text) - HELD_CHARS - len(secret) <= len(kept) + len(secret)


def test_a_match_longer_than_what_is_held_is_whole():
    rules = compile_rules([r"<key>[^<]*</key>"])
    stream = RedactedStream(rules)
    body = "<key>" + "k" * (2 * HELD_CHARS) + "</key>" + "z" * 10
    stored = stream.feed([TextDelta(body)]) + stream.feed([TextDelta("z" * HELD_CHARS)])
    assert "".join(event.text for event in stored) == "[redacted]" + "z" * 10


def test_interleaved_texts_do_not_mix():
    stream = RedactedStream(compile_rules(["@email"]))
    answer = Accumulator()
    pieces = [
        ReasoningDelta("r" * 3000),
        TextDelta("t" * 3000),
        ToolCallDelta(0, "c", "f", "0" * 3000),
    ]
    for event in [*stream.feed(pieces), *stream.feed(pieces)]:
        answer.add(event)
    assert set(answer.text) == {"t"}
    assert set(answer.reasoning) == {"r"}
    call = answer.tool_calls[0]
    assert (call.id, call.name, set(call.arguments)) == ("c", "f", {"0"})


def test_without_content_leaves_ids_and_codes():
    sent = without_content(Sent({"model": "qwen3", "stop": ["secret"]}, "secret", 2))
    assert (sent.request, sent.first_message) == ({"model": "qwen3"}, 2)
    assert sent.text_digest == Sent({}, "secret").text_digest
    asked = without_content(Asked(1, "new", {"account": "a", "cause": "upstream_error: secret"}))
    assert asked.attempt == {"account": "a", "cause": "upstream_error"}
    assert without_content(TextDelta("secret")) is None

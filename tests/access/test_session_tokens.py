"""What tokens say of themselves, and the jar of a renewed session."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest

from qwenproxy.access import session_tokens

SOON = datetime(2027, 1, 15, 8, tzinfo=UTC)
SOON_S = 1_800_000_000


def jwt(claims):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part(claims)}.sig"


LASTING = jwt({"id": "x", "exp": SOON_S})
SHORT = jwt({"exp": SOON_S - 1000})


@pytest.mark.parametrize(
    "secrets",
    [
        pytest.param({"cookies": f"a=b; token={LASTING}; z=1"}, id="cookie"),
        pytest.param({"headers": {"Authorization": f"bearer {LASTING}"}}, id="bearer"),
        pytest.param(
            {"cookies": f"token={LASTING}", "headers": {"authorization": f"Bearer {SHORT}"}},
            id="cookie-before-bearer",
        ),
        pytest.param(
            {"cookies": f"token={SHORT}; refresh_token={LASTING}"}, id="renewable-to-its-end"
        ),
    ],
)
def test_the_end_of_a_session_is_read_from_its_token(secrets):
    assert session_tokens.session_expiry(secrets) == SOON


def test_a_session_that_can_be_renewed_does_not_end_with_its_short_token():
    assert (
        session_tokens.session_expiry({"cookies": f"token={SHORT}; refresh_token=opaque"}) is None
    )


@pytest.mark.parametrize(
    "secrets",
    [
        pytest.param({}, id="none"),
        pytest.param({"cookies": {"not": "a text"}}, id="cookies-no-text"),
        pytest.param({"headers": "no object"}, id="headers-no-object"),
        pytest.param({"headers": {"authorization": f"Basic {LASTING}"}}, id="not-a-bearer"),
        *(
            pytest.param({"cookies": cookies}, id=f"cookies-{cookies}")
            for cookies in ("", "a=b", "token", "token=", "token=a", "token=a.b.c", "token=a.YQ.c")
        ),
        *(
            pytest.param({"cookies": f"token={token}"}, id=name)
            for name, token in {
                "not-ascii": "é.é.é",
                "no-claim": jwt({}),
                "text": jwt({"exp": "soon"}),
                "boolean": jwt({"exp": True}),
                "far-too-large": jwt({"exp": 1e300}),
                "milliseconds": jwt({"exp": SOON_S * 1000}),
                "long-integer": jwt({"exp": 10**4000}),
                "negative": jwt({"exp": -(10**18)}),
                "list": jwt([]),
                "number": jwt(5),
                "deep": f"a.{base64.urlsafe_b64encode(b'[' * 90_000).decode()}.c",
            }.items()
        ),
    ],
)
def test_a_token_that_does_not_say_has_no_end(secrets):
    assert session_tokens.session_expiry(secrets) is None


def test_a_renewed_session_keeps_everything_but_what_is_new():
    before = {
        "cookies": "acw_tc=1; token=old; refresh_token=first; x-ap=eu",
        "headers": {"Authorization": "Bearer old", "bx-ua": "231!x"},
        "token": "T2gA",
    }
    after = session_tokens.renewed(before, {"token": "new", "refresh_token": "second"})
    assert after == {
        "cookies": "acw_tc=1; token=new; refresh_token=second; x-ap=eu",
        "headers": {"Authorization": "Bearer new", "bx-ua": "231!x"},
        "token": "T2gA",
    }
    assert before["cookies"].startswith("acw_tc=1; token=old")


def test_a_jar_without_the_cookie_gets_it_at_its_end():
    after = session_tokens.renewed({"cookies": "refresh_token=r"}, {"token": "new"})
    assert after["cookies"] == "refresh_token=r; token=new"

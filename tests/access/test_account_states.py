"""The way out of each state, in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qwenproxy.access.account_states import PAUSED, way_out
from qwenproxy.access.models import UpstreamAccount

KINDS = [kind for kind, _ in UpstreamAccount.KINDS]
STATES = [state for state, _ in UpstreamAccount.STATES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [*STATES, PAUSED])
def test_every_state_but_ready_has_a_way_out(kind, state):
    assert bool(way_out(kind, state)) == (state != "ready")


@pytest.mark.parametrize("state", ["cooling", "challenged", "expired"])
def test_it_says_when_the_account_is_tried_again(state):
    until = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
    assert "at 2026-11-22 12:30:00 UTC" in way_out("qwen_web", state, until)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        pytest.param("qwen_web", "Copy as cURL", id="web-session"),
        pytest.param("dashscope", "API key", id="dashscope"),
        pytest.param("openai_compatible", "API key", id="server"),
    ],
)
def test_new_credentials_are_named_as_the_kind_has_them(kind, word):
    assert word in way_out(kind, "expired")

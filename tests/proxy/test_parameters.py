"""What becomes of each parameter with each kind of upstream: the code's table, and the page's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from qwenproxy.upstream.parameters import KINDS, TABLE, Treatment, treatment
from requests_app.models import Request
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"
# Rows that are told of on the page without a parameter's name.
ANY_OTHER = "any other"
# A value of each that asks for something; strange ones have the strange name's.
VALUES: dict[str, Any] = {
    "n": 1,
    "user": "u1",
    "metadata": {"a": "b"},
    "store": True,
    "temperature": 0,
    "top_p": 0.5,
    "top_k": 20,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "seed": 7,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "prediction": {"type": "content", "content": "x"},
    "service_tier": "auto",
    "verbosity": "low",
    "stop": ["said"],
    "response_format": {"type": "json_object"},
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"50256": -100},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "web_search_options": {},
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "suffix": "the end",
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "reasoning_effort": "high",
    "enable_thinking": True,
    "thinking_budget": 100,
    "chat_template_kwargs": {"enable_thinking": True},
    "reasoning": {"effort": "high"},
    "include_reasoning": True,
    "strange": "value",
}


@pytest.fixture
def serve(serve_upstream, make_account):
    def serve(kind: str) -> tuple[str, Any]:
        if kind == "demo":
            make_account("demo", "")
            return "qwen-demo", None
        served = serve_upstream(kind)
        return served.model, served

    return serve


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_fares_as_the_table_says(open_gateway, serve, kind):
    model, served = serve(kind)
    gateway = open_gateway()
    wrong = []
    for name, value in VALUES.items():
        if served is not None:
            served.double.requests.clear()
            if name == "response_format" and kind == "qwen_web":
                served.enqueue(Reply(text='{"a": 1}'))
        seen = _seen(gateway.ask(model, **{name: value}), name, value, served)
        expected = treatment(kind, name)
        if expected in ("gateway", "emulated"):
            # Whether the upstream is told as well is not what the table is about.
            ok = seen in ("passed", "silent")
        else:
            ok = seen == expected
        if not ok:
            wrong.append((name, expected, seen))
    assert not wrong


def _seen(answer: Any, name: str, value: Any, served: Any) -> str:
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        assert served is None or not served.turns
        return "refused"
    assert answer.status_code == 200, answer.text
    if name in answer.headers.get("x-qwenproxy-ignored", "").split(", "):
        assert served is None or name not in served.turns[0].body
        return "ignored"
    if served is not None and served.turns[0].body.get(name) == value:
        return "passed"
    return "silent"


def test_every_parameter_of_the_table_is_tried():
    assert set(TABLE) == set(VALUES) - {"strange"}


def test_the_page_has_the_same_table():
    rows = re.findall(
        r"^\| (`?)([a-z_ ]+)\1((?: \| [a-z]+){4}) \|$", PAGE.read_text(), re.MULTILINE
    )
    page = {name: tuple(cells.strip(" |").split(" | ")) for _, name, cells in rows}
    assert set(get_args(Treatment)) >= {cell for row in page.values() for cell in row}
    other = tuple(treatment(kind, "strange") for kind in KINDS)
    assert page == {**TABLE, ANY_OTHER: other}


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_a_value_that_asks_for_nothing_is_neither_refused_nor_named(open_gateway, serve, value):
    model, _ = serve("qwen_web")
    answer = open_gateway().ask(model, logit_bias=value, functions=value, strange=value)
    assert answer.status_code == 200
    assert "x-qwenproxy-ignored" not in answer.headers


def test_names_that_no_header_can_hold_are_left_out(open_gateway, serve):
    model, _ = serve("qwen_web")
    strange = {"a\r\nx-evil: 1": 1, "größe": 1, "a, b": 1, "x" * 65: 1, "fine": 1}
    many = {f"p{i}": 1 for i in range(100)}
    answer = open_gateway().ask(model, **strange, **many)
    assert answer.status_code == 200
    named = answer.headers["x-qwenproxy-ignored"].split(", ")
    assert named[:2] == ["fine", "p0"]
    assert len(named) == 30
    assert "x-evil" not in answer.headers


def test_a_refusal_is_on_record(open_gateway, serve):
    model, _ = serve("qwen_web")
    assert open_gateway().ask(model, logprobs=True).status_code == 400
    row = Request.objects.select_related("response").get()
    assert row.response.error_code == "unsupported_parameter"


@pytest.fixture
def mixed(serve_upstream):
    """A web session and an own server that serve the same model; the web session is the first choice."""
    native = serve_upstream("openai_compatible", name="native", priority=2)
    web = serve_upstream("qwen_web", name="web", priority=1)
    native.double.models = (web.model,)
    return web, native


def test_of_mixed_accounts_one_that_takes_the_parameters_answers(open_gateway, mixed):
    web, native = mixed
    gateway = open_gateway()
    answer = gateway.ask(web.model, logprobs=True, seed=7)
    assert answer.status_code == 200
    assert "x-qwenproxy-ignored" not in answer.headers
    assert (len(web.turns), len(native.turns)) == (0, 1)
    answer = gateway.ask(web.model, logprobs=False, seed=7)
    assert answer.headers["x-qwenproxy-ignored"] == "seed"
    assert (len(web.turns), len(native.turns)) == (1, 1)


def test_the_failure_of_one_that_takes_the_parameters_is_told(open_gateway, mixed):
    web, native = mixed
    native.enqueue(Reply(status=429, body={"error": {"message": "no"}}))
    answer = open_gateway().ask(web.model, logprobs=True)
    assert answer.status_code == 429
    assert web.turns == []


def test_what_no_account_takes_is_refused_by_name(open_gateway, serve_upstream):
    served = serve_upstream("qwen_web", name="one")
    serve_upstream("qwen_web", name="two")
    answer = open_gateway().ask(served.model, logprobs=True)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")


@pytest.mark.parametrize("first_fails", [False, True])
def test_a_parameter_is_emulated_for_the_account_that_answers(open_gateway, mixed, first_fails):
    web, native = mixed
    if first_fails:
        web.enqueue(Reply(status=429, body={"error": {"message": "no"}}))
    text = '{"a": 1}'
    (native if first_fails else web).enqueue(text)
    schema = {"type": "json_object"}
    answer = open_gateway().ask(web.model, response_format=schema, stop=["}{"], seed=1)
    assert answer.json()["choices"][0]["message"]["content"] == text
    assert answer.headers.get("x-qwenproxy-ignored") == (None if first_fails else "seed")
    if first_fails:
        sent = native.turns[-1].body
        assert (sent["response_format"], sent["seed"]) == (schema, 1)


def test_an_agents_usual_parameters_are_named_on_a_stream_too(open_gateway, serve):
    model, _ = serve("qwen_web")
    with open_gateway().open_stream(model, temperature=0, max_tokens=100) as answer:
        answer.read()
        assert answer.headers["x-qwenproxy-ignored"] == "temperature, max_tokens"


def test_browsers_may_read_which_were_ignored(open_gateway, serve):
    model, _ = serve("qwen_web")
    gateway = open_gateway()
    body = {"model": model, "messages": HELLO, "seed": 1}
    answer = gateway.http.post(
        "/v1/chat/completions", json=body, headers={"origin": "http://app.test"}
    )
    assert "x-qwenproxy-ignored" in answer.headers["access-control-expose-headers"]

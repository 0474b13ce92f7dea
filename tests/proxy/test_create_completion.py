"""`POST /v1/completions`: OpenAI's legacy form."""

from __future__ import annotations

import json

import openai
import pytest

from requests_app.models import Request, Response
from tests.conftest import sse_bodies
from tests.doubles.server import Reply
from tests.proxy.conftest import attempts_of, ended_response, reply_text

COMPLETIONS = "/v1/completions"


def enqueue(upstream, reply):
    """Script the answer where this upstream gives it."""
    upstream.enqueue(reply, path=COMPLETIONS if upstream.kind == "openai_compatible" else None)


def complete(gateway, model, **fields):
    return gateway.http.post(COMPLETIONS, json={"model": model, "prompt": "Once", **fields})


def test_a_whole_completion(open_gateway, upstream):
    answer = open_gateway().sdk.completions.create(model=upstream.model, prompt="Once upon")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "You said: Once upon"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 0
    row = ended_response()
    assert (row.status, row.response_id) == ("completed", answer.id)
    assert reply_text(row) == "You said: Once upon"
    assert (row.request.dialect, row.request.path) == ("completions", COMPLETIONS)
    assert json.loads(row.request.prompt.content) == "Once upon"
    assert "prompt" not in json.loads(row.request.parameters)


def test_a_streamed_completion(open_gateway, upstream):
    gateway = open_gateway()
    stream = gateway.sdk.completions.create(
        model=upstream.model,
        prompt="Once upon",
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "You said: Once upon"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == Response.objects.get().total_tokens
    text = complete(gateway, upstream.model, stream=True).text
    assert text.endswith("data: [DONE]\n\n")
    assert {c["object"] for c in sse_bodies(text)} == {"text_completion"}


def test_a_server_with_completions_gets_the_prompt_itself(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    complete(open_gateway(), upstream.model, suffix="end", max_tokens=5)
    (turn,) = upstream.turns
    assert turn.path == COMPLETIONS
    assert (turn.body["prompt"], turn.body["suffix"], turn.body["max_tokens"]) == ("Once", "end", 5)
    assert "messages" not in turn.body


def test_the_web_upstream_gets_it_as_a_message(open_gateway, serve_upstream):
    upstream = serve_upstream("qwen_web")
    complete(open_gateway(), upstream.model)
    assert upstream.turns[0].body["messages"][0]["content"] == "Once"
    assert Request.objects.get().upstream == "new"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        pytest.param({"prompt": None}, "prompt", id="none"),
        pytest.param({"prompt": ["a", "b"]}, "prompt", id="two"),
        pytest.param({"prompt": [1, 2]}, "prompt", id="tokens"),
        pytest.param({"echo": True}, "echo", id="echo"),
        pytest.param({"best_of": 3}, "best_of", id="best-of"),
        pytest.param({"n": 2}, "n", id="n"),
        pytest.param({"stop": {}}, "stop", id="stop"),
        pytest.param({"max_tokens": "many"}, "max_tokens", id="max-tokens"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(open_gateway, upstream, fields, param):
    answer = complete(open_gateway(), upstream.model, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert Request.objects.count() == 0


def test_a_list_of_one_prompt_is_a_prompt(open_gateway, upstream):
    answer = complete(open_gateway(), upstream.model, prompt=["Once"])
    assert answer.json()["choices"][0]["text"] == "You said: Once"


def test_a_failure_before_the_first_byte(open_gateway, upstream):
    enqueue(upstream, Reply(body="no", status=429))
    with pytest.raises(openai.RateLimitError):
        open_gateway().sdk.completions.create(model=upstream.model, prompt="Once", stream=True)
    assert ended_response().http_status == 429


def test_a_failure_in_the_middle(open_gateway, upstream):
    enqueue(upstream, Reply(text="one two three four", cut_after=4))
    text = complete(open_gateway(), upstream.model, stream=True).text
    assert "[DONE]" not in text
    assert sse_bodies(text)[-1]["error"]["code"] == "upstream_error"
    row = ended_response()
    assert (row.status, row.finish_reason) == ("failed", "error")
    assert reply_text(row).startswith("one")
    assert len(attempts_of(row)) == 1

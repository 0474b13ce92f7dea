"""What a client of a limited key sees, and two gateways that share its limits."""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from qwenproxy import metrics
from qwenproxy.access import auth
from qwenproxy.access.models import ApiKey
from requests_app.models import Request
from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.server import Reply, serve_in_thread
from tests.test_serve import database_url, serve  # noqa: F401  # fixtures

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def limit(api_key, transactional_db):
    def limit(**limits):
        ApiKey.objects.update(**limits)
        auth.invalidate()

    return limit


@pytest.fixture
def running(serve_upstream, open_gateway, limit):
    served = serve_upstream("openai_compatible")
    running = open_gateway()
    running.model, running.upstream = served.model, served
    return running


def rate_headers(answer):
    return {name: value for name, value in answer.headers.items() if name[:11] == "x-ratelimit"}


def test_a_key_without_limits_is_told_nothing(running):
    answer = running.ask(running.model)
    assert answer.status_code == 200
    assert rate_headers(answer) == {}


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_left_is_told_with_every_answer(running, limit, stream):
    limit(requests_per_minute=10, tokens_per_minute=5000)
    answer = running.ask(running.model, stream=stream, max_tokens=90)
    assert answer.status_code == 200
    headers = rate_headers(answer)
    # "Hello!" is two tokens, and the answer may have 90.
    assert headers.pop("x-ratelimit-reset-requests") in ("1m0s", "1m1s")
    assert headers.pop("x-ratelimit-reset-tokens") in ("1m0s", "1m1s")
    assert headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "4908",
    }


def test_an_upstream_that_fails_is_told_with_what_is_left(running, limit):
    limit(requests_per_minute=10)
    running.upstream.enqueue(Reply(status=400, body={"error": {"message": "no"}}))
    answer = running.ask(running.model)
    assert answer.status_code == 400
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"


def test_a_refused_request_never_reaches_the_upstream_nor_the_record(running, limit):
    limit(requests_per_minute=1)
    before = metrics.REFUSED.labels("requests")._value.get()
    assert running.ask(running.model).status_code == 200
    answer = running.ask(running.model, stream=True)
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert re.search(r"1 requests a minute and has made 1\. Try again in", error["message"])
    assert 50 <= int(answer.headers["retry-after"]) <= 61
    assert int(answer.headers["retry-after-ms"]) <= int(answer.headers["retry-after"]) * 1000
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(running.upstream.turns) == 1
    assert Request.objects.count() == 1
    assert metrics.REFUSED.labels("requests")._value.get() == before + 1


def test_openais_client_reads_a_refusal(running, limit):
    limit(tokens_per_day=50)
    with pytest.raises(openai.RateLimitError) as caught:
        running.sdk.chat.completions.create(model=running.model, messages=HELLO, max_tokens=100)
    assert caught.value.code == "insufficient_quota"
    assert "lower max_tokens" in caught.value.message
    running.sdk.chat.completions.create(model=running.model, messages=HELLO, max_tokens=48)


def test_a_browser_may_read_what_is_left(running, limit):
    limit(requests_per_minute=1)
    answer = running.http.post(
        "/v1/chat/completions",
        json={"model": running.model, "messages": HELLO},
        headers={"Origin": "https://app.example"},
    )
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert set(rate_headers(answer)) <= set(exposed)
    assert {"retry-after", "retry-after-ms"} <= set(exposed)


def test_an_answer_without_a_bound_holds_what_the_setting_says(serve_upstream, open_gateway, limit):
    served = serve_upstream("openai_compatible")
    running = open_gateway(RESERVED_TOKENS=300)
    limit(tokens_per_month=1000)
    answer = running.ask(served.model)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "698"
    # Its end has put the true count in the place of what was held.
    left = running.ask(served.model).headers["x-ratelimit-remaining-tokens"]
    assert int(left) > 600


def test_a_second_answer_waits_for_the_end_of_the_first(running, limit):
    limit(max_concurrent=1)
    held = Reply(text="one two three", pause_after=2)
    running.upstream.enqueue(held)
    with running.open_stream(running.model) as first:
        assert first.status_code == 200
        refused = running.ask(running.model)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
        held.resume.set()
        # Who has read the end may ask at once.
        for line in first.iter_lines():
            if '"finish_reason":"stop"' in line:
                break
        assert running.ask(running.model).status_code == 200


def test_a_limit_of_0_lets_nothing_through(running, limit):
    limit(requests_per_minute=0)
    answer = running.ask(running.model)
    assert answer.status_code == 429
    assert "0 requests a minute" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers
    assert Request.objects.count() == 0


def test_a_limit_that_is_raised_holds_at_once(running, limit):
    limit(requests_per_minute=1)
    assert [running.ask(running.model).status_code for _ in range(3)] == [200, 429, 429]
    limit(requests_per_minute=2)
    assert [running.ask(running.model).status_code for _ in range(2)] == [200, 429]
    limit(requests_per_minute=None)
    assert running.ask(running.model).status_code == 200


# Two processes.

# What the prompt is estimated at and `max_tokens`, and what an answer truly takes.
HELD, TAKEN = 100, 60


class Counting(OpenAICompatibleDouble):
    def _usage(self, request, reply):
        return {"prompt_tokens": 2, "completion_tokens": TAKEN - 2, "total_tokens": TAKEN}


class Clients:
    """Threads that hammer on gateways with one key."""

    def __init__(self, urls, key):
        self.urls = urls
        self.headers = {"Authorization": f"Bearer {key}"}
        self.body = {"model": "qwen3-8b", "messages": HELLO, "max_tokens": HELD - 2}
        self.answers: list[httpx.Response] = []

    def hammer(self, count, seconds):
        until = time.monotonic() + seconds

        def one(number):
            with httpx.Client(
                base_url=self.urls[number % len(self.urls)],
                headers=self.headers,
                timeout=60,
                verify=NO_TLS,
            ) as client:
                while time.monotonic() < until:
                    answer = client.post("/v1/chat/completions", json=self.body)
                    self.answers.append(answer)
                    if answer.status_code == 429:
                        # Clients that never pause would take the machine from the gateways.
                        time.sleep(0.5)

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(one, range(count)))
        return Counter(answer.status_code for answer in self.answers)


@pytest.fixture
def gateways(serve):  # noqa: F811  # the fixture
    """Two processes on one database, and what makes a key for them."""
    with serve_in_thread(Counting()) as upstream_url:
        environ = {"OPENAI_COMPATIBLE_BASE_URL": f"{upstream_url}/v1"}
        first = serve(**environ).wait_until_ready()
        second = serve(**environ).wait_until_ready()

        def make_key(**limits):
            made = httpx.post(
                f"{first.url}/v1/keys",
                json={"name": "limited", "scopes": ["chat"], **limits},
                headers={"Authorization": f"Bearer {first.key}"},
                verify=NO_TLS,
            )
            assert made.status_code in (200, 201), made.text
            return made.json()["key"]

        yield [first.url, second.url], make_key


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_20_clients_of_two_gateways_get_what_the_limit_lets_through(gateways):
    urls, make_key = gateways
    # The limit, what an answer takes of it, and how often it begins anew in 160 seconds: a minute's at once,
    # after 60.25 and after 120.5 seconds.
    cases = (
        ("requests_per_minute", 300, 1, 3),
        ("tokens_per_minute", 30_000, TAKEN, 3),
        ("tokens_per_day", 30_000, TAKEN, 1),
    )
    with ThreadPoolExecutor() as pool:
        hammered = [
            pool.submit(Clients(urls, make_key(**{name: limit})).hammer, 20, 160)
            for name, limit, _, _ in cases
        ]
    for (name, limit, units, times), answered in zip(cases, hammered, strict=True):
        counts = answered.result()
        assert set(counts) == {200, 429}, name
        assert counts[429] > 1000, name
        assert 0.99 * times * limit <= counts[200] * units <= times * limit, name

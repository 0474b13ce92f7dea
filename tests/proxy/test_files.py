"""Images and files in messages, from the client to the upstream and to the record."""

from __future__ import annotations

import base64

import pytest

from qwenproxy.access.models import ApiKey
from qwenproxy.proxy.outcome import TOKENS_PER_FILE
from requests_app.models import Blob, Request
from tests.proxy.conftest import ended_response

pytestmark = pytest.mark.django_db(transaction=True)

DATA = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()
PNG = f"data:image/png;base64,{DATA}"
IMAGE = {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}
DOCUMENT = {"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}}


def asking(*parts):
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}]


@pytest.fixture(params=["openai_compatible", "dashscope"])
def native(request, serve_upstream):
    served = serve_upstream(request.param)
    served.account.base_url = f"{served.url}/v1"
    served.account.save()
    return served


def test_native_upstreams_get_files_as_they_are(native, open_gateway):
    gateway, messages = open_gateway(), asking(IMAGE, AUDIO, DOCUMENT)
    native.enqueue("A picture.")
    answer = gateway.ask(native.model, messages=messages)
    assert answer.status_code == 200
    assert native.turns[-1].body["messages"] == messages
    shown = gateway.http.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
    assert shown["openai_request"]["messages"] == messages
    assert shown["qwen_request"]["messages"] == messages
    assert shown["qwen_request_exact"] is True
    assert Blob.objects.count() == 2
    assert len(Request.objects.get().prompt.content) < 1000


def test_a_conversation_with_an_image_goes_on(upstream, open_gateway):
    if upstream.kind == "qwen_web":
        pytest.skip("asked of native upstreams")
    gateway, messages = open_gateway(), asking(IMAGE)
    upstream.enqueue("A cat.", "Grey.")
    gateway.ask(upstream.model, messages=messages)
    # Another order of members, and a marker that means nothing.
    again = {"image_url": IMAGE["image_url"], "type": "image_url", "cache_control": {}}
    messages = asking(again)
    messages += [{"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Colour?"}]
    answer = gateway.ask(upstream.model, messages=messages)
    assert answer.status_code == 200
    assert list(Request.objects.order_by("id").values_list("match", flat=True)) == [
        "new",
        "continued",
    ]
    assert Blob.objects.count() == 1


def test_a_web_turn_is_recorded_with_its_files(serve_upstream, open_gateway):
    web, gateway, messages = serve_upstream("qwen_web"), open_gateway(), asking(IMAGE)
    web.enqueue("A cat.", "Grey.")
    answer = gateway.ask(web.model, messages=messages)
    messages += [{"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Colour?"}]
    again = gateway.ask(web.model, messages=messages)
    assert len(web.double.uploads) == 1
    for found, count in ((answer, 1), (again, 0)):
        shown = gateway.http.get(f"/v1/requests/{found.headers['x-request-id']}").json()
        assert shown["qwen_request_exact"] is True
        (sent,) = shown["qwen_request"]["messages"]
        assert len(sent["files"]) == count
        assert "signature" not in str(sent["files"])
    assert shown["openai_request"]["messages"] == messages
    assert shown["upstream"] == "continued"


def test_a_file_that_the_web_cannot_have_is_named(serve_upstream, open_gateway):
    web = serve_upstream("qwen_web")
    part = {"type": "image_url", "image_url": {"url": "https://pictures.example/cat.png"}}
    answer = open_gateway().ask(web.model, messages=asking(part))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages.0.content.1.image_url"
    assert "QWENPROXY_FETCH_URLS" in error["message"]
    assert web.double.requests_to("/api/v2/chats/new") == []


def test_anthropics_bodies_are_rebuilt_with_their_images(serve_upstream, open_gateway):
    native, gateway = serve_upstream("openai_compatible"), open_gateway()
    native.enqueue("A picture.")
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    content = [{"type": "text", "text": "What?"}, {"type": "image", "source": source}]
    body = {
        "model": native.model,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": content}],
    }
    answer = gateway.http.post("/v1/messages", json=body)
    assert answer.status_code == 200
    assert native.turns[-1].body["messages"][0]["content"][1]["image_url"]["url"] == PNG
    shown = gateway.http.get(f"/v1/requests/{answer.headers['request-id']}").json()
    assert shown["openai_request"]["messages"] == body["messages"]
    assert Blob.objects.count() == 1


def test_the_bytes_of_files_are_not_counted_as_text(serve_upstream, open_gateway):
    native, gateway = serve_upstream("openai_compatible"), open_gateway()
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    content = [{"type": "text", "text": "What?"}, {"type": "image", "source": source}]
    body = {"model": native.model, "messages": [{"role": "user", "content": content}]}
    answer = gateway.http.post("/v1/messages/count_tokens", json=body)
    assert answer.json() == {"input_tokens": TOKENS_PER_FILE + 2}


def test_a_key_without_content_leaves_no_bytes(serve_upstream, open_gateway):
    native = serve_upstream("openai_compatible")
    ApiKey.objects.update(recorded="metadata")
    native.enqueue("A picture.")
    assert open_gateway().ask(native.model, messages=asking(IMAGE)).status_code == 200
    row = ended_response()
    assert not Blob.objects.exists()
    assert DATA[:40] not in row.request.prompt.content
    assert '"image/png"' in row.request.prompt.content

"""Files of a turn on the web upstream: uploaded as the site's own client does, once, and named."""

from __future__ import annotations

import asyncio
import base64

import pytest

from qwenproxy.errors import (
    InvalidRequest,
    UpstreamAuthExpired,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwenproxy.upstream import http, qwen_web_files
from qwenproxy.upstream.fetching import Fetched, FetchError
from qwenproxy.upstream.protocol import ChatTarget, UpstreamCall
from qwenproxy.upstream.qwen_web import QwenWeb
from qwenproxy.wire.events import Sent
from tests.doubles.qwen_web import BUCKET, STS_TOKEN
from tests.doubles.server import Reply
from tests.upstream.conftest import ask, make_account, read_outcome

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def data_url(content=PICTURE, media_type="image/png"):
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image(url=None):
    return {"type": "image_url", "image_url": {"url": url or data_url()}}


def document(content=b"%PDF-1.7", name="report.pdf"):
    return {
        "type": "file",
        "file": {"filename": name, "file_data": data_url(content, "application/pdf")},
    }


def call(*parts, text="What is it?", **fields):
    content = [{"type": "text", "text": text}, *parts] if text else list(parts)
    return UpstreamCall("qwen3-vl-plus", [{"role": "user", "content": content}], **fields)


def asked(served, *calls):
    return ask(QwenWeb, make_account(served.url, kind="qwen_web"), *calls)


def files_of(served, turn=-1):
    return served.double.turns[turn].body["messages"][0]["files"]


def test_an_image_is_uploaded_and_named(qwen_web):
    outcome = asked(qwen_web, call(image()))
    assert outcome.error is None
    (upload,) = qwen_web.double.uploads.values()
    assert (upload.content, upload.content_type) == (PICTURE, "image/png")
    assert upload.wanted == {
        "filename": "image-1.png",
        "filesize": len(PICTURE),
        "filetype": "image",
    }
    (entry,) = files_of(qwen_web)
    assert entry["id"] == entry["file"]["id"] == upload.id
    assert entry["url"] == upload.url
    assert (entry["type"], entry["showType"], entry["file_class"]) == ("image", "image", "vision")
    assert (entry["status"], entry["greenNet"]) == ("uploaded", "success")
    message = qwen_web.double.turns[0].body["messages"][0]
    assert message["content"] == "What is it?"


def test_the_store_gets_no_credentials_of_the_account(qwen_web):
    asked(qwen_web, call(image()))
    (put,) = [request for request in qwen_web.double.requests if request.method == "PUT"]
    assert "cookie" not in put.headers
    assert "bx-umidtoken" not in put.headers
    # The store wants to know how much comes.
    assert put.headers["content-length"] == str(len(PICTURE))


def test_the_record_cannot_open_the_file(qwen_web):
    outcome = asked(qwen_web, call(image()))
    (sent,) = [event for event in outcome.events if isinstance(event, Sent)]
    (entry,) = sent.request["messages"][0]["files"]
    assert "signature" not in entry["url"]
    assert "planted" in files_of(qwen_web)[0]["url"]


def test_an_image_alone(qwen_web):
    assert asked(qwen_web, call(image(), text="")).error is None
    assert qwen_web.double.turns[0].body["messages"][0]["content"] == ""


@pytest.mark.parametrize("name", ["a b+c.png", "Über 图.png", "50%.png", "x~y'(1).png"])
def test_names_of_all_kinds_are_signed(qwen_web, name):
    part = {"type": "file", "file": {"filename": name, "file_data": data_url()}}
    assert asked(qwen_web, call(part)).error is None


def test_a_document_is_read_before_the_turn(qwen_web, monkeypatch):
    monkeypatch.setattr(qwen_web_files, "_PARSE_POLL_S", 0.01)
    qwen_web.double.parse_answers = ["pending", "pending"]
    assert asked(qwen_web, call(document())).error is None
    (entry,) = files_of(qwen_web)
    assert (entry["type"], entry["file_class"], entry["name"]) == ("file", "document", "report.pdf")
    assert entry["file"]["meta"]["parse_meta"] == {"parse_status": "success"}


def test_audio_and_video(qwen_web):
    audio = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    video = {"type": "video_url", "video_url": {"url": data_url(b"mp4", "video/mp4")}}
    assert asked(qwen_web, call(audio, video)).error is None
    kinds = [(e["type"], e["file_type"], e["greenNet"]) for e in files_of(qwen_web)]
    assert kinds == [("audio", "audio/wav", "success"), ("video", "video/mp4", "greening")]


def test_a_file_goes_up_once(qwen_web):
    assert asked(qwen_web, call(image(), image()), call(image(), text="Again")).error is None
    # The first turn's second image has a name of its own.
    assert len(qwen_web.double.uploads) == 2
    assert files_of(qwen_web, 1)[0]["id"] == files_of(qwen_web, 0)[0]["id"]


def test_a_file_goes_up_again_once_its_address_has_ended(qwen_web, monkeypatch):
    monkeypatch.setattr(qwen_web_files, "_VALID_S", 0.0)
    assert asked(qwen_web, call(image()), call(image())).error is None
    assert len(qwen_web.double.uploads) == 2


def test_only_so_many_are_remembered(qwen_web, monkeypatch):
    monkeypatch.setattr(qwen_web_files, "_MAX_REMEMBERED", 1)
    other = image(data_url(b"other"))
    assert asked(qwen_web, call(image()), call(other), call(other), call(image())).error is None
    assert len(qwen_web.double.uploads) == 3


def test_only_files_of_messages_that_are_sent_go_up(qwen_web):
    async def main():
        async with http.open_client() as client:
            upstream = QwenWeb(client, make_account(qwen_web.url, kind="qwen_web"))
            first = call(image())
            answer = (await read_outcome(upstream, first)).answer
            target = ChatTarget(answer.started.chat_id, answer.started.response_id, 2)
            messages = [
                *first.messages,
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": "And its colour?"},
            ]
            return await read_outcome(upstream, UpstreamCall(first.model, messages, chat=target))

    assert asyncio.run(main()).error is None
    assert len(qwen_web.double.uploads) == 1
    assert files_of(qwen_web) == []


def test_a_history_says_where_its_files_stood(qwen_web):
    messages = [
        {"role": "user", "content": [image(), {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert asked(qwen_web, UpstreamCall("qwen3-max", messages)).error is None
    prompt = qwen_web.double.turns[0].body["messages"][0]["content"]
    assert "[User]\n[Attached: image-1.png]\nWhat is it?" in prompt
    assert len(files_of(qwen_web)) == 1


PLACE = "messages.0.content.1."


@pytest.mark.parametrize(
    ("part", "param", "said"),
    [
        (image("data:image/png;base64,?"), "image_url", "not base64"),
        (image("data:image/png;base64,"), "image_url", "0 bytes"),
        (image("data:text/plain,x"), "image_url", "text/plain, not image"),
        (image("iVBORw0KGgo="), "image_url", "must be a data URL"),
        (image("file:///etc/passwd"), "image_url", "must be a data URL"),
        (image("https://a.example/x.png"), "image_url", "QWENPROXY_FETCH_URLS"),
        ({"type": "image_url"}, "image_url", "holds no file"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file", "by id"),
        ({"type": "input_audio", "input_audio": {"data": "?"}}, "input_audio", "not base64"),
    ],
)
def test_parts_that_cannot_be_served_are_named(qwen_web, part, param, said):
    error = asked(qwen_web, call(part)).error
    assert isinstance(error, InvalidRequest)
    assert error.param == PLACE + param
    assert said in error.message
    assert qwen_web.double.requests == []


def test_more_files_than_the_site_takes(qwen_web):
    error = asked(qwen_web, call(*[image()] * 8)).error
    assert isinstance(error, InvalidRequest)
    assert error.param == "messages.0.content.8.image_url"
    assert qwen_web.double.requests == []


def test_a_file_larger_than_the_site_takes(qwen_web, monkeypatch):
    monkeypatch.setitem(qwen_web_files._LIMITS, "image", (7, 100))
    error = asked(qwen_web, call(image())).error
    assert isinstance(error, InvalidRequest)
    assert "264 bytes" in error.message


def test_a_media_type_that_no_header_holds(qwen_web):
    part = {"type": "file", "file": {"file_data": "data:a\x00b;base64,AA=="}}
    assert asked(qwen_web, call(part)).error is None
    (upload,) = qwen_web.double.uploads.values()
    assert upload.content_type == "application/octet-stream"


@pytest.mark.parametrize("part", [{"type": "refined", "x": 1}, 7])
def test_parts_that_are_neither_text_nor_file(qwen_web, part):
    error = asked(qwen_web, call(part)).error
    assert isinstance(error, InvalidRequest)
    assert error.param == "messages.0.content"


@pytest.fixture
def fetcher(settings, monkeypatch):
    """What addresses hold."""
    settings.FETCH_URLS = True
    web = {}

    class Stub:
        async def fetch(self, url):
            found = web[url]
            if isinstance(found, Exception):
                raise found
            return found

    monkeypatch.setattr(qwen_web_files, "Fetcher", Stub)
    return web


def test_an_address_is_fetched_where_that_is_allowed(qwen_web, fetcher):
    fetcher["https://a.example/cat.png"] = Fetched("image/png", PICTURE)
    assert asked(qwen_web, call(image("https://a.example/cat.png"))).error is None
    (upload,) = qwen_web.double.uploads.values()
    assert upload.content == PICTURE
    assert upload.wanted["filename"] == "cat.png"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (FetchError("its host has no public address"), "no public address"),
        (Fetched("text/html", b"<p>"), "text/html, not image"),
        (Fetched("", b"x"), "application/octet-stream, not image"),
    ],
)
def test_what_cannot_be_fetched_is_named(qwen_web, fetcher, found, said):
    fetcher["https://a.example/cat.png"] = found
    error = asked(qwen_web, call(image("https://a.example/cat.png"))).error
    assert isinstance(error, InvalidRequest)
    assert error.param == PLACE + "image_url"
    assert said in error.message


def test_the_store_refuses(qwen_web):
    xml = "<Error><Code>InvalidAccessKeyId</Code><X>token of STS.1</X></Error>"
    qwen_web.double.enqueue(Reply(body=xml, status=403), path=BUCKET)
    error = asked(qwen_web, call(image())).error
    assert type(error) is UpstreamError
    assert error.error_code == "upload_failed"
    assert "403, InvalidAccessKeyId" in error.message
    assert "token" not in error.body
    assert qwen_web.double.turns == []


def test_a_signature_with_a_wrong_secret_is_refused(qwen_web, monkeypatch):
    monkeypatch.setattr(
        qwen_web_files._Grant, "access_key_secret", property(lambda self: "another")
    )
    error = asked(qwen_web, call(image())).error
    assert "SignatureDoesNotMatch" in error.message


def test_no_place_for_an_upload(qwen_web):
    body = {"success": True, "data": {"file_id": "1"}}
    qwen_web.double.enqueue(Reply(body=body), path=STS_TOKEN)
    assert isinstance(asked(qwen_web, call(image())).error, UpstreamProtocolError)


def test_a_session_that_has_ended(qwen_web):
    qwen_web.double.access_token = "another"
    assert isinstance(asked(qwen_web, call(image())).error, UpstreamAuthExpired)


def test_a_document_that_cannot_be_read(qwen_web):
    qwen_web.double.parse_answers, qwen_web.double.parse_end = [], "failed"
    error = asked(qwen_web, call(document())).error
    assert isinstance(error, UpstreamRefused)
    assert error.param == PLACE + "file"


def test_a_document_that_is_never_read(qwen_web, monkeypatch):
    monkeypatch.setattr(qwen_web_files, "PARSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(qwen_web_files, "_PARSE_POLL_S", 0.01)
    qwen_web.double.parse_answers = ["pending"] * 1000
    assert isinstance(asked(qwen_web, call(document())).error, UpstreamTimeout)


@pytest.mark.parametrize(
    ("url", "base_url", "is_store"),
    [
        ("https://bucket.oss.example/a", "https://chat.example", True),
        ("http://bucket.oss.example/a", "https://chat.example", False),
        ("http://169.254.169.254/a", "https://chat.example", False),
        ("http://169.254.169.254/a", "http://127.0.0.1:8000", False),
        ("http://127.0.0.1:8100/a", "http://127.0.0.1:8000", False),
        ("http://127.0.0.1:8000/a", "http://127.0.0.1:8000", True),
        ("file:///etc/passwd", "https://chat.example", False),
    ],
)
def test_a_store_is_by_https_or_beside_the_site(url, base_url, is_store):
    assert qwen_web_files._is_store(url, base_url) is is_store


def test_the_site_cannot_send_a_file_into_this_network(qwen_web, openai_compatible, monkeypatch):
    inside = qwen_web_files._object_url

    def elsewhere(grant, path):
        return inside(grant._replace(endpoint=openai_compatible.url), path)

    monkeypatch.setattr(qwen_web_files, "_object_url", elsewhere)
    assert isinstance(asked(qwen_web, call(image())).error, UpstreamProtocolError)
    assert not openai_compatible.double.requests


def test_the_stores_address():
    grant = qwen_web_files._Grant(
        "a", "b", "c", "d", "u/1_x y.png", "1", "bucket", "oss-r", "oss.example"
    )
    path = "/bucket/u/1_x%20y.png"
    assert qwen_web_files._object_url(grant, path) == "https://bucket.oss.example/u/1_x%20y.png"
    by_number = grant._replace(endpoint="http://127.0.0.1:80")
    assert qwen_web_files._object_url(by_number, path) == f"http://127.0.0.1:80{path}"

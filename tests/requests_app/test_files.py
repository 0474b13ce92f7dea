"""Files inside messages: stored once, put back whole, and gone with their last message."""

from __future__ import annotations

import base64
import json
import random
import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from qwenproxy.wire.redaction import compile_rules
from requests_app import exports
from requests_app.deletion import delete_session_rows
from requests_app.keeping import choose_keep
from requests_app.models import Blob, MessageFile, Request
from requests_app.records import load_request
from requests_app.writes import Vanished
from sessions_app.models import Message, Session
from tests.factories import make_api_key
from tests.requests_app.test_writes import SLACK, used_bytes
from tests.turns import assistant, make_opening, make_worker, open_all, take_turn, user

pytestmark = pytest.mark.django_db(transaction=True)

PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256))).decode()


@pytest.fixture(autouse=True)
def _worker(transactional_db):
    make_worker()


@pytest.fixture
def key():
    return make_api_key()


def picture(data=PIXEL, text="What is this?"):
    url = f"data:image/png;base64,{data}"
    return user([{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}])


def sent_messages(**filters):
    pk = Request.objects.filter(**filters).order_by("-id").values_list("pk", flat=True)[0]
    return load_request(pk)["openai_request"]["messages"]


def test_a_hundred_turns_with_an_image_store_it_once(key):
    data = base64.b64encode(random.Random(1).randbytes(1_000_000)).decode()
    messages = [picture(data)]
    before = used_bytes()
    for turn in range(100):
        opened = take_turn(key, *messages, answer=f"answer {turn}")
        assert opened.match == ("new" if turn == 0 else "continued")
        messages += [assistant(f"answer {turn}"), user(f"question {turn}")]
    grown = used_bytes() - before
    assert len(data) < grown < len(data) + 400_000 * SLACK
    assert list(Blob.objects.values_list("kind", flat=True)) == ["file"]
    assert MessageFile.objects.count() == 1
    assert sent_messages() == messages[:-2]


def test_conversations_of_a_key_share_a_file(key):
    take_turn(key, picture(text="one"))
    take_turn(key, picture(text="two"))
    assert Session.objects.count() == MessageFile.objects.count() == 2
    assert Blob.objects.count() == 1
    take_turn(make_api_key(), picture(text="two"))
    assert Blob.objects.count() == 2


def test_conversations_that_begin_together_share_a_file(key):
    openings = [make_opening(key, picture(text=str(number))) for number in range(3)]
    open_all(*openings)
    assert (Blob.objects.count(), MessageFile.objects.count()) == (1, 3)


def test_a_file_twice_in_a_message_is_one(key):
    message = user([*picture()["content"], *picture()["content"]])
    take_turn(key, message)
    assert (Blob.objects.count(), MessageFile.objects.count()) == (1, 1)
    assert sent_messages() == [message]


def test_a_record_is_read_with_one_query_for_all_files(key):
    message = user([*picture()["content"], *picture("AAAA")["content"]])
    take_turn(key, user("Hello"))
    take_turn(key, message)
    plain, with_files = Request.objects.order_by("id").values_list("pk", flat=True)
    counts = []
    for pk in (plain, with_files):
        with CaptureQueriesContext(connection) as queries:
            load_request(pk)
        counts.append(len(queries))
    assert counts[1] == counts[0] + 1


def test_files_go_with_their_last_message(key):
    first = take_turn(key, picture(text="one"))
    second = take_turn(key, picture(text="two"))
    assert delete_session_rows(first.session_id, key.pk)
    assert Blob.objects.count() == MessageFile.objects.count() == 1
    assert sent_messages() == [picture(text="two")]
    assert delete_session_rows(second.session_id, key.pk)
    assert not Blob.objects.exists()
    assert not MessageFile.objects.exists()


def test_another_keys_file_is_never_read(key):
    other = make_api_key()
    take_turn(other, picture())
    message = user(
        [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]
    )
    take_turn(key, message)
    stolen = Message.objects.get(session__api_key=other, role="user").content
    Message.objects.filter(session__api_key=key, role="user").update(content=stolen)
    found = sent_messages(api_key=key)[0]["content"][1]["image_url"]["url"]
    assert "$file" in found


def test_a_file_that_is_deleted_meanwhile_is_noticed(key, monkeypatch):
    nothing = "DELETE FROM requests_app_blob WHERE api_key_id = %s AND digest = %s AND kind = %s AND body = %s"
    monkeypatch.setattr("requests_app.writes._BLOB_INSERT", nothing)
    with pytest.raises(Vanished):
        open_all(make_opening(key, picture()))


def test_without_content_type_and_size_are_kept(key):
    keep = choose_keep("metadata", compile_rules([]))
    take_turn(key, picture(), keep=keep, closing={"keep": keep})
    assert not Blob.objects.exists()
    stored = json.loads(Message.objects.get(role="user").content)
    (facts,) = stored["$files"]
    assert stored.keys() == {"$files"}
    assert (facts["type"], facts["bytes"]) == ("image/png", 264)


def redacted(key, message, *rules):
    take_turn(key, message, keep=choose_keep("everything", compile_rules(rules)))
    return sent_messages()[0]["content"]


def test_rules_change_texts_beside_an_image_and_not_the_image(key):
    message = picture(text="Mail a@b.example")
    content = redacted(key, message, "@email", "[0-9a-f]{6}", "AAEC")
    assert content[0]["text"] == "Mail [redacted]"
    assert content[1:] == message["content"][1:]


def test_rules_reach_into_files_of_text(key):
    encoded = base64.b64encode(b"write to a@b.example").decode()
    file = {"type": "file", "file": {"file_data": f"data:text/plain;base64,{encoded}"}}
    content = redacted(key, user([file]), "@email")
    found = content[0]["file"]["file_data"].partition("base64,")[2]
    assert base64.b64decode(found) == b"write to [redacted]"


def test_rules_reach_into_what_is_no_base64(key):
    file = {"type": "file", "file": {"file_data": "write to a@b.example"}}
    assert redacted(key, user([file]), "@email")[0]["file"]["file_data"] == "write to [redacted]"


def test_an_export_of_sessions_has_the_files(key):
    take_turn(key, picture())
    pieces = exports._session_lines(iter([[(Session.objects.get().pk,)]]))
    line = json.loads(b"".join(piece for piece, _ in pieces))
    assert line["messages"][0]["message"] == picture()


def test_the_transcript_names_files_without_reading_them(key, admin_client):
    opened = take_turn(key, picture())
    text = admin_client.get(
        f"/admin/sessions_app/session/{opened.session_id}/change/"
    ).content.decode()
    assert "image/png, 264 B" in text
    assert PIXEL[:40] not in text


@pytest.mark.parametrize("call_id", ["c1", "nobodys"])
def test_the_transcript_shows_the_pictures_of_a_tools_result(key, admin_client, call_id):
    function = {"name": "look", "arguments": "{}"}
    call = {"id": "c1", "type": "function", "function": function}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call_id, "content": picture()["content"]}
    opened = take_turn(key, user("Look"), asked, result)
    url = picture_of(admin_client, opened.session_id)[1]
    assert admin_client.get(url)["Content-Type"] == "image/png"


def picture_of(client, session_id):
    text = client.get(f"/admin/sessions_app/session/{session_id}/change/").content.decode()
    return re.search(r'<img class="picture" src="([^"]+)"', text)


def test_the_transcript_shows_an_image_that_can_be_nothing_else(key, admin_client):
    opened = take_turn(key, picture())
    found = picture_of(admin_client, opened.session_id)
    answer = admin_client.get(found[1])
    assert answer.content == base64.b64decode(PIXEL)
    assert answer["Content-Type"] == "image/png"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Security-Policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize("media_type", ["image/svg+xml", "text/html", "application/pdf"])
def test_other_files_are_not_served(key, admin_client, media_type):
    part = {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{PIXEL}"}}
    opened = take_turn(key, user([part]))
    assert picture_of(admin_client, opened.session_id) is None
    row = MessageFile.objects.select_related("blob").get()
    url = reverse("admin:picture", args=[row.message_id, bytes(row.blob.digest).hex()])
    assert admin_client.get(url).status_code == 404


@pytest.mark.parametrize(
    ("message", "digest"), [("1", "00"), ("9" * 30, "00"), ("x", "00"), ("1", "x")]
)
def test_images_that_are_not_there(admin_client, message, digest):
    assert admin_client.get(f"/admin/picture/{message}/{digest}/").status_code == 404


def test_an_image_is_for_those_who_may_read(key, admin_client, settings):
    opened = take_turn(key, picture())
    url = picture_of(admin_client, opened.session_id)[1]
    settings.PAYLOADS = "off"
    assert admin_client.get(url).status_code == 403


def test_the_page_of_a_request_cuts_files_until_the_whole_is_asked_for(key, admin_client):
    take_turn(key, picture())
    url = f"/admin/requests_app/request/{Request.objects.get().pk}/change/"
    text = admin_client.get(url).content.decode()
    assert PIXEL[:40] in text
    assert PIXEL[:100] not in text.partition("Copy as curl")[0]
    assert "Show all" in text
    assert PIXEL in text.partition("Copy as curl")[2]
    assert PIXEL in admin_client.get(f"{url}?full=1").content.decode().partition("curl")[0]
    download = admin_client.get(f"{url}?download=openai_request")
    assert json.loads(download.content)["messages"] == [picture()]


def test_the_transcript_names_files_that_were_not_kept(key, admin_client):
    keep = choose_keep("metadata", compile_rules([]))
    opened = take_turn(key, picture(), keep=keep, closing={"keep": keep})
    text = admin_client.get(
        f"/admin/sessions_app/session/{opened.session_id}/change/"
    ).content.decode()
    assert "not recorded" in text
    assert "image/png, 264 B" in text

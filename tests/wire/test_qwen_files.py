from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire import qwen_files
from qwenproxy.wire.qwen_files import list_files
from tests.doubles import oss

PNG = "data:image/png;base64,iVBORw0KGgo="


def user(*parts):
    return {"role": "user", "content": list(parts)}


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def document(**members):
    return {"type": "file", "file": members}


def test_files_have_their_place_in_the_body():
    messages = [
        user(image("data:image/gif;base64,AA==")),
        {"role": "assistant", "content": "Yes."},
        user({"type": "text", "text": "And?"}, image(PNG), document(file_data="AA==")),
    ]
    assert [(f.path, f.kind) for f in list_files(messages)] == [
        ("messages.0.content.0.image_url", "image"),
        ("messages.2.content.1.image_url", "image"),
        ("messages.2.content.2.file", "file"),
    ]
    assert [f.path for f in list_files(messages, 2)] == [
        "messages.2.content.1.image_url",
        "messages.2.content.2.file",
    ]


@pytest.mark.parametrize(
    ("part", "kind", "media_type", "name"),
    [
        (image(PNG), "image", "image/png", "image-1.png"),
        (image("data:image/jpeg;base64,"), "image", "image/jpeg", "image-1.jpg"),
        (image("https://a.example/x/cat%20one.webp?y=1"), "image", "", "cat one.webp"),
        (image("https://a.example/x"), "image", "", "image-1"),
        (image("https://[x/cat.png"), "image", "", "image-1"),
        ({"type": "image_url", "image_url": PNG}, "image", "image/png", "image-1.png"),
        ({"type": "image_url"}, "image", "", "image-1"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4,"}}, "video", "video/mp4", "video-1.mp4"),
        ({"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}}, "audio", "audio/mpeg", "audio-1.mp3"),
        (document(filename="../a b.pdf", file_data="data:application/pdf;base64,"), "file", "application/pdf", "a b.pdf"),
        (document(filename="C:\\x\\é\n*.pdf", file_data="AA=="), "file", "", "é_.pdf"),
        (document(file_data=PNG), "image", "image/png", "image-1.png"),
        (document(file_id="file-1"), "file", "", "file-1"),
    ],
)  # fmt: skip
def test_what_a_part_is(part, kind, media_type, name):
    (found,) = list_files([user(part)])
    assert (found.kind, found.media_type, found.name) == (kind, media_type, name)


def test_texts_are_no_files():
    assert list_files([{"role": "user", "content": PNG}, user({"type": "text", "text": PNG})]) == []


@given(st.dictionaries(st.sampled_from(["url", "filename", "file_data", "format"]), st.text()))
def test_names_are_fit_for_a_path_and_a_line(members):
    (found,) = list_files([user(document(**members))])
    assert found.name
    assert not set("/\\\n\r\0?#%[]") & set(found.name)


def test_a_kept_entry_opens_nothing():
    entry = {"url": "https://store.example/a.png?x-oss-signature=planted", "id": "1"}
    assert qwen_files.without_signature(entry) == {
        "url": "https://store.example/a.png",
        "id": "1",
    }


# Published vectors of the store's own libraries: seconds since 1970, token, headers signed besides.
VECTORS = [
    (1702743657, "", [], "e21d18daa82167720f9b1047ae7e7f1ce7cb77a31e8203a7d5f4624fa0284afe"),
    (1702784856, "token", [], "b94a3f999cf85bcdc00d332fbd3734ba03e48382c36fa4d5af5df817395bd9ea"),
    (1702747512, "", ["abc", "zabc"], "4a4183c187c07c8947db7620deb0a6b38d9fbdd34187b6dbaccb316fa251212f"),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "token", "additional", "signature"), VECTORS)
def test_the_double_checks_as_the_store_does(seconds, token, additional, signature):
    now = datetime.fromtimestamp(seconds, UTC)
    named = f"AdditionalHeaders={';'.join(additional)}," if additional else ""
    headers = {
        "x-oss-head1": "value",
        "abc": "value",
        "zabc": "value",
        "xyz": "value",
        "content-type": "text/plain",
        "x-oss-content-sha256": "UNSIGNED-PAYLOAD",
        "x-oss-date": now.strftime("%Y%m%dT%H%M%SZ"),
        "authorization": (
            f"OSS4-HMAC-SHA256 Credential=ak/{now:%Y%m%d}/cn-hangzhou/oss/aliyun_v4_request,"
            f"{named}Signature={signature}"
        ),
    }
    if token:
        headers["x-oss-security-token"] = token
    values = {"param1": "value1", "|param1": "value4", "+param1": "value3"}
    values |= {"param2": "", "|param2": "", "+param2": ""}
    query = "&".join(f"{quote(n)}={v}" if v else quote(n) for n, v in values.items())
    path = quote("/bucket/1234+-/123/1.txt")
    known = {"secrets": {"ak": ("sk", token)}, "region": "cn-hangzhou", "now": now}
    assert oss.why_refused("PUT", path, query, headers, **known) == ""
    assert oss.why_refused("PUT", path + "x", query, headers, **known) == "SignatureDoesNotMatch"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_signatures_are_taken(key):
    now = datetime(2026, 11, 23, tzinfo=UTC)
    path = qwen_files.object_path("bucket", key)
    headers = {
        "content-type": "image/png",
        "x-oss-content-sha256": qwen_files.UNSIGNED,
        "x-oss-date": now.strftime("%Y%m%dT%H%M%SZ"),
        "x-oss-security-token": "token",
    }
    headers["authorization"] = qwen_files.authorization(
        path=path, headers=headers, access_key_id="ak", access_key_secret="sk", region="r-1"
    )
    known = {"secrets": {"ak": ("sk", "token")}, "region": "r-1", "now": now}
    assert oss.why_refused("PUT", path, "", headers, **known) == ""

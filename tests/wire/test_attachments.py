from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenproxy.wire import attachments, json
from qwenproxy.wire.attachments import Data
from qwenproxy.wire.history import decode_content, encode_content

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG" + bytes(300)).decode()
WAV = base64.b64encode(b"RIFF" + bytes(100)).decode()

_names = st.sampled_from(
    [
        "$file",
        "$$file",
        "$files",
        "url",
        "data",
        "file_data",
        "type",
        "format",
        "input_audio",
        "digest",
    ]
)
_texts = st.sampled_from(
    ["", "data:", "data:,x", PNG, WAV, "https://a.example/x.png", "text", "\ud800"]
)
_values = st.recursive(
    st.none() | st.integers() | st.text() | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=8,
)


def part(**members):
    return {"role": "user", "content": [{"type": "text", "text": "Look:"}, members]}


def image(url):
    return part(type="image_url", image_url={"url": url, "detail": "low"})


def bodies(files):
    return {file.digest.hex(): file.body for file in files}


@given(st.lists(_values, max_size=4))
@example([[{"$file": {}}]])
@example([{"type": "text", "x": {"$file": {}}}])
def test_a_message_is_put_back_as_it_was(content):
    message = {"role": "user", "content": content}
    stored, files = attachments.take_out(message)
    read = decode_content("user", encode_content(stored))
    named = {reference["digest"] for reference in attachments.references(read["content"])}
    assert named >= {file.digest.hex() for file in files}
    assert attachments.put_back(read, bodies(files)) == json.loads(json.dumps(message))


def test_a_file_inside_a_text_inside_a_part_is_named():
    message = part(type="tool_result", content=[{"type": "text", "text": "data: {}, quoted"}])
    stored, files = attachments.take_out(message)
    (named,) = attachments.references(stored["content"])
    assert [named["digest"]] == [file.digest.hex() for file in files]


def test_an_image_leaves_a_reference_that_tells_type_and_size():
    stored, (file,) = attachments.take_out(image(PNG))
    reference = stored["content"][1]["image_url"]
    assert reference == {"url": {"$file": file.facts}, "detail": "low"}
    assert file.facts == {"digest": file.digest.hex(), "type": "image/png", "bytes": 304}
    assert json.loads_text(file.body) == PNG
    assert list(attachments.references(stored["content"])) == [file.facts]


@pytest.mark.parametrize(
    ("members", "media_type", "size"),
    [
        ({"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}, "audio/wav", 104),
        ({"type": "file", "file": {"filename": "a", "file_data": WAV}}, "", 104),
        ({"type": "file", "file": {"file_data": "DATA:Text/Plain,abc"}}, "text/plain", 3),
        ({"type": "video", "video": [PNG]}, "image/png", 304),
    ],
    ids=["audio", "bare base64", "no base64", "frames"],
)
def test_other_files(members, media_type, size):
    _, (file,) = attachments.take_out(part(**members))
    assert (file.media_type, file.size) == (media_type, size)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": PNG},
        {"role": "user", "content": [PNG, {"type": "text", "text": PNG}]},
        {"role": "assistant", "content": [{"type": "thinking", "data": PNG}]},
        {"role": "assistant", "content": None},
    ],
)
def test_texts_are_left_alone(message):
    stored, files = attachments.take_out(message)
    assert stored is message
    assert files == []
    assert attachments.put_back(message, {}) is message


def test_an_addressed_image_stays():
    message = image("https://a.example/cat.png")
    assert attachments.take_out(message) == (message, [])


def test_the_same_file_in_two_messages_has_one_digest():
    _, first = attachments.take_out(image(PNG))
    _, second = attachments.take_out(part(type="input_image", image_url=PNG))
    assert first == second


def test_a_client_cannot_write_a_reference():
    _, (file,) = attachments.take_out(image(PNG))
    forged = part(type="image_url", image_url={"url": {"$file": file.facts}})
    stored, files = attachments.take_out(forged)
    assert files == []
    assert list(attachments.references(stored["content"])) == []
    assert attachments.put_back(stored, {file.digest.hex(): file.body}) == forged


def test_a_reference_to_what_is_gone_stays():
    stored, _ = attachments.take_out(image(PNG))
    assert attachments.put_back(stored, {}) == stored


def test_texts_are_changed_where_something_only_looks_like_a_reference():
    like = {"$file": {"digest": "secret"}}
    message = {"role": "user", "content": [{"type": "text", "x": like}, [like]], "x": like}
    changed = attachments.change_texts(message, lambda text: text.replace("secret", "***"))
    assert "secret" not in json.dumps_text(changed)


def test_texts_are_changed_around_references():
    stored, (file,) = attachments.take_out(image(PNG))
    changed = attachments.change_texts(stored, str.upper)
    assert changed["content"][0] == {"type": "TEXT", "text": "LOOK:"}
    assert list(attachments.references(changed["content"])) == [file.facts]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (PNG, Data("image/png", b"\x89PNG" + bytes(300))),
        (WAV, Data("", b"RIFF" + bytes(100))),
        ("data:text/plain;charset=utf-8;base64,aGk=", Data("text/plain", b"hi")),
        ("data:;base64,aG\nk=", Data("", b"hi")),
        ("data:,a%20b%zz%", Data("text/plain", b"a b%zz%")),
    ],
)
def test_what_a_url_holds(text, data):
    assert attachments.read_data(text) == data


@pytest.mark.parametrize("text", ["data:image/png;base64,a", "data:image/png", "no, it is not"])
def test_what_holds_nothing(text):
    with pytest.raises(ValueError, match="not base64"):
        attachments.read_data(text)


def test_data_is_written_as_it_is_read():
    data = Data("image/png", b"\x00\xff")
    assert attachments.read_data(attachments.write_data(data)) == data

"""Cutting byte streams into payloads."""

from __future__ import annotations

import json

import pytest

from qwenproxy.wire.sse import DONE, SSEDecoder, SSEError, encode_data
from tests.wire.streams import SYNTHETIC, payloads

STREAMS = sorted(SYNTHETIC.rglob("*.sse"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [b"a", b"b"], id="events"),
        pytest.param(b"data: a\ndata: b\n", [b"a", b"b"], id="no-blank-lines"),
        pytest.param(b"data:a\n", [b"a"], id="no-space"),
        pytest.param(b"data: {} \n", [b"{}"], id="space-at-end"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n", [b"a", b"b"], id="crlf"),
        pytest.param(b"data: a\rdata: b\r", [b"a", b"b"], id="cr"),
        pytest.param(b"data: a", [b"a"], id="no-line-end"),
        pytest.param(b"\xef\xbb\xbfdata: a\n", [b"a"], id="bom"),
        pytest.param(b": ping\nevent: x\nid: 1\nretry: 5\ndata: a\n", [b"a"], id="other-lines"),
        pytest.param(b"data:\ndata\ndata: \n\n", [], id="empty"),
        pytest.param(b"database: a\n", [], id="other-field"),
        pytest.param(
            "data: a\u2028b\u2029c\x85d\x0be\x0cf\n".encode(),
            ["a\u2028b\u2029c\x85d\x0be\x0cf".encode()],
            id="unicode-line-ends",
        ),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_payloads_are_the_same_wherever_the_stream_is_cut(data, expected):
    assert payloads(data) == expected
    for cut in range(len(data) + 1):
        assert payloads(data, cut=cut) == expected
    decoder = SSEDecoder()
    bytewise = [found for byte in data for found in decoder.feed(bytes([byte]))]
    assert bytewise + decoder.finish() == expected


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in STREAMS])
def test_every_fixture_stream_survives_a_cut_at_every_byte(path):
    data = path.read_bytes()
    # Read by means of their own: all lines of the fixtures end in LF.
    expected = [
        line.removeprefix("data:").strip().encode()
        for line in data.decode().replace("\r", "").split("\n")
        if line.startswith("data:")
    ]
    assert expected
    for cut in range(len(data) + 1):
        assert payloads(data, cut=cut) == expected


def test_a_payload_is_returned_by_the_chunk_that_ends_its_line():
    decoder = SSEDecoder()

    assert decoder.feed(b"data: a") == []
    assert decoder.feed(b"b\r") == [b"ab"]
    assert decoder.feed(b"\ndata: c\n") == [b"c"]


def test_an_endless_line_is_refused():
    decoder = SSEDecoder(max_line_bytes=20)

    assert decoder.feed(b"data: 1\ndata: ") == [b"1"]
    assert decoder.feed(b"x" * 14) == []
    with pytest.raises(SSEError, match="longer than 20 bytes"):
        decoder.feed(b"x")


def test_line_ends_of_careless_clients_are_escaped():
    event = encode_data({"text": "a\u2028b\u2029c\x85d\n\ud800é"})

    assert event == b'data: {"text":"a\\u2028b\\u2029c\\u0085d\\n\\ud800\xc3\xa9"}\n\n'
    assert json.loads(event[6:]) == {"text": "a\u2028b\u2029c\x85d\n\ud800é"}
    assert payloads(event + DONE)[-1] == b"[DONE]"
